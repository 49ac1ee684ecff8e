//! The table of VMA states in the kernel, read from memory.

use std::io;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, Stack};
use tracer_common::table::{VmaKey, VmaRow};

use super::mapped::MappedArray;

/// The rows, their index and the stack of free ones.
pub struct Rows {
    table: MappedArray<VmaRow>,
    index: HashMap<MapData, VmaKey, u32>,
    free: Stack<MapData, u32>,
    capacity: u32,
}

impl Rows {
    /// Takes the maps out of the object and declares every row free.
    ///
    /// # Errors
    /// If a map is not there or the kernel refuses to map or fill it.
    pub fn take(object: &mut Ebpf, capacity: u32) -> Result<Self> {
        let mut map = |name: &'static str| object.take_map(name).with_context(|| format!("no map {name}"));
        let table = match map("ROWS")? {
            aya::maps::Map::Array(data) => MappedArray::new(data, usize::try_from(capacity)?)
                .context("the array of rows cannot be mapped")?,
            other => anyhow::bail!("ROWS is {other:?}"),
        };
        let index = HashMap::try_from(map("ROW_INDEX")?)?;
        let mut free = Stack::try_from(map("FREE_ROWS")?)?;
        // The lowest numbers on top: a small table stays in few pages.
        for row in (0..capacity).rev() {
            free.push(row, 0)
                .context("the stack of free rows cannot be filled")?;
        }
        Ok(Self {
            table,
            index,
            free,
            capacity,
        })
    }

    /// Number of rows.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// A copy of one row.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, number: u32) -> VmaRow {
        self.table.read(number as usize)
    }

    /// The birth of the address space that a row belongs to; 0 if it is free.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn birth(&self, number: u32) -> u64 {
        // The first word of the key, and the last thing that a program writes into a new row.
        self.table.read_word(number as usize, 0)
    }

    /// Every row in use.
    pub fn used(&self) -> impl Iterator<Item = (u32, VmaRow)> {
        (0..self.capacity)
            .filter(|&number| self.birth(number) != 0)
            .map(|number| (number, self.row(number)))
    }

    /// Takes a row out of the index: no program finds it any more, though one may still be writing to it.
    ///
    /// # Errors
    /// What bpf(2) says; a key that is not there is none.
    pub fn retire(&mut self, key: &VmaKey) -> Result<()> {
        match self.index.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            // aya gives the bare system call's error for a missing key here.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context("a row cannot be taken out of the index"),
        }
    }

    /// Gives a retired row back, zeroed.
    ///
    /// # Errors
    /// What bpf(2) says; the row is then lost until the next start.
    pub fn recycle(&mut self, number: u32) -> Result<()> {
        self.table.zero(number as usize);
        self.free.push(number, 0).context("a row cannot be given back")
    }
}
