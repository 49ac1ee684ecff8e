//! The layout of the running kernel as the eBPF programs need it: where struct members lie, what enumerators are
//! worth, at which position a probed function has its arguments. Each value becomes one read-only global of the
//! eBPF object, under the same name. What is needed stands in one place: the tables in `table.rs`.

mod function;
mod functions;
mod overrides;
mod table;

use std::fmt;

use thiserror::Error;

use super::btf::{Btf, BtfError};
use super::kallsyms::Symbols;
pub use function::FunctionLayout;
use functions::FUNCTIONS;
pub use overrides::OverrideError;
use table::{Entry, Fallback, GLOBALS, Kind};

/// Value of a `u32` global whose member, or of a position whose parameter, this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Why this kernel's layout could not be resolved. Without it sdtrace cannot read the kernel's structs, so there
/// is nothing to fall back to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The BTF itself cannot be read, or contradicts itself.
    #[error("the kernel's type information (BTF) cannot be used: {0}")]
    Btf(#[from] BtfError),
    /// A struct, member or enumerator is not there under any of the names that sdtrace knows.
    #[error(
        "this kernel has no {what} (looked for {}): its layout is newer or older than this version of sdtrace \
         knows; please report it with the output of `uname -a`",
        tried.join(", ")
    )]
    Missing {
        /// The name used by most kernels.
        what: &'static str,
        /// Every name looked for, in order.
        tried: Vec<&'static str>,
    },
    /// Something is there, but not of the size that the programs read, or not of a value they can hold.
    #[error(
        "{what} of this kernel is {found} where sdtrace expects {expected}; please report it with the output of \
         `uname -a`"
    )]
    Unexpected {
        /// What was looked up.
        what: &'static str,
        /// What the programs can work with.
        expected: String,
        /// What the BTF says.
        found: String,
    },
}

/// One value for the eBPF object. The two widths are two types there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobalValue {
    /// For an `aya_ebpf::Global<u32>`: offsets, sizes, positions, fault flags.
    U32(u32),
    /// For an `aya_ebpf::Global<u64>`: VMA flags.
    U64(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Global {
    name: &'static str,
    value: GlobalValue,
}

/// The width of a name column that holds every name of the tables.
const NAME_COLUMN: usize = 40;

/// Everything that the eBPF programs need to know about the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    globals: Vec<Global>,
    functions: Vec<(&'static str, FunctionLayout)>,
}

impl Layout {
    /// Resolves the layout from the kernel's BTF, and from its symbols if they could be read. Without symbols a
    /// function counts as present if the BTF has it.
    ///
    /// # Errors
    /// If the BTF cannot be used or lacks something that the programs cannot do without. A missing *function* is
    /// not an error: its probe alone is unsupported, see [`Layout::function`].
    pub fn resolve(btf: &[u8], symbols: Option<&Symbols>) -> Result<Self, LayoutError> {
        let btf = Btf::parse(btf, wanted_names())?;
        let mut layout = Self {
            globals: Vec::new(),
            functions: Vec::new(),
        };
        for entry in GLOBALS {
            layout.globals.push(Global {
                name: entry.name,
                value: resolve_entry(&btf, symbols, entry)?,
            });
        }
        for function in FUNCTIONS {
            let resolved = FunctionLayout::resolve(&btf, symbols, function);
            layout.globals.push(Global {
                name: function.count_global,
                value: GlobalValue::U32(resolved.count()),
            });
            for parameter in function.parameters {
                let position = resolved.position(parameter.name);
                layout.globals.push(Global {
                    name: parameter.global,
                    value: GlobalValue::U32(position),
                });
            }
            layout.functions.push((function.name, resolved));
        }
        Ok(layout)
    }

    /// The functions whose symbols [`Layout::resolve`] wants, for [`Symbols::parse`].
    pub fn wanted_functions() -> impl Iterator<Item = &'static str> {
        FUNCTIONS.iter().map(|function| function.name)
    }

    /// The variables whose addresses [`Layout::resolve`] wants, for [`Symbols::parse`].
    pub fn wanted_variables() -> impl Iterator<Item = &'static str> {
        GLOBALS
            .iter()
            .filter(|entry| matches!(entry.kind, Kind::Address))
            .flat_map(|entry| entry.sources)
            .copied()
    }

    /// Every global of the eBPF object that is overridden at load, with its value for this kernel.
    pub fn globals(&self) -> impl Iterator<Item = (&'static str, &GlobalValue)> {
        self.globals.iter().map(|global| (global.name, &global.value))
    }

    /// The value of one global; `None` if there is none of that name.
    #[must_use]
    pub fn global(&self, name: &str) -> Option<GlobalValue> {
        self.globals
            .iter()
            .find(|global| global.name == name)
            .map(|global| global.value)
    }

    /// What became of each function that sdtrace probes, in the order of the table.
    pub fn functions(&self) -> impl Iterator<Item = (&'static str, &FunctionLayout)> {
        self.functions.iter().map(|(name, function)| (*name, function))
    }

    /// What became of one function that sdtrace probes; `None` if it is not one of them.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&FunctionLayout> {
        self.functions
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, function)| function)
    }
}

/// A table for people: one line a global, one a function.
impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.globals() {
            match *value {
                GlobalValue::U32(ABSENT) => writeln!(formatter, "{name:NAME_COLUMN$} absent")?,
                GlobalValue::U32(value) => writeln!(formatter, "{name:NAME_COLUMN$} {value}")?,
                GlobalValue::U64(value) => writeln!(formatter, "{name:NAME_COLUMN$} {value:#x}")?,
            }
        }
        for (name, function) in self.functions() {
            writeln!(formatter, "{name:NAME_COLUMN$} {function}")?;
        }
        Ok(())
    }
}

/// Every member path, struct and enumerator that the tables name.
fn sources() -> impl Iterator<Item = &'static str> {
    GLOBALS
        .iter()
        .filter(|entry| !matches!(entry.kind, Kind::Address))
        .flat_map(|entry| entry.sources)
        .copied()
}

/// Every name that has to be found while the BTF is gone over.
pub(super) fn wanted_names() -> impl Iterator<Item = &'static str> {
    let of_globals =
        sources().map(|source| source.split_once('.').map_or(source, |(aggregate, _)| aggregate));
    of_globals.chain(Layout::wanted_functions())
}

/// Every struct and member path that is looked at.
#[cfg(any(test, feature = "fixtures"))]
pub(super) fn wanted_paths() -> impl Iterator<Item = &'static str> {
    GLOBALS
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Member { .. } | Kind::StructSize))
        .flat_map(|entry| entry.sources)
        .copied()
}

fn resolve_entry(
    btf: &Btf<'_>,
    symbols: Option<&Symbols>,
    entry: &'static Entry,
) -> Result<GlobalValue, LayoutError> {
    let found = match entry.kind {
        Kind::Member { size } => find_member(btf, entry.sources, size)?,
        Kind::StructSize => find_first(entry.sources, |name| Ok(btf.struct_size(name)?.map(u64::from)))?,
        Kind::Mask => find_mask(btf, entry.sources)?,
        Kind::Bit => find_first(entry.sources, |name| find_bit(btf, name))?,
        Kind::Address => entry.sources.iter().find_map(|name| symbols?.variable(name)),
    };
    let what = entry.sources[0];
    let value = match (found, entry.fallback, entry.kind) {
        (Some(value), ..) | (None, Fallback::Value(value), _) => value,
        (None, Fallback::Refuse, Kind::Mask) => {
            // A mask needs all its enumerators, so only those that are missing are of interest.
            let is_missing = |name: &&str| btf.enumerator(name) == Ok(None);
            let tried: Vec<_> = entry.sources.iter().copied().filter(is_missing).collect();
            return Err(LayoutError::Missing {
                what: tried.first().copied().unwrap_or(what),
                tried,
            });
        }
        (None, Fallback::Refuse, _) => {
            return Err(LayoutError::Missing {
                what,
                tried: entry.sources.to_vec(),
            });
        }
    };
    if entry.wide {
        return Ok(GlobalValue::U64(value));
    }
    u32::try_from(value)
        .map(GlobalValue::U32)
        .map_err(|_| LayoutError::Unexpected {
            what,
            expected: "a value of 32 bits".to_owned(),
            found: format!("{value:#x}"),
        })
}

fn find_first(
    names: &[&'static str],
    mut find: impl FnMut(&'static str) -> Result<Option<u64>, LayoutError>,
) -> Result<Option<u64>, LayoutError> {
    names.iter().find_map(|name| find(name).transpose()).transpose()
}

fn find_member(btf: &Btf<'_>, paths: &[&'static str], size: Option<u32>) -> Result<Option<u64>, LayoutError> {
    find_first(paths, |what| match (btf.member(what)?, size) {
        (Some(member), Some(expected)) if member.size != expected => Err(LayoutError::Unexpected {
            what,
            expected: format!("{expected} bytes"),
            found: format!("{} bytes", member.size),
        }),
        (member, _) => Ok(member.map(|member| member.offset.into())),
    })
}

/// The enumerators' values, or-ed; `None` if one of them does not exist.
fn find_mask(btf: &Btf<'_>, enumerators: &[&'static str]) -> Result<Option<u64>, LayoutError> {
    let mut mask = 0;
    for what in enumerators {
        let Some(value) = btf.enumerator(what)? else {
            return Ok(None);
        };
        mask |= u64::try_from(value).map_err(|_| LayoutError::Unexpected {
            what,
            expected: "a mask of at most 64 bits".to_owned(),
            found: value.to_string(),
        })?;
    }
    Ok(Some(mask))
}

/// The mask that has the bit set whose number the enumerator gives.
fn find_bit(btf: &Btf<'_>, what: &'static str) -> Result<Option<u64>, LayoutError> {
    let Some(number) = btf.enumerator(what)? else {
        return Ok(None);
    };
    let mask = u32::try_from(number)
        .ok()
        .and_then(|number| 1_u64.checked_shl(number));
    mask.map(Some).ok_or_else(|| LayoutError::Unexpected {
        what,
        expected: "a bit number from 0 to 63".to_owned(),
        found: number.to_string(),
    })
}
