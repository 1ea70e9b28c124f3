# Extract the first word of "@NAME@", so it can be a program name with args.
$as_echo_n "checking for @NAME@... " >&6
ac_cv_prog_@NAME@=
as_save_IFS=$IFS; IFS=:
for as_dir in $PATH; do
  IFS=$as_save_IFS
  test -z "$as_dir" && as_dir=.
  if test -f "$as_dir/@NAME@" && test -x "$as_dir/@NAME@"; then
    ac_cv_prog_@NAME@="$as_dir/@NAME@"
    break
  fi
done
IFS=$as_save_IFS
$as_echo "${ac_cv_prog_@NAME@:-no}" >&6
