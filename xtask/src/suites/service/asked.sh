# Starts, hangs, stops and misconfigures sdtrace.service; what came of each goes to /out/answers, a line each.
exec >/out/answers 2>&1
state() {
    echo "$1: $(systemctl show sdtrace.service -p "$2" --value)"
}
wait_until_active() {
    for _ in $(/bin/busybox seq 60); do
        [ "$(systemctl show sdtrace.service -p ActiveState --value)" = active ] && return
        sleep 1
    done
}

systemctl start sdtrace.service
echo "start: $?"
state started ActiveState
state status StatusText
pid=$(systemctl show sdtrace.service -p MainPID --value)
for key in Uid CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
    echo "$key: $(grep "^$key:" "/proc/$pid/status" | /bin/busybox cut -f 2)"
done
echo "readyz: $(wget -q -O - http://127.0.0.1:9955/readyz)"
echo "unreadable: $(wget -q -O - http://127.0.0.1:9955/metrics | grep '^sdtrace_unreadable_processes_at_start ')"

# It hangs: the watchdog ends it, and it is started again.
kill -STOP "$pid"
sleep 6
wait_until_active
state restarted ActiveState
state restarts NRestarts

systemctl stop sdtrace.service
echo "stop: $?"
state stopped ActiveState
state result Result

# A mistake in the settings: it is not tried again.
echo 'attach = "magic"' >/etc/sdtrace/sdtrace.toml
systemctl start sdtrace.service
echo "start with a mistake: $?"
sleep 3
state misconfigured ActiveState
state exit ExecMainStatus
state tries NRestarts
