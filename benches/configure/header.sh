$as_echo_n "checking for @NAME@... " >&6
cat confdefs.h - <<_ACEOF >conftest.c
#include <@NAME@>
int main(void) { return 0; }
_ACEOF
rm -f conftest.$ac_objext
if $CC -c $CFLAGS conftest.c >&5 2>conftest.err && test -s conftest.$ac_objext; then
  as_result=yes
else
  grep -v '^ *+' conftest.err >&5
  sed 's/^/| /' conftest.c >&5
  as_result=no
fi
if test "$as_result" = yes; then
  $as_echo "#define HAVE_`$as_echo "@NAME@" | $as_tr_cpp` 1" >>confdefs.h
fi
rm -f conftest.err conftest.$ac_objext conftest.c
$as_echo "$as_result" >&6
