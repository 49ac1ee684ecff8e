//! Programs that only count: what the benches measure against.

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::Program;
use aya::{Btf, Ebpf};

use super::{ProbeOptions, object};

/// A program that only counts, attached to one function. Dropping it detaches it.
pub struct Bare {
    object: Ebpf,
    program: String,
    counts: PerCpuArray<MapData, u64>,
}

impl Bare {
    /// Attaches `bare_kprobe` or `bare_fexit` to `function`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(program: &str, function: &str) -> Result<Self> {
        let layout = object::resolve_layout()?;
        let mut object = object::load(&layout, &ProbeOptions::default(), object::possible_cpus()?)?;
        match object
            .program_mut(program)
            .with_context(|| format!("no program {program}"))?
        {
            Program::KProbe(kprobe) => {
                kprobe.load()?;
                kprobe.attach(function, 0)?;
            }
            Program::FExit(fexit) => {
                fexit.load(function, &Btf::from_sys_fs()?)?;
                fexit.attach()?;
            }
            _ => anyhow::bail!("{program} does not only count"),
        }
        let counts = PerCpuArray::try_from(object.take_map("BARE").context("no map BARE")?)?;
        Ok(Self {
            object,
            program: program.to_owned(),
            counts,
        })
    }

    /// How often it ran, by bpf(2).
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn count(&self) -> Result<u64> {
        Ok(self.counts.get(&0, 0)?.iter().sum())
    }

    /// How often the kernel says that it skipped it; `None` if it does not say.
    #[must_use]
    pub fn misses(&self) -> Option<u64> {
        object::fdinfo(self.object.program(&self.program)?, "recursion_misses")
    }
}
