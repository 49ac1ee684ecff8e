//! Ctrl-C and SIGTERM, counted, so that a guest can be ended in order.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNT: AtomicUsize = AtomicUsize::new(0);
static INSTALLED: OnceLock<bool> = OnceLock::new();

/// From the first call on the two signals no longer end the process: they are counted.
pub fn install() {
    INSTALLED.get_or_init(|| {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else {
            return false;
        };
        std::thread::spawn(move || {
            for _ in signals.forever() {
                COUNT.fetch_add(1, Ordering::SeqCst);
            }
        });
        true
    });
}

/// How often the user asked to stop.
#[must_use]
pub fn count() -> usize {
    COUNT.load(Ordering::SeqCst)
}
