//! The records of pages in the kernel: which are in use, and giving back those whose marks are old.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData, Stack};
use tracer_common::pages::{CHUNK_SHIFT, ChunkKey, PageChunk, PageSet, TAG_MASK, tag};

use super::mapped::MappedArray;
use super::release::Release;

/// Words of a record, in its order: the birth, then the number of the chunk, then the epoch of the newest mark.
const BIRTH: usize = 0;
const NUMBER: usize = 1;
const NOTED: usize = 2;

/// The records. Programs alone change their index and the stack of free ones once something is tracked, see `release`.
pub struct PageRecords {
    table: MappedArray<PageChunk>,
    /// Programs that are loaded later name these maps by their descriptors, so they stay open.
    _index: Map,
    _free: Stack<MapData, u32>,
    /// Taken out of the index at the last sweep, with the epoch of their newest mark then: a program that had found one
    /// before may still write to it.
    retired: Vec<(u32, u32)>,
    /// Address spaces that the daemon did not know at the last sweep, and at how many before it.
    strangers: HashMap<u64, u32>,
    /// Records that were written to after they had been retired.
    lost: u64,
    /// One more than the highest number that was met in use.
    high_water: usize,
    used: u64,
}

/// Whose records these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A live address space with this newest epoch.
    Live(u32),
    /// One that is gone.
    Ended,
    /// One that the daemon does not know: pages are marked from the first clear on, and the record of a clear comes at its
    /// end.
    Unknown,
}

/// Epochs for which a record is kept that nothing is noted in. One of a page that is about to be written is given back all the
/// same now and then, and then that is told ([`PageRecords::lost`]).
const UNUSED: u32 = 8;

/// Sweeps for which the records of an unknown address space are kept: no clear takes a minute.
const PATIENCE: u32 = 60;

/// Pages whose write fault was handled in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// First address of each piece of 2 MiB with such pages, in ascending order, and which.
    pub chunks: Vec<(u64, PageSet)>,
    /// There are more.
    pub more: bool,
    /// Marks of an epoch long ago may be among them.
    pub doubtful: bool,
}

impl PageRecords {
    /// Takes the maps out of the object and declares every record free.
    ///
    /// # Errors
    /// If a map is not there or the kernel refuses to map or fill it.
    pub fn take(object: &mut Ebpf, capacity: u32) -> Result<Self> {
        let mut map = |name: &'static str| object.take_map(name).with_context(|| format!("no map {name}"));
        let table = match map("CHUNKS")? {
            aya::maps::Map::Array(data) => MappedArray::new(data, usize::try_from(capacity)?)
                .context("the array of page records cannot be mapped")?,
            other => anyhow::bail!("CHUNKS is {other:?}"),
        };
        let index = map("CHUNK_INDEX")?;
        let mut free = Stack::try_from(map("FREE_CHUNKS")?)?;
        // The lowest numbers on top, so that a sweep need not go far.
        for number in (0..capacity).rev() {
            free.push(number, 0)
                .context("the stack of free page records cannot be filled")?;
        }
        Ok(Self {
            table,
            _index: index,
            _free: free,
            retired: Vec::new(),
            strangers: HashMap::new(),
            lost: 0,
            high_water: 0,
            used: 0,
        })
    }

    /// Records in use at the last sweep.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Gives back the records that are old by what `owner` says of their address spaces. Marks of the newest epoch and the one
    /// before are kept: a clear that is walking now still compares with those. To be called about once a second.
    ///
    /// # Errors
    /// What the kernel says; what was not given back is tried again.
    pub fn sweep(&mut self, release: Release<'_>, owner: impl Fn(u64) -> Owner) -> Result<()> {
        while let Some(&(number, noted)) = self.retired.last() {
            self.lost += u64::from(self.noted(number as usize) != noted);
            self.table.zero(number as usize);
            release.return_chunk(number)?;
            self.retired.pop();
        }
        self.used = 0;
        let mut strangers = HashMap::new();
        // Behind the highest record in use lie those that were never used, but for a few that a program took and
        // gave back at once.
        let end = (self.high_water + SPARE).min(self.table.len());
        for number in 0..end {
            let birth = self.table.read_word(number, BIRTH);
            if birth == 0 {
                continue;
            }
            self.high_water = self.high_water.max(number + 1);
            self.used += 1;
            let noted = self.noted(number);
            let old = match owner(birth) {
                Owner::Live(newest) => newest > noted.saturating_add(UNUSED),
                Owner::Ended => true,
                Owner::Unknown => {
                    let sweeps = self.strangers.get(&birth).copied().unwrap_or(0);
                    strangers.insert(birth, sweeps.saturating_add(1));
                    sweeps >= PATIENCE
                }
            };
            if old {
                let key = ChunkKey {
                    birth,
                    number: self.table.read_word(number, NUMBER),
                };
                release.retire_chunk(&key)?;
                self.retired.push((u32::try_from(number)?, noted));
                self.used -= 1;
            }
        }
        self.strangers = strangers;
        Ok(())
    }

    /// The newest epoch that anything was noted in.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the lower half of the word, on the little-endian machines that sdtrace is built for"
    )]
    fn noted(&self, number: usize) -> u32 {
        self.table.read_word(number, NOTED) as u32
    }

    /// Records whose last marks came after they had been given up, so that the marks are lost.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The pages of one address space that were written in `epoch`, at most `most` pieces of 2 MiB.
    #[must_use]
    pub fn written(&self, birth: u64, epoch: u32, most: usize) -> Written {
        let mut written = Written::default();
        let end = (self.high_water + SPARE).min(self.table.len());
        for number in (0..end).filter(|&number| self.table.read_word(number, BIRTH) == birth) {
            let chunk = self.table.read(number);
            // Its owner may have changed since its first word was read.
            if chunk.key.birth != birth || chunk.noted_epoch < epoch {
                continue;
            }
            let mut pages = PageSet::default();
            for (page, mark) in chunk.written.iter().enumerate() {
                if mark & TAG_MASK == tag(epoch) {
                    pages.insert(page);
                }
            }
            if pages.is_empty() {
                continue;
            }
            if written.chunks.len() == most {
                written.more = true;
                break;
            }
            written.doubtful |= chunk.stale != 0;
            written.chunks.push((chunk.key.number << CHUNK_SHIFT, pages));
        }
        written.chunks.sort_unstable_by_key(|&(address, _)| address);
        written
    }
}

/// Records looked at beyond the highest that was met in use.
const SPARE: usize = 1024;
