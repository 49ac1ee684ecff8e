//! How much the ledger keeps. What is given up stays in the sums, and a counter says how much it was.
//!
//! Live address spaces and rows need no limit here: the kernel's map and table bound them.

use thiserror::Error;

/// Bounds of the ledger's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Ended address spaces that are kept.
    pub ended_address_spaces: usize,
    /// Closed epochs that are kept of each address space, besides the open one.
    pub closed_epochs: usize,
    /// VMA states that are kept over all epochs; about 200 bytes each.
    pub vmas: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ended_address_spaces: 256,
            closed_epochs: 16,
            vmas: 131_072,
        }
    }
}

/// A limit out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{name} must lie between {least} and {most}, not {given}")]
pub struct LimitError {
    name: &'static str,
    least: usize,
    most: usize,
    given: usize,
}

impl Limits {
    /// The limits, if each lies in its range.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn checked(self) -> Result<Self, LimitError> {
        let check = |name, given, least, most| {
            if (least..=most).contains(&given) {
                Ok(())
            } else {
                Err(LimitError {
                    name,
                    least,
                    most,
                    given,
                })
            }
        };
        check("ended address spaces", self.ended_address_spaces, 0, 65_536)?;
        // Two closed epochs can still grow.
        check("closed epochs", self.closed_epochs, 2, 4_096)?;
        check("VMA states", self.vmas, 1_024, 4_194_304)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_allowed_and_a_limit_out_of_range_is_named() {
        assert_eq!(Limits::default().checked(), Ok(Limits::default()));
        let error = Limits {
            closed_epochs: 1,
            ..Limits::default()
        }
        .checked()
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "closed epochs must lie between 2 and 4096, not 1"
        );
    }
}
