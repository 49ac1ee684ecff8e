#!/bin/sh
# Checkpoints a process tree with CRIU in rounds, and relies on soft-dirty only as far as sdtrace does.
#
#   predump-gate.sh PID FOLDER [CRIU-FLAG...]
#
# Pre-dumps, then dumps; the images go to FOLDER/1, FOLDER/2 and so on. After each one that was to write only what had changed,
# sdtrace is asked about the epoch that it read. When sdtrace does not trust it, a change may be missing, and so the next one
# begins a new chain: it writes everything. The last one leaves the tree stopped until its verdict is there. Then the tree is
# killed, as `criu dump` would have done.
#
# Exit 0: the last images are the end of a chain in which each epoch was trusted.
# Exit 10: the last dump was not trusted, so everything was dumped again, in full, and the tree is gone.
# Anything else: there is no checkpoint; a tree that is still there goes on.
#
# ROUNDS   pre-dumps before the dump; 3
# BETWEEN  what to do between two of them; sleep 1
# CRIU, SDTRACE   the programs; SDTRACE_URL where sdtrace listens
set -eu

if [ $# -lt 2 ]; then
    echo "usage: ${0##*/} PID FOLDER [CRIU-FLAG...]" >&2
    exit 2
fi
pid=$1
folder=$2
shift 2
rounds=${ROUNDS:-3}
between=${BETWEEN:-sleep 1}
criu=${CRIU:-criu}
sdtrace=${SDTRACE:-sdtrace}
number=0
# The images that the next ones go on from; none: the next ones hold everything.
parent=

# The process and its descendants.
tree() {
    echo "$1"
    cat "/proc/$1"/task/*/children 2>/dev/null | tr ' ' '\n' | while read -r child; do
        [ -z "$child" ] || tree "$child"
    done
}

# checkpoint pre-dump|dump CRIU-FLAG...
checkpoint() {
    action=$1
    shift
    number=$((number + 1))
    mkdir -p "$folder/$number"
    if [ -n "$parent" ]; then
        set -- --prev-images-dir "../$parent" "$@"
    fi
    "$criu" "$action" --track-mem --tree "$pid" --images-dir "$folder/$number" --log-file criu.log "$@"
}

# Whether the images that were just made have all that had changed: of every process, in the epoch that they ended.
reliable() {
    if [ -z "$parent" ]; then
        echo "$folder/$number: everything"
        return 0
    fi
    for process in $(tree "$pid"); do
        if ! "$sdtrace" verdict "$process" --epoch last --wait; then
            echo "$folder/$number: not to be relied on"
            return 1
        fi
    done
    echo "$folder/$number: what changed since $folder/$parent"
}

while [ "$number" -lt "$rounds" ]; do
    checkpoint pre-dump "$@"
    if reliable; then
        parent=$number
    else
        parent=
    fi
    $between
done

# Nobody shall stay stopped, whatever happens here.
# shellcheck disable=SC2046 # one word for each process
trap 'kill -CONT $(tree "$pid")' EXIT
trap 'exit 1' HUP INT TERM
checkpoint dump --leave-stopped "$@"
if reliable; then
    trap - EXIT
    # shellcheck disable=SC2046 # one word for each process
    kill -KILL $(tree "$pid")
    echo "checkpoint: $folder/$number"
    exit 0
fi
parent=
# shellcheck disable=SC2046 # one word for each process
kill -CONT $(tree "$pid")
trap - EXIT
checkpoint dump "$@"
echo "checkpoint: $folder/$number, in full"
exit 10
