//! Why sdtrace cannot start.

use std::io;

use thiserror::Error;

use super::object;
use super::verdict::{ProbeVerdict, Verdict};
use crate::kernel::layout::{LayoutError, OverrideError};

/// Why sdtrace cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel was built without `CONFIG_DEBUG_INFO_BTF`, or hides it.
    #[error(
        "the kernel's type information {path} cannot be read ({0}); sdtrace needs a kernel with \
         CONFIG_DEBUG_INFO_BTF=y",
        path = object::BTF_PATH
    )]
    NoBtf(#[source] io::Error),
    /// The kernel's structures are not as sdtrace knows them.
    #[error("{0}")]
    Layout(#[source] LayoutError),
    /// The test hook was misused.
    #[error("{name}: {0}", name = object::LAYOUT_OVERRIDE)]
    Override(#[source] OverrideError),
    /// The kernel refused the eBPF object.
    #[error("the kernel refuses sdtrace's eBPF object: {}", chain(.0.as_ref()))]
    Load(#[source] Box<aya::EbpfError>),
    /// A probe that sdtrace cannot work without could not be attached.
    #[error("{}", required(.0))]
    Probes(Vec<ProbeVerdict>),
    /// What the programs read is not what is there.
    #[error(
        "the self-test failed, sdtrace would misread this kernel: {0:#}; please report it with the output of \
         `uname -a` and `sdtrace check --json`"
    )]
    SelfTest(anyhow::Error),
    /// A filter cannot be used.
    #[error("{0}")]
    Filter(String),
    /// Something else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn required(verdicts: &[ProbeVerdict]) -> String {
    let missing: Vec<String> = verdicts
        .iter()
        .filter(|verdict| verdict.required)
        .filter_map(|verdict| match &verdict.verdict {
            Verdict::Attached { .. } => None,
            Verdict::Unsupported { why } | Verdict::Broken { why } => {
                Some(format!("{}: {why}", verdict.probe))
            }
        })
        .collect();
    format!(
        "probes that sdtrace needs cannot be attached; {}",
        missing.join("; ")
    )
}
