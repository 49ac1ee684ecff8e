# Runs in the guest of the test step `api`, until it is interrupted.
sdtrace run --listen 0.0.0.0:9955 >/out/sdtrace.log 2>&1 &
daemon=$!
trap 'kill -TERM $daemon; wait $daemon; exit $?' INT
until wget -q -O /dev/null http://127.0.0.1:9955/readyz 2>/dev/null; do
    kill -0 $daemon || { tail -n 5 /out/sdtrace.log; exit 1; }
    usleep 200000
done
# A process with an epoch every half second.
sh -c 'while :; do echo 4 >/proc/self/clear_refs; usleep 500000; done' &
# An epoch that begins before write faults are watched may say nothing of its misses, and each scenario has one only.
until wget -q -O - http://127.0.0.1:9955/metrics 2>/dev/null | grep -qx "sdtrace_writes_watched 1"; do
    kill -0 $daemon || exit 1
    usleep 100000
done
sdtrace battery --disruptive --only shmem-collapse,mremap-table-move >/out/battery.txt 2>&1
while :; do usleep 200000; done
