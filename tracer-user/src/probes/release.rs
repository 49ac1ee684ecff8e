//! Giving rows and records of pages back by a program instead of bpf(2), which would keep kprobe programs from running on
//! this CPU meanwhile; see `tracer-ebpf/src/release.rs`.

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use rustix::io::Errno;
use tracer_common::pages::ChunkKey;
use tracer_common::release::{RETIRE_CHUNK, RETIRE_ROW, RETURN_CHUNK, RETURN_ROW};
use tracer_common::table::VmaKey;

/// The program's name in the object.
const PROGRAM: &str = "release";

/// Loads the program. Nothing is attached: it runs when it is asked to.
///
/// # Errors
/// If the kernel refuses it.
pub fn load(object: &mut Ebpf) -> Result<()> {
    let program: &mut RawTracePoint = object
        .program_mut(PROGRAM)
        .context("the object has no program to give rows back")?
        .try_into()?;
    program
        .load()
        .context("the program that gives rows back cannot be loaded")
}

/// The loaded program.
#[derive(Clone, Copy)]
pub struct Release<'object>(&'object RawTracePoint);

impl<'object> Release<'object> {
    /// Finds it in the object.
    ///
    /// # Errors
    /// If it is not there.
    pub fn of(object: &'object Ebpf) -> Result<Self> {
        let program = object
            .program(PROGRAM)
            .context("the object has no program to give rows back")?;
        Ok(Self(program.try_into()?))
    }

    /// Takes a row out of the index; a key that is not there is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn retire_row(self, key: &VmaKey) -> Result<()> {
        self.retire(RETIRE_ROW, [key.birth, key.start, key.flags, key.page_prot])
            .context("a row cannot be taken out of the index")
    }

    /// Puts a row back onto the stack of free ones.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn return_row(self, number: u32) -> Result<()> {
        self.run(RETURN_ROW, [number.into(), 0, 0, 0])
            .context("a row cannot be given back")
    }

    /// Takes a record of pages out of the index; a key that is not there is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn retire_chunk(self, key: &ChunkKey) -> Result<()> {
        self.retire(RETIRE_CHUNK, [key.birth, key.number, 0, 0])
            .context("a page record cannot be taken out of the index")
    }

    /// Puts a record of pages back onto the stack of free ones.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn return_chunk(self, number: u32) -> Result<()> {
        self.run(RETURN_CHUNK, [number.into(), 0, 0, 0])
            .context("a page record cannot be given back")
    }

    fn retire(self, task: u64, key: [u64; 4]) -> Result<()> {
        match self.run(task, key) {
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    fn run(self, task: u64, words: [u64; 4]) -> Result<()> {
        let mut arguments = RawTracePointRunOptions::default();
        let [first, second, third, fourth] = words;
        for (to, value) in arguments
            .args
            .iter_mut()
            .zip([task, first, second, third, fourth])
        {
            *to = value;
        }
        let answer = self.0.test_run(arguments)?.return_value.cast_signed();
        match answer {
            0 => Ok(()),
            error if (-4095..0).contains(&error) => Err(Errno::from_raw_os_error(-error).into()),
            other => bail!("the program answered {other}"),
        }
    }
}
