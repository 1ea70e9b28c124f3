#!/bin/sh
# First program of the test machine (runs under the initramfs's busybox; see run.py).
#
# Loads KVM, mounts the host's file system read-only, runs one command in it and reports over
# three virtio ports: 1 carries the command's stdout, 2 its stderr, 3 our own status lines:
#   ready SECONDS      the command is about to start (kernel uptime)
#   exit STATUS        the command ended
#   fail REASON        the machine could not be set up

export PATH=/bin

mkdir -p /proc /sys /dev /host /job /keep /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

status() {
    echo "$*" >&5
}

fail() {
    status "fail $*"
    poweroff -f
}

# Built-in modules are not in the list; a failed insertion shows as a missing device below.
while read -r module; do
    insmod "/modules/$module.ko" || echo "init: cannot insert $module" >/dev/console
done </modules/order

# Ports appear asynchronously, when the device's control queue announces them; the first number
# in their names is the device's place among all virtio devices.
tries=0
until [ -c /dev/vport*p1 ] && [ -c /dev/vport*p2 ] && [ -c /dev/vport*p3 ]; do
    tries=$((tries + 1))
    if [ $tries -gt 1000 ]; then
        echo "init: no virtio ports" >/dev/console
        poweroff -f
    fi
    usleep 10000
done
out_port=$(echo /dev/vport*p1)
err_port=$(echo /dev/vport*p2)
exec 5>"$(echo /dev/vport*p3)"

[ -c /dev/kvm ] || fail "the kernel offers no /dev/kvm (kvm-amd did not load)"
chmod 666 /dev/kvm

share="trans=virtio,version=9p2000.L,msize=524288"
mount -t 9p -o "ro,$share" job /job || fail "cannot mount the job folder"
mount -t 9p -o "ro,$share,cache=loose" host /host || fail "cannot mount the host's file system"

# Paths that the tmpfs mounts below would hide are held by a bind mount first.
held=0
while read -r path; do
    held=$((held + 1))
    mkdir -p "/keep/$held"
    mount --bind "/host$path" "/keep/$held" || fail "cannot hold $path"
done </job/keep

mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
mount --bind /proc /host/proc && mount --bind /sys /host/sys || fail "cannot bind /proc and /sys"
mount --rbind /dev /host/dev || fail "cannot bind /dev"
mount -t tmpfs -o mode=1777 tmpfs /host/tmp || fail "cannot mount /tmp"
mount -t tmpfs -o mode=755 tmpfs /host/run || fail "cannot mount /run"
mkdir -p -m 1777 /host/run/lock

held=0
while read -r path; do
    held=$((held + 1))
    mkdir -p "/host$path"
    mount --bind "/keep/$held" "/host$path" || fail "cannot show $path"
done </job/keep

ip link set lo up
hostname hwkvm
ulimit -Hn 524288

interactive=no
. /job/job.sh || fail "cannot read the job" # sets interactive, rows, columns and "$@"

read -r uptime _ </proc/uptime
status "ready $uptime"

if [ "$interactive" = yes ]; then
    stty -F /dev/ttyS0 rows "$rows" cols "$columns" sane
    setsid -c "$@" </dev/ttyS0 >/dev/ttyS0 2>&1
    status "exit $?"
    poweroff -f
fi

# A port can be open only once, so the command gets pipes, which it may reopen by /dev/stdout.
mkfifo /run/out /run/err
cat /run/out >"$out_port" &
out=$!
cat /run/err >"$err_port" &
err=$!
setsid "$@" </dev/null >/run/out 2>/run/err 5>&- &
wait $!
code=$?

# What the command left running may hold the pipes open: wait for their end, but not for long.
tries=0
while kill -0 $out 2>/dev/null || kill -0 $err 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -gt 300 ] && break
    usleep 10000
done
status "exit $code"
poweroff -f
