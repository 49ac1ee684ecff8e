# Runs in the guest: $1 runs of the whole battery against the expected results, then what it leaves behind.
fail() { echo "FAILED: $*"; exit 1; }

# What the battery may change for a while, and what it must never change.
host() {
    cat /proc/mounts /proc/swaps /proc/sys/vm/nr_hugepages /proc/sys/kernel/numa_balancing
    cd /sys/kernel/mm/ksm && cat run pages_to_scan sleep_millisecs use_zero_pages
    cd /sys/kernel/mm/transparent_hugepage && cat enabled defrag khugepaged/max_ptes_none
    [ ! -e shrink_underused ] || cat shrink_underused
    cd / && ls /tmp /dev /sys/block
}

untouched=$(host)
sdtrace battery >/result 2>&1 || { cat /result; fail "the run without --disruptive"; }
[ "$untouched" = "$(host)" ] || fail "the run without --disruptive changed the host"

for run in $(seq "$1"); do
    sdtrace battery --disruptive --expect >/result 2>&1 || { cat /result; fail "run $run"; }
    grep "^Linux" /result
    [ "$untouched" = "$(host)" ] || fail "run $run left something behind"
done

# True once the battery, running as $battery, has started KSM; false if it ended before that was seen.
caught() {
    while [ -e "/proc/$battery/exe" ]; do
        read -r running </sys/kernel/mm/ksm/run
        [ "$running" != 1 ] || return 0
    done
    return 1
}

# Interrupted in the middle of a change, it puts the host back: by itself, or by its guard when it cannot.
for signal in INT TERM KILL; do
    tries=0
    status=0
    # KSM runs for a moment only: until one run was caught and ended by the signal.
    while [ $status = 0 ]; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || fail "no run was caught in the middle by SIG$signal"
        sdtrace battery --disruptive --only ksm-merge >/dev/null 2>&1 &
        battery=$!
        ! caught || kill -$signal $battery 2>/dev/null
        wait $battery 2>/dev/null
        status=$?
    done
    tries=0
    until [ "$untouched" = "$(host)" ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "SIG$signal left something behind"
        usleep 20000
    done
    echo "SIG$signal: status $status, the host is as before"
done
