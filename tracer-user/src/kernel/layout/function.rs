//! What became of one function that sdtrace wants to probe on this kernel.

use std::fmt;

use super::ABSENT;
use super::functions::Function;
use crate::kernel::btf::{Btf, Parameter};
use crate::kernel::kallsyms::Symbols;

/// Bytes of one argument register, and of one argument slot on the stack.
const SLOT_BYTES: u32 = 8;

/// Whether a function can be probed, and where its arguments are. Displayed, it is its parameter list or the
/// reason why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionLayout {
    /// It exists under its own name, with every required parameter.
    Resolved {
        /// All its parameters in order; the index is the argument's position.
        parameters: Vec<Parameter>,
        /// Clones of it that exist besides: calls that go to them are not seen by a probe on the function.
        clones: Vec<String>,
    },
    /// The kernel's symbols do not have it: inlined everywhere, configured out, renamed or gone.
    MissingSymbol,
    /// It has a symbol, but no BTF, so the position of its arguments is not known.
    MissingType,
    /// Only clones of it exist, whose arguments lie elsewhere than the source says.
    OptimisedClone {
        /// Their symbols.
        clones: Vec<String>,
    },
    /// Several functions of this name exist, and a probe by name would take any of them.
    SeveralSymbols {
        /// How many.
        count: usize,
    },
    /// It has no parameter of a name that the probe needs.
    ParameterMissing {
        /// The parameter.
        name: &'static str,
        /// The parameters that it has.
        has: Vec<String>,
    },
    /// A parameter takes more than one register, so the position of those after it is not its place in the list.
    ParameterTooWide {
        /// The parameter.
        name: String,
        /// Its size.
        bytes: u32,
    },
    /// Its BTF contradicts itself.
    Unreadable {
        /// What is wrong.
        why: String,
    },
}

impl FunctionLayout {
    pub(super) fn resolve(btf: &Btf<'_>, symbols: Option<&Symbols>, wanted: &'static Function) -> Self {
        let symbol = symbols
            .filter(|symbols| !symbols.is_empty())
            .and_then(|symbols| symbols.get(wanted.name));
        let clones = match symbol {
            None => Vec::new(),
            Some(symbol) => match (symbol.count, symbol.clones.is_empty()) {
                (0, true) => return Self::MissingSymbol,
                (0, false) => {
                    return Self::OptimisedClone {
                        clones: symbol.clones.clone(),
                    };
                }
                (1, _) => symbol.clones.clone(),
                (count, _) => return Self::SeveralSymbols { count },
            },
        };
        let parameters = match btf.function(wanted.name) {
            Ok(Some(parameters)) => parameters,
            Ok(None) => return Self::MissingType,
            Err(error) => {
                return Self::Unreadable {
                    why: error.to_string(),
                };
            }
        };
        if let Some(wide) = parameters.iter().find(|parameter| parameter.size > SLOT_BYTES) {
            return Self::ParameterTooWide {
                name: wide.name.clone(),
                bytes: wide.size,
            };
        }
        let is_missing = |names: &str| {
            parameters
                .iter()
                .all(|parameter| !is_one_of(&parameter.name, names))
        };
        match wanted
            .parameters
            .iter()
            .find(|parameter| parameter.required && is_missing(parameter.name))
        {
            Some(parameter) => Self::ParameterMissing {
                name: parameter.name,
                has: parameters.into_iter().map(|parameter| parameter.name).collect(),
            },
            None => Self::Resolved { parameters, clones },
        }
    }

    /// Number of arguments; [`ABSENT`] if the function cannot be probed.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.parameters()
            .and_then(|parameters| u32::try_from(parameters.len()).ok())
            .unwrap_or(ABSENT)
    }

    /// Position of an argument, counted from 0; [`ABSENT`] if there is none of that name, or if the function cannot
    /// be probed.
    #[must_use]
    pub fn position(&self, parameter: &str) -> u32 {
        self.parameters()
            .and_then(|parameters| {
                parameters
                    .iter()
                    .position(|found| is_one_of(&found.name, parameter))
            })
            .and_then(|position| u32::try_from(position).ok())
            .unwrap_or(ABSENT)
    }

    /// The first parameter that is a struct passed by value. The BPF trampoline of kernels before 6.1 refuses such
    /// functions (720e6a435194 lifted that), so fentry and fexit do not attach there; a kprobe does.
    #[must_use]
    pub fn by_value_parameter(&self) -> Option<&Parameter> {
        self.parameters()?.iter().find(|parameter| parameter.by_value)
    }

    fn parameters(&self) -> Option<&[Parameter]> {
        match self {
            Self::Resolved { parameters, .. } => Some(parameters),
            _ => None,
        }
    }
}

impl fmt::Display for FunctionLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolved { parameters, clones } => {
                let parameters: Vec<_> = parameters.iter().map(shown).collect();
                write!(formatter, "({})", parameters.join(", "))?;
                if !clones.is_empty() {
                    write!(formatter, "; calls to {} are not seen", clones.join(", "))?;
                }
                Ok(())
            }
            Self::MissingSymbol => write!(formatter, "this kernel has no such function"),
            Self::MissingType => write!(formatter, "the kernel's BTF does not describe it"),
            Self::OptimisedClone { clones } => {
                write!(
                    formatter,
                    "the compiler left only {}, with other arguments",
                    clones.join(", ")
                )
            }
            Self::SeveralSymbols { count } => write!(formatter, "{count} functions have this name"),
            Self::ParameterMissing { name, has } => {
                write!(
                    formatter,
                    "it has no parameter `{name}`, only ({})",
                    has.join(", ")
                )
            }
            Self::ParameterTooWide { name, bytes } => {
                write!(
                    formatter,
                    "its parameter `{name}` takes {bytes} bytes, more than one register"
                )
            }
            Self::Unreadable { why } => write!(formatter, "{why}"),
        }
    }
}

/// Whether `name` is one of the alternatives that `|` divides.
fn is_one_of(name: &str, alternatives: &str) -> bool {
    alternatives.split('|').any(|alternative| alternative == name)
}

fn shown(parameter: &Parameter) -> String {
    let by_value = if parameter.by_value { " by value" } else { "" };
    format!("{}{by_value}", parameter.name)
}
