# Makes Debian's systemd the first process of a pid namespace, over the root that the host sent.
set -e
mkdir /debian
mount -t tmpfs -o size=300m none /debian
tar -xf /debian.tar -C /debian
cd /debian
mkdir -p proc sys dev run tmp root out etc/systemd/system/sdtrace.service.d
cp /bin/busybox bin/busybox
for name in sh cat grep sleep kill wget env; do
    [ -e "bin/$name" ] || ln -s busybox "bin/$name"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
# The transient user of DynamicUser is known to nss-systemd only.
printf 'passwd: files systemd\ngroup: files systemd\n' >etc/nsswitch.conf
: >etc/machine-id
cp /service-asked.sh root/asked.sh
cp /service-asked.service etc/systemd/system/asked.service
# The log where the host finds it, and a watchdog that the test need not wait for so long.
printf '[Service]\nStandardError=append:/out/sdtrace.log\nWatchdogSec=4s\nRestartSec=1s\n' \
    >etc/systemd/system/sdtrace.service.d/test.conf
mount --rbind /sys sys
mount --rbind /dev dev
mount --bind /out out
mount -t tmpfs none run
exec unshare -p -f -m sh -c '
    mount -t proc proc /debian/proc
    exec chroot /debian /bin/env -i container=guest PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=asked.service --log-target=console --show-status=false --log-level=notice'
