//! The closed list of causes, in the words of docs/causes.md.

use std::sync::OnceLock;

use super::model::CauseInfo;
use crate::detectors::Cause;

const TEXT: &str = include_str!("../../../../docs/causes.md");

/// What is said about what nobody knows.
const UNKNOWN: &str = "The page was written and its bit is gone, or its entry is writable without the bit, and no hook saw a \
                       mechanism that is known to do that touch this page in this epoch.";

/// Every cause.
pub fn causes() -> &'static [CauseInfo] {
    static CAUSES: OnceLock<Vec<CauseInfo>> = OnceLock::new();
    CAUSES.get_or_init(|| Cause::ALL.into_iter().map(info).collect())
}

fn info(cause: Cause) -> CauseInfo {
    let section = section(cause.label());
    let paragraph = |title| section.and_then(|section| paragraph(section, title));
    CauseInfo {
        name: cause.label().to_owned(),
        class: cause.class(),
        title: title(cause).to_owned(),
        summary: paragraph("What happens.").unwrap_or_else(|| UNKNOWN.to_owned()),
        kernels: paragraph("Kernels."),
        remedy: paragraph("What to do."),
        link: cause.help(),
    }
}

/// The text below a heading.
fn section(name: &str) -> Option<&'static str> {
    let (_, rest) = TEXT.split_once(&format!("\n### {name}\n"))?;
    Some(rest.split("\n##").next().unwrap_or(rest))
}

/// A paragraph that begins with its title in bold, on one line.
fn paragraph(section: &str, title: &str) -> Option<String> {
    let (_, rest) = section.split_once(&format!("- **{title}** "))?;
    let text = rest.split("\n- **").next().unwrap_or(rest);
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

const fn title(cause: Cause) -> &'static str {
    match cause {
        Cause::SharedReadFault => "Shared memory mapped writable by a read fault",
        Cause::MprotectUpgrade => "mprotect makes pages writable without a fault",
        Cause::VmaMerge => "A new mapping merged into an armed one",
        Cause::MigrationRace => "Page migration during the clear",
        Cause::MigrationRaceThp => "Migration of a huge page during the clear",
        Cause::Pfnmap => "Device memory without struct pages",
        Cause::KsmMerge => "Page merged by KSM",
        Cause::MremapTableMove => "Page table moved by mremap",
        Cause::SharedZap => "Shared page unmapped and mapped again",
        Cause::SharedThpSplit => "Shared huge page split",
        Cause::SharedCollapse => "Shared memory collapsed into a huge page",
        Cause::ThpZeroSubpages => "Zero-filled parts of a split huge page",
        Cause::Uprobe => "Breakpoint written by a uprobe",
        Cause::Hugetlb => "Memory of hugetlbfs",
        Cause::PinnedBuffer => "Pinned buffer written by a device or the kernel",
        Cause::OtherMapper => "Shared memory written through another process",
        Cause::FileWrite => "Mapped file changed by write(2)",
        Cause::AioRing => "Completion ring of asynchronous I/O",
        Cause::MremapGrow => "Mapping grown by mremap",
        Cause::Discard => "Content thrown away by the process itself",
        Cause::UserfaultfdZeropage => "Zero page placed by userfaultfd",
        Cause::UserfaultfdMove => "Pages moved by userfaultfd",
        Cause::ForeignClear => "Soft-dirty cleared by another tracker",
        Cause::ReadClearGap => "Written between the last read and the clear",
        Cause::NoSupport => "Kernel without soft-dirty",
        Cause::Unknown => "Mechanism unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_words() {
        for cause in causes() {
            let known = cause.name != "unknown_cause";
            assert!(
                !cause.summary.is_empty() && !cause.summary.contains('\n'),
                "{cause:?}"
            );
            assert_eq!(
                (cause.kernels.is_some(), cause.remedy.is_some()),
                (known, known),
                "{cause:?}"
            );
        }
        let ksm = causes().iter().find(|cause| cause.name == "ksm-merge").unwrap();
        assert!(!ksm.summary.contains("Kernels."), "{ksm:?}");
    }

    #[test]
    fn titles_are_unique() {
        let mut titles: Vec<_> = causes().iter().map(|cause| &cause.title).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), Cause::ALL.len());
    }
}
