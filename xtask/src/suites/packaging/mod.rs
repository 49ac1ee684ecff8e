//! What users install, made and then read by the tools of those for whom it is made: systemd, Debian, man, bash,
//! Kubernetes, the Prometheus Operator, container builders.

mod container;
mod deb;
mod kubernetes;
mod manual;
mod unit;

use crate::packaging;
use anyhow::{Context as _, Result};

/// Makes the packages and checks everything in them.
pub fn run() -> Result<()> {
    let packages = packaging::make()?;
    let program = packages.container.join("sdtrace");
    unit::check(&program).context("the systemd unit")?;
    manual::check_pages(&packages.generated.join("man")).context("manual pages")?;
    manual::check_completions(&packages.generated.join("completions/sdtrace.bash")).context("completions")?;
    deb::check(&packages.deb).context("the Debian package")?;
    kubernetes::check().context("packaging/kubernetes")?;
    container::check(&packages.container).context("the container image")
}
