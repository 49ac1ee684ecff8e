//! What every other guest suite stands on, proved on each kernel: a static program runs, HTTP goes from the host into the
//! guest, files go in and come back whole, an interrupt reaches the command, and its status comes back.

use super::two_at_a_time;
use crate::guest::{Guest, Outcome, Report};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::workspace::build_static;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// The guest's part: runs the static program, serves what it was given, returns it as a file, waits for the interrupt.
const SCRIPT: &str = "forward-agent /dev/null && echo static >/www/static; cp /www/blob /out/blob; httpd -p 80 -h /www; \
                      trap 'echo interrupted; exit 42' INT; while :; do usleep 100000; done";
const STATUS: u8 = 42;
const BLOB_BYTES: u32 = 200_000;
const ATTEMPTS_AT_ONCE: u16 = 4;

/// Tests each kernel and prints a table of what it gave; fails if any did.
pub fn run(kernels: &[Wanted]) -> Result<()> {
    let program = build_static("xtask", "forward-agent")?;
    let cache = Kernels::open()?;
    let mut ready = Vec::new();
    for wanted in kernels {
        ready.push(cache.provide(*wanted, false)?);
    }
    let results = two_at_a_time(&ready, |kernel| test(kernel.clone(), &program));
    println!(
        "| kernel | package version | suite | connections over | boot | first answer | 200 KB by HTTP |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut failures = Vec::new();
    for (kernel, result) in ready.iter().zip(results) {
        let source = &kernel.source;
        let cells = match result {
            Ok(measured) => [
                measured.path.to_owned(),
                seconds(measured.boot),
                seconds(measured.first_answer),
                format!("{:.0} ms", measured.transfer.as_secs_f64() * 1000.0),
            ]
            .join(" | "),
            Err(error) => {
                failures.push(format!("{}: {error:#}", source.series));
                "failed | | |".to_owned()
            }
        };
        println!(
            "| {} | {} | {} | {cells} |",
            source.series, source.version, source.suite
        );
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

struct Measured {
    path: &'static str,
    boot: Duration,
    first_answer: Duration,
    transfer: Duration,
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn test(kernel: Kernel, program: &Path) -> Result<Measured> {
    let path = if kernel.modules.is_some() {
        "virtio_net"
    } else {
        "serial line"
    };
    let folder = tempfile::tempdir()?;
    let www = folder.path().join("www");
    let out = folder.path().join("out");
    fs::create_dir(&www)?;
    let blob: Vec<u8> = (0..BLOB_BYTES)
        .map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    fs::write(www.join("blob"), &blob)?;
    let port = free_port()?;
    let started = Instant::now();
    let mut running = Guest::new(kernel, ["sh", "-c", SCRIPT])
        .file(&www, "/www")
        .file(program, "/bin/forward-agent")
        .forward(port, 80)
        .out(&out)
        .start(std::io::sink())?;
    // Nothing listens until the command has started its server: those tries are answered by a closed connection.
    let first_answer = loop {
        if running.command_started() && get(port, "/static").is_ok_and(|body| body == b"static\n") {
            break started.elapsed();
        }
        if !running.step(Duration::from_millis(20))? {
            bail!(unexpected(&running.wait()?));
        }
    };
    let before = Instant::now();
    ensure!(get(port, "/blob")? == blob, "200 KB by HTTP came back changed");
    let transfer = before.elapsed();
    let clients: Vec<_> = (0..ATTEMPTS_AT_ONCE)
        .map(|_| std::thread::spawn(move || get(port, "/blob")))
        .collect();
    for client in clients {
        let body = client
            .join()
            .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        ensure!(
            body == blob,
            "200 KB by HTTP came back changed when {ATTEMPTS_AT_ONCE} were under way"
        );
    }
    running.interrupt_command()?;
    let report = running.wait()?;
    ensure!(report.outcome == Outcome::Exited(STATUS), unexpected(&report));
    ensure!(
        report.problems.is_empty(),
        "init complained: {}",
        report.problems.join("; ")
    );
    ensure!(
        fs::read(out.join("blob"))? == blob,
        "a file came back changed in /out"
    );
    Ok(Measured {
        path,
        boot: report.boot.context("the guest told no boot")?,
        first_answer,
        transfer,
    })
}

fn unexpected(report: &Report) -> String {
    format!("the guest ended unexpectedly: {:?}", report.outcome)
}

/// A port that nothing listens on just now.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The body of a successful GET.
pub(super) fn get(port: u16, path: &str) -> Result<Vec<u8>> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    body(&answer)
}

/// The body of an HTTP answer, complete by its own Content-Length.
fn body(answer: &[u8]) -> Result<Vec<u8>> {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .context("the answer has no header")?;
    let header = std::str::from_utf8(&answer[..end])?;
    let mut lines = header.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or_default();
    ensure!(status == "200", "the server answered {status}");
    let body = &answer[end + 4..];
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    ensure!(
        length.is_none_or(|length| length == body.len()),
        "the answer was cut short"
    );
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_successful_answers_count() {
        assert_eq!(
            body(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap(),
            b"ok"
        );
        assert_eq!(body(b"HTTP/1.1 200 OK\r\n\r\nok").unwrap(), b"ok");
        assert!(body(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok").is_err());
        assert!(body(b"HTTP/1.0 404 Not Found\r\n\r\n").is_err());
        assert!(body(b"").is_err());
    }
}
