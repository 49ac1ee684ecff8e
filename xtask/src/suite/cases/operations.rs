//! How sdtrace is operated: as a service without root, by a configuration file, for one container.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;

use crate::suite::Suite;
use crate::suite::actor::Actor;
use crate::suite::attached::Attached;
use crate::suite::daemon::{Daemon, get};
use crate::suite::service::{LEAST_PRIVILEGE, Notifications, UNIT, ambient_capabilities, unprivileged};

const CONFIGURATION: &str = "/tmp/sdtrace.toml";
const SOCKET: &str = "/tmp/notify";
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// The command of the unit, with settings from a file, as the unit's user with these capabilities.
fn service(suite: &Suite, capabilities: CapabilitySet, settings: &str) -> Result<Command> {
    let settings = format!(
        "listen = \"{}\"\nattach = \"{}\"\n{settings}",
        Suite::address(),
        suite.options.attach
    );
    fs::write(CONFIGURATION, settings)?;
    let mut command = Command::new("sdtrace");
    command
        .args(["run", "--config", CONFIGURATION])
        .env_remove("SDTRACE_ATTACH");
    unprivileged(&mut command, capabilities);
    Ok(command)
}

fn start(suite: &Suite, command: Command) -> Result<Daemon> {
    let log = suite.options.out.join("service.log");
    Daemon::start_by(command, Suite::address(), &log.to_string_lossy())
}

/// Ends it, and sees that nothing stays attached.
fn end(suite: &Suite, daemon: Daemon) -> Result<()> {
    let status = daemon.end(Signal::TERM)?;
    ensure!(status.code() == Some(0), "sdtrace ended with {status}");
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

/// A root's process that was armed before the start is adopted: its smaps and its pagemap were read.
fn saw_everything(daemon: &Daemon, armed: &Actor) -> Result<()> {
    let scrape = daemon.scrape()?;
    let unreadable = scrape.sum("sdtrace_unreadable_processes_at_start", &[])?;
    ensure!(unreadable == 0, "{unreadable} processes could not be read");
    let ledger = daemon.ledger()?;
    let space = ledger
        .space_of(armed.pid())
        .context("the armed process is not tracked")?;
    ensure!(space.origin == "adopted", "its origin is {}", space.origin);
    Ok(())
}

/// What the unit does, on this kernel: the user, the capabilities, the messages to systemd, labels on every sample.
pub fn the_service_runs_without_root(suite: &mut Suite) -> Result<()> {
    let mut armed = Actor::start("shared")?;
    armed.clear_itself()?;
    let mut systemd = Notifications::bind(SOCKET)?;
    let settings = "log-level = \"debug\"\n[label]\ncluster = \"a \\\"b\\\"\"\nrack = 7\n";
    let mut command = service(suite, ambient_capabilities(UNIT)?, settings)?;
    command
        .env("NOTIFY_SOCKET", SOCKET)
        .env("WATCHDOG_USEC", "2000000");
    let daemon = start(suite, command)?;
    systemd.wait_for("STATUS=not ready: the probes are being attached", 1)?;
    systemd.wait_for("READY=1", 1)?;
    systemd.wait_for(
        &format!("STATUS=tracing; metrics at http://{}", Suite::address()),
        1,
    )?;
    systemd.wait_for("WATCHDOG=1", 3)?;
    saw_everything(&daemon, &armed)?;
    ensure!(daemon.get("/healthz")? == "ok\n", "it is not healthy");
    for line in daemon
        .get("/metrics")?
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        for label in [r#"cluster="a \"b\"""#, r#"rack="7""#] {
            ensure!(line.matches(label).count() == 1, "{label} is not once in {line}");
        }
    }
    end(suite, daemon)?;
    systemd.wait_for("STOPPING=1", 1)?;
    let readies = systemd.met.iter().filter(|line| *line == "READY=1").count();
    ensure!(readies == 1, "it was ready {readies} times");
    armed.end()
}

/// Where `kernel.perf_event_paranoid` is 2, `CAP_SYS_ADMIN` is not needed; above, kprobes are refused without it, and
/// that is said.
pub fn the_least_privileges_are_enough(suite: &mut Suite) -> Result<()> {
    let least = ambient_capabilities(LEAST_PRIVILEGE)?;
    let before = fs::read_to_string(PARANOID).context(PARANOID)?;
    let mut armed = Actor::start("shared")?;
    armed.clear_itself()?;
    fs::write(PARANOID, "2")?;
    let result = (|| {
        let daemon = start(suite, service(suite, least, "")?)?;
        saw_everything(&daemon, &armed)?;
        end(suite, daemon)?;
        if suite.options.attach == "kprobe" {
            fs::write(PARANOID, "3")?;
            let output = service(suite, least, "")?.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1)
                    && said.contains("CAP_SYS_ADMIN for kprobes while kernel.perf_event_paranoid is above 2"),
                "{:?}: {said}",
                output.status
            );
        }
        Ok(())
    })();
    fs::write(PARANOID, before.trim())?;
    result?;
    armed.end()
}

/// Two processes clear themselves, one in a cgroup as Docker makes it: by the beginning of the container's id, that
/// one is tracked and the other is not.
pub fn a_container_is_tracked_alone(suite: &mut Suite) -> Result<()> {
    let id = "0123456789abcdef".repeat(4);
    let folder = format!("/sys/fs/cgroup/docker/{id}");
    fs::create_dir_all(&folder).with_context(|| folder.clone())?;
    let mut inside = Actor::start("shared")?;
    fs::write(format!("{folder}/cgroup.procs"), inside.pid().to_string())?;
    let mut outside = Actor::start("shared")?;
    let log = suite.options.out.join("container.log");
    let attach = suite.options.attach.clone();
    let arguments = [
        "--attach",
        &attach,
        "--container",
        &id[..12],
        "--top-workloads",
        "1",
    ];
    let daemon = Daemon::start(Suite::address(), &arguments, &log.to_string_lossy())?;
    inside.clear_itself()?;
    outside.clear_itself()?;
    inside.act()?;
    outside.act()?;
    let scrape = daemon.scrape()?;
    for (result, expected) in [("tracked", 1), ("filtered", 1)] {
        let count = scrape.count("softdirty_clears_total", &[("result", result)])?;
        ensure!(count == expected, "{count} clears are {result}");
    }
    let named = [
        ("workload_kind", "container"),
        ("workload", "docker-0123456789ab"),
    ];
    let faults = scrape.count("softdirty_workload_write_notify_faults_total", &named)?;
    let all = scrape.sum("softdirty_write_notify_faults_total", &[])?;
    ensure!(
        faults == all && faults > 0,
        "{faults} of {all} faults are the container's"
    );
    let clears = scrape.count("softdirty_workload_clears_total", &named)?;
    ensure!(clears == 1, "{clears} clears are the container's");
    let ledger = daemon.ledger()?;
    ensure!(
        ledger.space_of(inside.pid()).is_some(),
        "the container is not tracked"
    );
    ensure!(
        ledger.space_of(outside.pid()).is_none(),
        "the other process is tracked"
    );
    end(suite, daemon)?;
    inside.end()?;
    outside.end()?;
    fs::remove_dir(&folder)?;
    fs::remove_dir("/sys/fs/cgroup/docker")?;
    // Nobody listens any more.
    let address: SocketAddr = Suite::address();
    ensure!(
        get(address, "/healthz").is_err(),
        "something listens at {address}"
    );
    Ok(())
}
