//! Replacing single values of a layout on purpose, so that tests can show that a wrong one is noticed at start.

use thiserror::Error;

use super::{GlobalValue, Layout};

/// Why an override was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OverrideError {
    /// It is not `NAME=VALUE`.
    #[error("layout override `{0}` is not NAME=VALUE, as in VMA_FLAGS=40")]
    Form(String),
    /// There is no global of that name.
    #[error("layout override `{0}`: there is no such value; names are as in VMA_FLAGS or ARG_DO_WP_PAGE_VMF")]
    Name(String),
    /// The value is not a number.
    #[error("layout override of {name}: `{value}` is not a number; write it as 40 or 0x28")]
    Number {
        /// The global.
        name: &'static str,
        /// What was given.
        value: String,
    },
    /// The value is a number that the global cannot hold.
    #[error("layout override of {name}: {value} exceeds {limit:#x}")]
    Range {
        /// The global.
        name: &'static str,
        /// What was given.
        value: String,
        /// The largest value it can hold.
        limit: u64,
    },
}

impl Layout {
    /// Replaces one value: `NAME=VALUE`, decimal or with `0x` in hexadecimal.
    ///
    /// # Errors
    /// If the form, the name or the number is wrong; the layout is then unchanged.
    pub fn apply_override(&mut self, text: &str) -> Result<(), OverrideError> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| OverrideError::Form(text.to_owned()))?;
        let (name, value) = (name.trim(), value.trim());
        let global = self
            .globals
            .iter_mut()
            .find(|global| global.name == name)
            .ok_or_else(|| OverrideError::Name(name.to_owned()))?;
        let name = global.name;
        let (digits, radix) = match value.strip_prefix("0x") {
            Some(digits) => (digits, 16),
            None => (value, 10),
        };
        // from_str_radix would take a sign.
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
            return Err(OverrideError::Number {
                name,
                value: value.to_owned(),
            });
        }
        let number = u64::from_str_radix(digits, radix).ok();
        let out_of_range = |limit| OverrideError::Range {
            name,
            value: value.to_owned(),
            limit,
        };
        match &mut global.value {
            GlobalValue::U32(old) => {
                let new = number.and_then(|number| u32::try_from(number).ok());
                *old = new.ok_or_else(|| out_of_range(u32::MAX.into()))?;
            }
            GlobalValue::U64(old) => *old = number.ok_or_else(|| out_of_range(u64::MAX))?,
        }
        Ok(())
    }

    /// Replaces several values, separated by commas. Empty items are skipped, so an empty text changes nothing.
    ///
    /// # Errors
    /// At the first item that is refused; the layout is then unchanged.
    pub fn apply_overrides(&mut self, list: &str) -> Result<(), OverrideError> {
        let mut changed = self.clone();
        for item in list.split(',').filter(|item| !item.trim().is_empty()) {
            changed.apply_override(item)?;
        }
        *self = changed;
        Ok(())
    }
}
