//! Arrays of the kernel that lie in our memory (`BPF_F_MMAPABLE`, 5.5): reading them needs no system call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;

use aya::maps::MapData;
use bytemuck::Pod;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tracer_common::PAGE_SIZE;

/// A mapped BPF array of `T`.
#[derive(Debug)]
pub struct MappedArray<T> {
    words: NonNull<u64>,
    length: usize,
    entries: usize,
    entry: PhantomData<T>,
    /// Programs that are loaded later name the map by its descriptor, so it stays open.
    _map: MapData,
}

// SAFETY: the mapping belongs to the value; all access is by volatile words, as the kernel changes them anyway.
unsafe impl<T: Send> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps the array behind `map`, which has `entries` entries of `T`, a multiple of eight bytes.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(map: MapData, entries: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let page = usize::try_from(PAGE_SIZE).map_err(io::Error::other)?;
        let length = (entries * size_of::<T>()).next_multiple_of(page);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )?
        };
        let words = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self {
            words,
            length,
            entries,
            entry: PhantomData,
            _map: map,
        })
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn word(&self, index: usize, word: usize) -> *mut u64 {
        assert!(
            index < self.entries && word < Self::WORDS,
            "entry {index} of {}",
            self.entries
        );
        // SAFETY: within the mapping, which the assertion above proves.
        unsafe { self.words.as_ptr().add(index * Self::WORDS + word) }
    }

    /// One word of an entry.
    ///
    /// # Panics
    /// If there is no such entry.
    #[must_use]
    pub fn read_word(&self, index: usize, word: usize) -> u64 {
        // SAFETY: a valid, aligned word of the mapping; volatile because the kernel changes it.
        unsafe { self.word(index, word).read_volatile() }
    }

    /// A copy of an entry. Its words are read one after the other while the kernel may change them.
    ///
    /// # Panics
    /// If there is no such entry.
    #[must_use]
    pub fn read(&self, index: usize) -> T {
        let mut value = T::zeroed();
        let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut value));
        let first = self.word(index, 0);
        for (word, target) in words.iter_mut().enumerate() {
            // SAFETY: a word of the entry that `first` begins; volatile because the kernel changes it.
            *target = unsafe { first.add(word).read_volatile() };
        }
        value
    }

    /// Replaces one word of an entry.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn write_word(&self, index: usize, word: usize, value: u64) {
        // SAFETY: a valid, aligned word of the mapping; volatile because the kernel reads it meanwhile.
        unsafe { self.word(index, word).write_volatile(value) };
    }

    /// Sets every word of an entry to 0. Only for entries that no program uses.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn zero(&self, index: usize) {
        for word in 0..Self::WORDS {
            // SAFETY: a valid, aligned word of the mapping.
            unsafe { self.word(index, word).write_volatile(0) };
        }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, and nothing uses it any more.
        if let Err(error) = unsafe { munmap(self.words.as_ptr().cast(), self.length) } {
            tracing::warn!(%error, "munmap of a BPF array failed");
        }
    }
}
