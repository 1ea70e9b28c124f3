$as_echo_n "checking size of @NAME@... " >&6
cat confdefs.h - <<_ACEOF >conftest.c
#include <stdio.h>
int main(void) { FILE *f = fopen("conftest.val", "w"); return !f || fprintf(f, "%d", (int)sizeof(@NAME@)) < 0; }
_ACEOF
if $CC -o conftest$ac_exeext $CFLAGS conftest.c $LIBS >&5 2>&1 && ./conftest$ac_exeext; then
  as_result=`cat conftest.val`
else
  as_result=0
fi
$as_echo "#define SIZEOF_`$as_echo "@NAME@" | $as_tr_cpp` $as_result" >>confdefs.h
rm -f conftest$ac_exeext conftest.c conftest.val
$as_echo "$as_result" >&6
