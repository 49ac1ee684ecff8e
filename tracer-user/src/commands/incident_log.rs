//! The incident log: lines of JSON, written by a thread of its own, because a pipe whose reader stops must not stop
//! the tracing.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::detectors::Incident;
use crate::export::metrics::reading::LoggedIncidents;

/// Lines that may wait.
const WAITING: usize = 4096;
/// How long the end of the daemon waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// Where incidents go.
#[derive(Debug, Default)]
pub(super) struct IncidentLog {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

impl IncidentLog {
    /// To the end of a file, or with `-` to standard output.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Self::to(io::stdout());
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("--incident-log {}: the file cannot be opened", path.display()))?;
        Self::to(file)
    }

    fn to(out: impl Write + Send + 'static) -> Result<Self> {
        let (lines, received) = sync_channel(WAITING);
        let counts = Arc::new(Counts::default());
        let of_writer = Arc::clone(&counts);
        let writer = std::thread::Builder::new()
            .name("incident-log".to_owned())
            .spawn(move || write(out, &received, &of_writer))
            .context("the incident log's thread cannot be started")?;
        Ok(Self {
            lines: Some(lines),
            writer: Some(writer),
            counts,
        })
    }

    /// Writes one line.
    pub(super) fn log(&self, incident: &Incident) {
        let Some(lines) = &self.lines else { return };
        let counter = match serde_json::to_string(incident) {
            Ok(line) => match lines.try_send(line + "\n") {
                Ok(()) => return,
                Err(_) => &self.counts.dropped,
            },
            Err(_) => &self.counts.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What became of the lines.
    pub(super) fn counts(&self) -> LoggedIncidents {
        LoggedIncidents {
            written: self.counts.written.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
        }
    }

    /// Waits until everything is written, but not for ever.
    pub(super) fn finish(&mut self) {
        self.lines = None;
        let Some(writer) = self.writer.take() else { return };
        let until = Instant::now() + PATIENCE;
        while !writer.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn write(mut out: impl Write, lines: &Receiver<String>, counts: &Counts) {
    for line in lines {
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {
                counts.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                if counts.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(%error, "the incident log cannot be written");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::detectors::example;

    #[test]
    fn lines_are_appended_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incidents.jsonl");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = IncidentLog::open(&path).unwrap();
        log.log(&example());
        log.log(&example());
        log.finish();
        assert_eq!(log.counts().written, 2);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "before"));
        assert_eq!(serde_json::from_str::<Incident>(lines[2]).unwrap(), example());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = IncidentLog::open(Path::new("/no/such/folder/x")).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("--incident-log /no/such/folder/x: the file cannot be opened: "),
            "{error:#}"
        );
    }

    /// Blocks until it is told to go on, then fails.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let (go, wait) = channel();
        let mut log = IncidentLog::to(Stuck(wait)).unwrap();
        for _ in 0..WAITING + 10 {
            log.log(&example());
        }
        // One may be in the writer's hands.
        assert!((9..=10).contains(&log.counts().dropped), "{:?}", log.counts());
        drop(go);
        log.finish();
        let counts = log.counts();
        assert_eq!(counts.written, 0);
        assert_eq!(counts.failed + counts.dropped, WAITING as u64 + 10);
    }
}
