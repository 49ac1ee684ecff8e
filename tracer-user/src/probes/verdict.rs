//! What became of each probe.

use serde::{Deserialize, Serialize};

use crate::kernel::preemption::Preemption;

/// Which entry points are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// fentry and fexit where the kernel lets programs run to their end, kprobe and kretprobe where it may preempt
    /// them; for each probe that cannot be had so, the other.
    #[default]
    Auto,
    /// fentry and fexit, and for each probe that cannot be had so, kprobe and kretprobe.
    Fentry,
    /// kprobe and kretprobe only.
    Kprobe,
}

impl AttachMode {
    /// The mechanisms to try, in order.
    #[must_use]
    pub const fn mechanisms(self, preemption: Preemption) -> &'static [Mechanism] {
        match self {
            Self::Auto if preemption.is_possible() => &[Mechanism::Kprobe, Mechanism::Fentry],
            Self::Auto | Self::Fentry => &[Mechanism::Fentry, Mechanism::Kprobe],
            Self::Kprobe => &[Mechanism::Kprobe],
        }
    }
}

/// How a probe is attached. Tracepoints count as fentry when they are typed by BTF, as kprobe when raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// BPF trampolines: fentry, fexit, `tp_btf`.
    Fentry,
    /// kprobes, kretprobes, raw tracepoints.
    Kprobe,
}

impl Mechanism {
    /// Every mechanism.
    pub const ALL: [Self; 2] = [Self::Fentry, Self::Kprobe];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// What became of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It is attached.
    Attached {
        /// How.
        mechanism: Mechanism,
    },
    /// This kernel does not offer it.
    Unsupported {
        /// Why, in words.
        why: String,
    },
    /// The kernel should offer it, but refused.
    Broken {
        /// What the kernel said.
        why: String,
    },
}

impl Verdict {
    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Attached { .. } => "attached",
            Self::Unsupported { .. } => "unsupported",
            Self::Broken { .. } => "broken",
        }
    }

    /// How the probe is attached, if it is.
    #[must_use]
    pub const fn mechanism(&self) -> Option<Mechanism> {
        match self {
            Self::Attached { mechanism } => Some(*mechanism),
            Self::Unsupported { .. } | Self::Broken { .. } => None,
        }
    }
}

/// One probe with its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeVerdict {
    /// The kernel function or tracepoint.
    pub probe: String,
    /// Whether sdtrace cannot work without it.
    pub required: bool,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Why a mechanism that was tried first could not be had.
    pub fell_back_because: Option<String>,
}
