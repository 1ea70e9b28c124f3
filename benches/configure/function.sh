$as_echo_n "checking for @NAME@... " >&6
cat confdefs.h - <<_ACEOF >conftest.c
char @NAME@();
int main(void) { return @NAME@(); }
_ACEOF
if $CC -o conftest$ac_exeext $CFLAGS -w conftest.c $LIBS >&5 2>conftest.err && test -x conftest$ac_exeext; then
  $as_echo "#define HAVE_`$as_echo "@NAME@" | $as_tr_cpp` 1" >>confdefs.h
  as_result=yes
else
  grep -v '^ *+' conftest.err >&5
  sed 's/^/| /' conftest.c >&5
  as_result=no
fi
rm -f conftest.err conftest$ac_exeext conftest.c
$as_echo "$as_result" >&6
