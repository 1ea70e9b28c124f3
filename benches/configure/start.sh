#! /bin/sh
# Guess values for system-dependent variables and create Makefiles.
DUALCASE=1; export DUALCASE
if test -n "${ZSH_VERSION+set}" && (emulate sh) >/dev/null 2>&1; then
  emulate sh
  NULLCMD=:
else
  case `(set -o) 2>/dev/null` in #(
    *posix*) set -o posix 2>/dev/null ;; #(
    *) : ;;
  esac
fi
as_nl='
'
if (test "X`printf %s "X"`" = XX) 2>/dev/null; then
  as_echo='printf %s\n'
  as_echo_n='printf %s'
else
  as_echo=echo
  as_echo_n='echo -n'
fi
for as_var in BASH_ENV ENV MAIL MAILPATH; do
  eval test x\${$as_var+set} = xset && ( (unset $as_var) || exit 1) >/dev/null 2>&1 && unset $as_var || :
done
LC_ALL=C; export LC_ALL
LANGUAGE=C; export LANGUAGE
if expr a : '\(a\)' >/dev/null 2>&1 && test "X`expr 00001 : '.*\(...\)'`" = X001; then
  as_expr=expr
else
  as_expr=false
fi
if (basename -- /) >/dev/null 2>&1 && test "X`basename -- / 2>&1`" = "X/"; then
  as_basename=basename
else
  as_basename=false
fi
as_me=`$as_basename -- "$0" || $as_echo X/"$0" | sed '/^.*\/\([^/][^/]*\)\/*$/{ s//\1/; q; }; s/.*/./; q'`
as_dir=`dirname -- "$0"`
as_tr_cpp="eval sed 'y%*abcdefghijklmnopqrstuvwxyz%PABCDEFGHIJKLMNOPQRSTUVWXYZ%;s%[^_A-Z0-9]%_%g'"
as_tr_sh="eval sed 'y%*+%pp%;s%[^_a-zA-Z0-9]%_%g'"
ac_unique_file="main.c"
srcdir=$as_dir
if test ! -r "$srcdir/$ac_unique_file"; then
  $as_echo "$as_me: cannot find sources ($ac_unique_file) in $srcdir" >&2
  exit 1
fi
exec 6>&1 5>config.log 7</dev/null
cat >&5 <<_ASUNAME
hostname = `(hostname || uname -n) 2>/dev/null | sed 1q`
uname -m = `(uname -m) 2>/dev/null || echo unknown`
uname -r = `(uname -r) 2>/dev/null || echo unknown`
uname -s = `(uname -s) 2>/dev/null || echo unknown`
_ASUNAME
as_save_IFS=$IFS; IFS=:
for as_dir in $PATH; do
  IFS=$as_save_IFS
  $as_echo "PATH: $as_dir" >&5
done
IFS=$as_save_IFS
rm -f conftest* confdefs.h
$as_echo "/* confdefs.h */" >confdefs.h
CC=gcc CFLAGS=-O2 LIBS= ac_objext=o ac_exeext=
