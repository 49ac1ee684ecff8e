# Runs in the guest: soft-dirty broken on purpose by the test module must come out as missed, and whole again as tracked.
fail() { echo "FAILED: $*"; exit 1; }

# expect RESULT SCENARIO...
expect() {
    want=$1
    shift
    for name; do
        sdtrace battery --disruptive --json --only "$name" >/result 2>&1 || { cat /result; fail "$name does not run"; }
        grep -q "\"result\": \"$want\"" /result || { cat /result; fail "$name is not $want with the fault '$fault'"; }
    done
    echo "fault '$fault': $* $want"
}

# The same of scenarios that one of the kernels does not have.
expect_where_supported() {
    want=$1
    shift
    for name; do
        sdtrace battery --disruptive --json --only "$name" >/result 2>&1 || { cat /result; fail "$name does not run"; }
        if grep -q '"result": "not supported"' /result; then
            echo "fault '$fault': $name not supported here"
        else
            expect "$want" "$name"
        fi
    done
}

driver() {
    said=$(driver-mapping) || fail "driver-mapping"
    [ "$said" = "$1" ] || fail "the device's mapping is $said with the fault '$fault'"
    echo "fault '$fault': device mapping $said"
}

load() {
    fault=$1
    insmod /softdirty_faults.ko fault="$fault" comm=sdtrace || fail "insmod fault=$fault"
}

shared="seed-2014 shared-read-then-write"
private="mprotect-private mprotect-none-private"
both="mprotect-shared mprotect-ramfs mprotect-disk mprotect-none-disk"
controls="control-private-anon control-shared-anon"

fault=none
expect tracked $controls $shared $private $both

load page-prot
expect missed $shared $both
expect tracked $controls $private
rmmod softdirty_faults || fail "rmmod"

load mprotect
expect missed $private $both
expect tracked $controls $shared
driver tracked
rmmod softdirty_faults || fail "rmmod"

# What no kernel misses: here the oracle of each of these is seen to say so when it happens.
load forget
expect missed $controls control-shared-disk disk-writeback direct-read control-private-untouched control-zero-page \
    control-private-file control-thp thp-one-byte \
    mremap-table-move-written read-syscall vmsplice proc-mem-write process-vm-writev ptrace-poke stack-growth \
    fork-inherits fork-then-write madv-free mprotect-thp uffd-wp-resolve uffd-wp-sync dontneed-then-write \
    fixed-buffer-private migrate-before-write numa-balancing anon-swapped-then-write \
    huge-written-while-read hole-written-while-read
expect_where_supported missed uffd-wp-async
rmmod softdirty_faults || fail "rmmod"

load driver
expect tracked $controls $shared $private $both
driver missed
rmmod softdirty_faults || fail "rmmod"

fault=none
expect tracked $controls $shared $private $both
