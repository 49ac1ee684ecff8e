//! Whether write faults are watched now, and whether they should be. Pure: it decides, others attach and detach.
//!
//! The programs on `handle_mm_fault` cost every fault of the machine, so they are attached only while something is tracked,
//! or about to be: a tracker reads pagemap before its first clear. Whoever clears without a word before finds them
//! detached, and that epoch is not trusted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When write faults are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WatchWrites {
    /// While something is tracked, and from a read of a pagemap file on. An epoch that a clear opens out of the blue is not
    /// trusted.
    #[default]
    Tracked,
    /// From the start to the end.
    Always,
}

/// How long write faults are watched after the last reason for it, by default: some checkpoints in a row keep it up, a day
/// between two does not.
pub const LINGER: Duration = Duration::from_mins(1);
/// After the kernel has refused to attach, how long until the next try.
const RETRY_NS: u64 = 10_000_000_000;

/// What is known at one moment. All times are monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Now.
    pub now_ns: u64,
    /// Some address space is tracked.
    pub tracked: bool,
    /// A record says that somebody reads pagemap.
    pub asked: bool,
    /// When somebody read pagemap last; 0: nobody has.
    pub read_ns: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Attach, and tell [`WriteDemand::attached`] or [`WriteDemand::refused`].
    Attach,
    /// Detach. Epochs count as not watched from this answer on, before anything is detached.
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// From this moment on; `None`: from the start on.
    Watched {
        since_ns: Option<u64>,
    },
    Unwatched,
    /// The kernel has refused to attach.
    Refused {
        again_ns: u64,
    },
}

/// The state, and when there was a reason to watch last.
#[derive(Clone, Debug)]
pub struct WriteDemand {
    writes: WatchWrites,
    linger_ns: u64,
    state: State,
    reason_ns: Option<u64>,
    attaches: u64,
}

impl WriteDemand {
    /// Everything is attached, as it is after the start.
    #[must_use]
    pub fn new(writes: WatchWrites, linger: Duration) -> Self {
        Self {
            writes,
            linger_ns: u64::try_from(linger.as_nanos()).unwrap_or(u64::MAX),
            state: State::Watched { since_ns: None },
            reason_ns: None,
            attaches: 0,
        }
    }

    /// Whether they are watched at some times only.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.writes != WatchWrites::Always
    }

    /// What to do now, if anything.
    pub fn next(&mut self, situation: &Situation) -> Option<Step> {
        if self.writes == WatchWrites::Always {
            return None;
        }
        let now_ns = situation.now_ns;
        if situation.tracked || situation.asked {
            self.reason_ns = Some(now_ns);
        }
        if situation.read_ns != 0 {
            self.reason_ns = self.reason_ns.max(Some(situation.read_ns));
        }
        let wanted = self
            .reason_ns
            .is_some_and(|at_ns| now_ns.saturating_sub(at_ns) < self.linger_ns);
        match self.state {
            State::Watched { .. } if !wanted => {
                self.state = State::Unwatched;
                Some(Step::Detach)
            }
            State::Unwatched if wanted => Some(Step::Attach),
            State::Refused { again_ns } if wanted && now_ns >= again_ns => Some(Step::Attach),
            _ => None,
        }
    }

    /// Everything has been attached by `now_ns`.
    pub fn attached(&mut self, now_ns: u64) {
        self.attaches += 1;
        self.state = State::Watched {
            since_ns: Some(now_ns),
        };
    }

    /// The kernel does not attach it.
    pub fn refused(&mut self, now_ns: u64) {
        self.state = State::Refused {
            again_ns: now_ns.saturating_add(RETRY_NS),
        };
    }

    /// Since when write faults are watched; `None`: from the start on. While they are not, a time that every epoch lies
    /// before.
    #[must_use]
    pub const fn watched_since_ns(&self) -> Option<u64> {
        match self.state {
            State::Watched { since_ns } => since_ns,
            State::Unwatched | State::Refused { .. } => Some(u64::MAX),
        }
    }

    /// Whether write faults are watched now.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        matches!(self.state, State::Watched { .. })
    }

    /// How often they have been attached again.
    #[must_use]
    pub const fn attaches(&self) -> u64 {
        self.attaches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A demand after so many seconds of nothing, and what it said on the way.
    struct Play {
        demand: WriteDemand,
        now: Situation,
    }

    impl Play {
        fn new() -> Self {
            let now = Situation {
                now_ns: 1000 * SECOND,
                ..Situation::default()
            };
            Self {
                demand: WriteDemand::new(WatchWrites::Tracked, Duration::from_mins(1)),
                now,
            }
        }

        fn idle() -> Self {
            let mut play = Self::new();
            assert_eq!(play.step(), Some(Step::Detach));
            play
        }

        fn step(&mut self) -> Option<Step> {
            let step = self.demand.next(&self.now);
            self.now.asked = false;
            step
        }

        fn after(&mut self, seconds: u64) -> Option<Step> {
            self.now.now_ns += seconds * SECOND;
            self.step()
        }
    }

    #[test]
    fn nothing_is_watched_where_nobody_asked() {
        let mut play = Play::idle();
        assert_eq!(play.demand.watched_since_ns(), Some(u64::MAX));
        assert!(!play.demand.is_watched());
        assert_eq!(play.after(1000), None);
        assert_eq!(play.demand.attaches(), 0);
    }

    #[test]
    fn what_was_adopted_at_the_start_is_watched_from_the_start_on() {
        let mut play = Play::new();
        play.now.tracked = true;
        assert_eq!(play.step(), None);
        assert_eq!(play.demand.watched_since_ns(), None);
        play.now.tracked = false;
        assert_eq!(play.after(59), None);
        assert_eq!(play.after(1), Some(Step::Detach));
    }

    #[test]
    fn a_tracked_address_space_is_watched_as_long_as_it_lives_and_a_while_longer() {
        let mut play = Play::idle();
        play.now.tracked = true;
        assert_eq!(play.after(1), Some(Step::Attach));
        // Not before it is done.
        assert_eq!(play.demand.watched_since_ns(), Some(u64::MAX));
        let at_ns = play.now.now_ns + 5;
        play.demand.attached(at_ns);
        assert_eq!(play.demand.watched_since_ns(), Some(at_ns));
        assert_eq!(play.after(10_000), None);
        play.now.tracked = false;
        assert_eq!(play.after(59), None);
        assert_eq!(play.after(1), Some(Step::Detach));
        assert_eq!(play.demand.watched_since_ns(), Some(u64::MAX));
        play.now.tracked = true;
        assert_eq!(play.after(1), Some(Step::Attach));
        play.demand.attached(play.now.now_ns);
        assert_eq!(play.demand.attaches(), 2);
    }

    #[test]
    fn who_reads_pagemap_is_about_to_track() {
        let mut play = Play::idle();
        play.now.asked = true;
        assert_eq!(play.after(1), Some(Step::Attach));
        play.demand.attached(play.now.now_ns);
        // No record is sent any more, but the time of each read is noted.
        play.now.read_ns = play.now.now_ns + 30 * SECOND;
        assert_eq!(play.after(89), None);
        assert_eq!(play.after(1), Some(Step::Detach));
    }

    #[test]
    fn a_read_whose_record_was_lost_is_found_by_its_time() {
        let mut play = Play::idle();
        play.now.read_ns = play.now.now_ns + 1;
        assert_eq!(play.after(1), Some(Step::Attach));
    }

    #[test]
    fn an_old_read_is_no_reason() {
        let mut play = Play::new();
        play.now.read_ns = play.now.now_ns - 60 * SECOND;
        assert_eq!(play.step(), Some(Step::Detach));
    }

    #[test]
    fn what_the_kernel_refuses_is_tried_again_after_a_while() {
        let mut play = Play::idle();
        play.now.tracked = true;
        assert_eq!(play.step(), Some(Step::Attach));
        play.demand.refused(play.now.now_ns);
        assert_eq!(play.demand.watched_since_ns(), Some(u64::MAX));
        assert_eq!(play.after(9), None);
        assert_eq!(play.after(1), Some(Step::Attach));
        play.demand.refused(play.now.now_ns);
        play.now.tracked = false;
        // Nobody wants it any more.
        assert_eq!(play.after(60), None);
        play.now.tracked = true;
        assert_eq!(play.step(), Some(Step::Attach));
        play.demand.attached(play.now.now_ns);
        assert!(play.demand.is_watched());
    }

    #[test]
    fn always_is_always() {
        let mut demand = WriteDemand::new(WatchWrites::Always, Duration::from_mins(1));
        for now_ns in [0, 1_000_000 * SECOND] {
            let situation = Situation {
                now_ns,
                ..Situation::default()
            };
            assert_eq!(demand.next(&situation), None);
        }
        assert_eq!(demand.watched_since_ns(), None);
    }
}
