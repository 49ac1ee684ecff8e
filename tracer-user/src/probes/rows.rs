//! The table of VMA states in the kernel, read from memory.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData, Stack};
use tracer_common::table::VmaRow;

use super::mapped::MappedArray;

/// The rows. Programs alone change their index and the stack of free ones once something is tracked, see `release`.
pub struct Rows {
    table: MappedArray<VmaRow>,
    capacity: u32,
    /// Programs that are loaded later name these maps by their descriptors, so they stay open.
    _index: Map,
    _free: Stack<MapData, u32>,
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
        let index = map("ROW_INDEX")?;
        let mut free = Stack::try_from(map("FREE_ROWS")?)?;
        // The lowest numbers on top: a small table stays in few pages.
        for row in (0..capacity).rev() {
            free.push(row, 0)
                .context("the stack of free rows cannot be filled")?;
        }
        Ok(Self {
            table,
            capacity,
            _index: index,
            _free: free,
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

    /// Sets a row to zeros, which no program may be writing to.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn zero(&self, number: u32) {
        self.table.zero(number as usize);
    }
}
