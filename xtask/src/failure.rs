//! How a task ends when it cannot do what was asked.

use std::fmt;

/// The request cannot be carried out as it stands (a wrong flag, a missing package that only the user can install):
/// exit code 2. Everything else that goes wrong is exit code 1.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The exit code for an error: 2 for [`Usage`] anywhere in its chain, else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(<dyn std::error::Error>::is::<Usage>) {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn usage_is_found_below_context() {
        let error = Err::<(), _>(Usage("install qemu".into()))
            .context("guest")
            .unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("the guest panicked")), 1);
    }
}
