//! The pulse of the main loop: when it last turned over. A thread that only asks can tell a loop that hangs from one
//! that has nothing to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The main loop turns over every second; so long without a turn, it hangs.
pub const LONGEST_TURN: Duration = Duration::from_secs(15);

/// Shared between the loop and those who ask.
#[derive(Clone, Debug)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds from `since` to the last turn, plus one; 0 before the first.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last: Arc::default(),
        }
    }
}

impl Pulse {
    /// One that has been awaited for so long.
    #[cfg(test)]
    pub(super) fn aged(age: Duration) -> Self {
        Self {
            since: Instant::now()
                .checked_sub(age)
                .expect("the machine is up for longer"),
            last: Arc::default(),
        }
    }

    /// The loop turned over at this moment.
    pub fn beat(&self, now: Instant) {
        let milliseconds = now.saturating_duration_since(self.since).as_millis();
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX - 1);
        self.last.store(milliseconds + 1, Ordering::Relaxed);
    }

    /// How long ago it turned over; before the first turn, how long it has been awaited.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        let last = self.last.load(Ordering::Relaxed);
        let at = self.since + Duration::from_millis(last.saturating_sub(1));
        now.saturating_duration_since(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_last_turn() {
        let pulse = Pulse::default();
        let start = pulse.since;
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.age(after(3)), Duration::from_secs(3));
        pulse.beat(after(5));
        assert_eq!(pulse.clone().age(after(7)), Duration::from_secs(2));
        pulse.beat(start);
        assert_eq!(pulse.age(after(1)), Duration::from_secs(1));
        assert_eq!(pulse.age(start), Duration::ZERO);
    }
}
