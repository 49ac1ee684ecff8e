//! The threads that write.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::pipe::pipe;

use super::memory::{Memories, Memory, Rule, store};

/// Writes between two naps.
const BURST: usize = 8;
/// One of this many writes is done by the kernel, by read(2) into the page.
const BY_THE_KERNEL: u64 = 16;

/// The threads, standing still or writing.
pub struct Writers {
    gate: Arc<Gate>,
    count: usize,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    writes: AtomicU64,
}

#[derive(Default)]
struct State {
    going: bool,
    standing: usize,
    failure: Option<String>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at once while the threads may write, else when they may again.
    fn pass(&self) {
        let mut state = self.state();
        if state.going {
            return;
        }
        state.standing += 1;
        self.changed.notify_all();
        while !state.going {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.standing -= 1;
    }
}

impl Writers {
    /// Starts them; they stand still. Each naps for `pace` between two bursts.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(memories: &Memories, count: usize, pace: Duration) -> Result<Self> {
        ensure!(count > 0, "an oracle needs at least one thread");
        let gate = Arc::new(Gate::default());
        for number in 0..count {
            let mut writer = Writer {
                number,
                count,
                random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
                memories: memories.clone(),
                gate: Arc::clone(&gate),
                pipe: None,
            };
            thread::Builder::new()
                .name(format!("writer-{number}"))
                .spawn(move || {
                    if let Err(error) = writer.work(pace) {
                        let mut state = writer.gate.state();
                        state.failure = Some(format!("{error:#}"));
                        writer.gate.changed.notify_all();
                    }
                })
                .context("cannot start a thread")?;
        }
        let writers = Self { gate, count };
        writers.wait_until_standing()?;
        Ok(writers)
    }

    /// Lets them write.
    pub fn go(&self) {
        self.gate.writes.store(0, Ordering::SeqCst);
        self.gate.state().going = true;
        self.gate.changed.notify_all();
    }

    /// Returns once all stand still, with the number of writes since [`Self::go`].
    ///
    /// # Errors
    /// If a thread has failed.
    pub fn pause(&self) -> Result<u64> {
        self.gate.state().going = false;
        self.wait_until_standing()?;
        Ok(self.gate.writes.load(Ordering::SeqCst))
    }

    fn wait_until_standing(&self) -> Result<()> {
        let mut state = self.gate.state();
        while state.standing < self.count {
            if let Some(failure) = &state.failure {
                bail!("a writer failed: {failure}");
            }
            state = self
                .gate
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

struct Writer {
    number: usize,
    count: usize,
    random: u64,
    memories: Memories,
    gate: Arc<Gate>,
    pipe: Option<(File, File)>,
}

impl Writer {
    fn work(&mut self, pace: Duration) -> Result<()> {
        let (reader, writer) = pipe()?;
        self.pipe = Some((File::from(reader), File::from(writer)));
        let memories = self.memories.clone();
        loop {
            for _ in 0..BURST {
                self.gate.pass();
                let chosen = self.next_random() % memories.all().len() as u64;
                let memory = &memories.all()[usize::try_from(chosen)?];
                self.change(&memories, memory)?;
            }
            self.gate.pass();
            thread::sleep(pace);
        }
    }

    /// Writes to one page of an area that belongs to this thread, if there is one.
    fn change(&mut self, memories: &Memories, memory: &Memory) -> Result<()> {
        let random = self.next_random();
        let pages = memory.pages();
        let page = match memory.rule {
            Rule::Protected if self.number != 0 => return Ok(()),
            Rule::Protected => {
                if random.is_multiple_of(BY_THE_KERNEL) {
                    memory.protect_for_a_moment()?;
                }
                usize::try_from(random >> 8)? % pages
            }
            // Pages of a thread lie between those of the others.
            Rule::Unique | Rule::Alike => {
                let own = pages.div_ceil(self.count);
                let page = usize::try_from(random >> 8)? % own * self.count + self.number;
                if page >= pages {
                    return Ok(());
                }
                page
            }
        };
        let by_the_kernel = self.next_random().is_multiple_of(BY_THE_KERNEL);
        let pipe = self.pipe.as_ref().filter(|_| by_the_kernel);
        let wrote = memory.write(page, memories.fresh(memory), |pointer, content| {
            if let Some(pipe) = pipe {
                return read_into(pipe, pointer, content);
            }
            store(pointer, content);
            Ok(())
        })?;
        self.gate.writes.fetch_add(u64::from(wrote), Ordering::SeqCst);
        Ok(())
    }

    /// xorshift64: every run writes the same pages in the same order, thread by thread.
    const fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Lets the kernel write the content, by read(2) from a pipe.
fn read_into((reader, writer): &(File, File), pointer: *mut u8, content: u64) -> Result<()> {
    let mut writer = writer;
    writer.write_all(&content.to_ne_bytes())?;
    // SAFETY: the beginning of a page of an area, which is writable and belongs to this thread alone.
    let bytes = unsafe { std::slice::from_raw_parts_mut(pointer, 8) };
    let read = rustix::io::read(reader.as_fd(), bytes)?;
    ensure!(read == 8, "read(2) gave {read} of 8 bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_while_they_stand_still() {
        let memories = Memories::map(64, false).unwrap();
        let writers = Writers::start(&memories, 4, Duration::from_millis(1)).unwrap();
        memories.forget();
        assert!(memories.changed().iter().all(Vec::is_empty));
        writers.go();
        while writers.gate.writes.load(Ordering::SeqCst) < 500 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(writers.pause().unwrap() >= 500);
        let changed = memories.changed();
        assert!(changed.iter().any(|area| !area.is_empty()));
        assert!(memories.wrong().iter().all(Vec::is_empty));
        memories.forget();
        thread::sleep(Duration::from_millis(30));
        assert!(memories.changed().iter().all(Vec::is_empty));
    }
}
