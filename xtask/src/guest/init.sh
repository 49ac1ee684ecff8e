#!/bin/busybox sh
# The guest's first process: sets up the machine, runs the command, tells the host how it ended.
# ttyS0 is the kernel's console, ttyS1 carries the command's output, ttyS2 the words between host and guest.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root TERM=dumb
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /out /mnt /var/log
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t hugetlbfs hugetlbfs /dev/hugepages

stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
exec 9<>/dev/ttyS2
tell() { echo "$*" >&9; }

read -r uptime idle </proc/uptime
tell "booted $uptime $(uname -r)"

hostname guest
ulimit -l unlimited
ulimit -n 65536
while read -r module; do
    insmod "/lib/modules/$module.ko" || tell "problem cannot insert module $module"
done </etc/modules

# The block device of the disk with this serial number; their names swap between boots.
disk_called() {
    for disk in /sys/class/nvme/nvme*; do
        [ -e "$disk/serial" ] || continue
        [ "$(tr -d ' ' <"$disk/serial")" = "$1" ] || continue
        found="/dev/$(basename "$disk")n1"
        [ -b "$found" ] && echo "$found" && return 0
    done
    return 1
}

if [ -e /etc/disk ]; then
    # The driver looks for disks beside everything else.
    tries=0
    until disk=$(disk_called sdtrace-disk) || [ $tries -ge 200 ]; do
        usleep 50000
        tries=$((tries + 1))
    done
    mkdir -p /var/tmp
    # As on any machine: everybody may make files there, and nobody else may remove them.
    mount -t ext4 "$disk" /var/tmp && chmod 1777 /var/tmp || tell "problem cannot mount the disk"
fi

ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    # QEMU's user network: the host is .2 and forwards to .15.
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
fi
if [ -e /etc/forward-agent ]; then
    # No network card for this kernel: connections come over ttyS3.
    stty -F /dev/ttyS3 raw -echo
    /bin/forward-agent /dev/ttyS3 &
fi

# The host may ask for the command to be interrupted, as Ctrl-C on a terminal would.
while read -r word; do
    case "$word" in
        interrupt) kill -INT "$(cat /run/command.pid)" ;;
    esac
done <&9 &

mkfifo /run/output
cat /run/output >/dev/ttyS1 &
carrier=$!
tell started
/etc/command </dev/null >/run/output 2>&1
status=$?
# A process that the command left behind may hold the pipe open: its output is carried for two seconds more.
tries=0
while kill -0 $carrier 2>/dev/null && [ $tries -lt 40 ]; do
    usleep 50000
    tries=$((tries + 1))
done
tell "exit $status"

if disk=$(disk_called sdtrace-out); then
    if tar -C /out -cf "$disk" . 2>/run/tar.log; then
        sync
        tell "out ok"
    else
        tell "out failed $(head -n 1 /run/tar.log)"
    fi
fi
tell done
poweroff -f
