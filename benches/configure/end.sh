cat >config.status <<_ACEOF
#! /bin/sh
exec 6>&1
for ac_file in Makefile; do
  sed "s,@srcdir@,$srcdir,g
s,@CC@,$CC,g
s,@CFLAGS@,$CFLAGS,g
s,@LIBS@,$LIBS,g" "$srcdir/\$ac_file.in" >"\$ac_file.tmp" && mv "\$ac_file.tmp" "\$ac_file"
done
sed -n 's/^#define \([A-Za-z0-9_]*\) \(.*\)/s,^#undef \1\$,#define \1 \2,/p' confdefs.h >conftest.sed
sed -f conftest.sed "$srcdir/config.h.in" >config.h
rm -f conftest.sed
_ACEOF
chmod +x config.status
$as_echo "$as_me: creating ./config.status" >&6
${CONFIG_SHELL-/bin/sh} ./config.status || exit 1
grep '^#define' config.h | sort >config.sorted
test `wc -l <config.sorted` -gt 9 || exit 1
rm -f confdefs.h config.sorted
