# Runs in the guest: $1 runs of the whole battery against the expected results, then what it leaves behind.
fail() { echo "FAILED: $*"; exit 1; }

# What the battery may change for a while, and what it must never change.
host() {
    cat /proc/mounts /proc/swaps /proc/sys/vm/nr_hugepages /proc/sys/kernel/numa_balancing
    # What the kernel calls it depends on its age.
    cat /proc/sys/vm/percpu_pagelist_*fraction
    grep HardwareCorrupted /proc/meminfo
    cd /sys/kernel/mm/ksm && cat run pages_to_scan sleep_millisecs use_zero_pages
    cd /sys/kernel/mm/transparent_hugepage && cat enabled defrag
    [ ! -e shrink_underused ] || cat shrink_underused
    cd khugepaged && cat max_ptes_none alloc_sleep_millisecs pages_to_scan scan_sleep_millisecs
    cd / && ls /tmp /var/tmp /dev /sys/block
}

untouched=$(host)
sdtrace battery >/result 2>&1 || { cat /result; fail "the run without --disruptive"; }
[ "$untouched" = "$(host)" ] || fail "the run without --disruptive changed the host"

# Without rights it says what it lacks, counts that as no failure of its own, and tries to put nothing back.
su -s /bin/sh nobody -c 'sdtrace battery --disruptive' >/result 2>&1 || { cat /result; fail "the run without rights"; }
! grep "NOT RESTORED" /result || fail "the run without rights says that it could not put back what it never changed"
grep -q "^control-private-anon .* tracked$" /result || { cat /result; fail "nothing works without rights"; }
grep -q "^ksm-merge .* not supported here: .*: Permission denied" /result || { cat /result; fail "no reason is given"; }
[ "$untouched" = "$(host)" ] || fail "the run without rights changed the host"
echo "without rights: $(grep "^Linux" /result)"

for run in $(seq "$1"); do
    started=$(date +%s)
    sdtrace battery --disruptive --expect >/result 2>&1 || { cat /result; fail "run $run"; }
    echo "$(grep "^Linux" /result) ($(($(date +%s) - started)) s)"
    [ "$untouched" = "$(host)" ] || fail "run $run left something behind"
done

# True once the battery, running as $battery, has written 1 to a setting; false if it ended before that was seen.
caught() {
    while [ -e "/proc/$battery/exe" ]; do
        read -r value <"$1"
        [ "$value" != 1 ] || return 0
    done
    return 1
}

# interrupted SIGNAL SCENARIO SETTING: interrupted in the middle of a change, it puts the host back: by itself, or by its
# guard when it cannot.
interrupted() {
    tries=0
    status=0
    # The setting is there for a moment only: until one run was caught and ended by the signal.
    while [ $status = 0 ]; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || fail "no run of $2 was caught in the middle by SIG$1"
        sdtrace battery --disruptive --only "$2" >/dev/null 2>&1 &
        battery=$!
        ! caught "$3" || kill "-$1" $battery 2>/dev/null
        wait $battery 2>/dev/null
        status=$?
    done
    tries=0
    until [ "$untouched" = "$(host)" ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "SIG$1 in $2 left something behind"
        usleep 20000
    done
    echo "SIG$1 in $2: status $status, the host is as before"
}

for signal in INT TERM KILL; do
    interrupted $signal ksm-merge /sys/kernel/mm/ksm/run
    interrupted $signal khugepaged-anon /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
done
