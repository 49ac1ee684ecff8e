//! What systemd is told of `sdtrace run`: that it is ready, how it fares, and that its main loop still turns over.
//!
//! Without systemd (no `NOTIFY_SOCKET`) nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::export::source::{Readiness, Source};

/// How often it is looked whether something changed, when no watchdog asks for more.
const PERIOD: Duration = Duration::from_secs(5);

/// Tells systemd until the task is dropped. The watchdog is fed only while the main loop turns over: one that hangs is
/// restarted.
pub(super) async fn report(mut source: Source, url: String) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Half of the time that systemd allows, as sd_watchdog_enabled(3) recommends.
    let period = watchdog.map_or(PERIOD, |limit| (limit / 2).min(PERIOD));
    let mut told = Told::default();
    while !source.is_ending() {
        let states = told.news(&source.readiness(), &url);
        for state in &states {
            tell(state);
        }
        if watchdog.is_some() && !source.readiness().starting {
            match source.health() {
                Ok(()) => tell(&News::Alive),
                Err(why) => tracing::error!("{why}; systemd will restart sdtrace"),
            }
        }
        // Too late is as good as a change: it is looked again.
        let _ = tokio::time::timeout(period, source.changed()).await;
    }
}

/// Says that the end has begun.
pub(super) fn ending() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        tell(&News::Ending);
    }
}

/// Something that systemd wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    Ready,
    Status(String),
    Alive,
    Ending,
}

/// What was told already.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    status: String,
}

impl Told {
    /// What is new. The service is started once the probes are attached, even if one of them is broken: the status
    /// says so, and /readyz does.
    fn news(&mut self, readiness: &Readiness, url: &str) -> Vec<News> {
        let mut news = Vec::new();
        if !self.ready && !readiness.starting {
            self.ready = true;
            news.push(News::Ready);
        }
        let status = if readiness.ready {
            format!("tracing; metrics at {url}/metrics")
        } else {
            format!("not ready: {}", readiness.reasons.join("; "))
        };
        if status != self.status {
            self.status.clone_from(&status);
            news.push(News::Status(status));
        }
        news
    }
}

fn tell(news: &News) {
    let state = match news {
        News::Ready => NotifyState::Ready,
        News::Status(text) => NotifyState::Status(text),
        News::Alive => NotifyState::Watchdog,
        News::Ending => NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be told: {news:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_told_once_and_a_status_when_it_changes() {
        let mut told = Told::default();
        let starting = told.news(&Readiness::starting(), "http://a");
        assert!(
            matches!(starting.as_slice(), [News::Status(text)] if text.starts_with("not ready: the probes are being")),
            "{starting:?}"
        );
        let ready = Readiness::of(Vec::new());
        assert_eq!(
            told.news(&ready, "http://a"),
            [
                News::Ready,
                News::Status("tracing; metrics at http://a/metrics".to_owned())
            ]
        );
        assert_eq!(told.news(&ready, "http://a"), []);
        let broken = Readiness::of(vec!["a probe is broken".to_owned()]);
        assert_eq!(
            told.news(&broken, "http://a"),
            [News::Status("not ready: a probe is broken".to_owned())]
        );
    }
}
