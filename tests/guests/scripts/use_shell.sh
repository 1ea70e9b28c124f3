# Only what a shell does without fork.
set -eu
i=0
sum=0
while [ "$i" -lt 2000 ]; do
    i=$((i + 1))
    sum=$((sum + i * i % 7))
done
echo "$i $sum"
say() {
    local name=$1
    shift
    printf '%s has %d arguments:' "$name" "$#"
    for word; do printf ' <%s>' "$word"; done
    echo
}
say f 'one two' '' three
for file in dir*/deep1*/*.txt; do
    case $file in
        */deep10/*) echo "ten $file" ;;
        *) echo "other ${file##*/} ${file%%/*}" ;;
    esac
done
count=0
while read -r first second rest; do
    count=$((count + second))
    last=$rest
done < dir1/deep5/table.txt
echo "$count $last"
echo written > "$1"
echo appended >> "$1"
while read -r line; do echo "read $line"; done < "$1"
[ -f "$1" ] && [ ! -d "$1" ] && [ -s "$1" ] && echo file
[ -L link ] && echo link
echo "$HOME $TMPDIR ${SECRET-unset}"
trap 'echo leaving' EXIT
cd dir2
[ -d deep2 ] && echo there
echo bad >&2
exit 9
