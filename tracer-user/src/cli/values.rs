//! Parsers of single values: what they take, and what they say of the rest.

use std::time::Duration;

use crate::export::api::query::EpochName;

pub(super) fn parse_epoch(text: &str) -> Result<EpochName, String> {
    EpochName::try_from(text.to_owned())
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it as 30s, 5m or 1h30m")),
    }
}

pub(super) fn parse_linger(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        // Epochs that are over are finished within this time.
        Ok(linger) if linger < Duration::from_secs(1) => Err("it must be at least 1s".to_owned()),
        Ok(linger) => Ok(linger),
        Err(error) => Err(format!("{error}; write it as 30s or 5m")),
    }
}

pub(super) fn parse_period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if !period.is_zero() && period < Duration::from_millis(10) => {
            Err("it must be at least 10ms, or 0s for never".to_owned())
        }
        Ok(period) => Ok(period),
        Err(error) => Err(format!("{error}; write it as 1s or 500ms, or 0s for never")),
    }
}

pub(super) fn parse_comm(text: &str) -> Result<String, String> {
    if (1..=15).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("the kernel keeps names of 1 to 15 bytes; give it as /proc/PID/comm shows it".to_owned())
    }
}
