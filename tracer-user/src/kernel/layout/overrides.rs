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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Layout {
        let btf = include_bytes!("../../../tests/fixtures/kernels/6.12/vmlinux.btf");
        Layout::resolve(btf, None).unwrap()
    }

    #[test]
    fn values_of_both_widths_are_replaced() {
        let mut layout = layout();
        layout
            .apply_overrides(" VMA_FLAGS = 40, ARG_DO_WP_PAGE_VMF=0x3,,VM_SOFTDIRTY_MASK=0x100000000")
            .unwrap();
        assert_eq!(layout.global("VMA_FLAGS"), Some(GlobalValue::U32(40)));
        assert_eq!(layout.global("ARG_DO_WP_PAGE_VMF"), Some(GlobalValue::U32(3)));
        assert_eq!(
            layout.global("VM_SOFTDIRTY_MASK"),
            Some(GlobalValue::U64(1 << 32))
        );
        assert_eq!(layout.global("VMA_MM"), Some(GlobalValue::U32(16)));
    }

    #[test]
    fn each_mistake_is_named_and_changes_nothing() {
        let untouched = layout();
        for (list, complaint) in [
            ("VMA_MM=8,VMA_FLAGS", "`VMA_FLAGS` is not NAME=VALUE"),
            ("VMA_MM=8,VMA_FLAG=40", "`VMA_FLAG`: there is no such value"),
            (
                "VMA_MM=8,VMA_FLAGS=forty",
                "of VMA_FLAGS: `forty` is not a number",
            ),
            ("VMA_MM=8,VMA_FLAGS=", "of VMA_FLAGS: `` is not a number"),
            ("VMA_MM=8,VMA_FLAGS=0x", "of VMA_FLAGS: `0x` is not a number"),
            ("VMA_MM=8,VMA_FLAGS=+1", "of VMA_FLAGS: `+1` is not a number"),
            (
                "VMA_MM=8,VMA_FLAGS=4294967296",
                "of VMA_FLAGS: 4294967296 exceeds 0xffffffff",
            ),
            (
                "VM_READ_MASK=0x10000000000000000",
                "of VM_READ_MASK: 0x10000000000000000 exceeds",
            ),
        ] {
            let mut layout = layout();
            let error = layout.apply_overrides(list).unwrap_err().to_string();
            assert!(error.contains(complaint), "{list}: {error}");
            assert_eq!(layout, untouched, "{list}");
        }
    }

    proptest! {
        #[test]
        fn any_value_that_fits_is_taken_in_both_notations(value in any::<u32>(), wide in any::<u64>(), hex in any::<bool>()) {
            let mut layout = layout();
            let text = if hex {
                format!("VMA_FLAGS={value:#x},VM_READ_MASK={wide:#x}")
            } else {
                format!("VMA_FLAGS={value},VM_READ_MASK={wide}")
            };
            layout.apply_overrides(&text).unwrap();
            prop_assert_eq!(layout.global("VMA_FLAGS"), Some(GlobalValue::U32(value)));
            prop_assert_eq!(layout.global("VM_READ_MASK"), Some(GlobalValue::U64(wide)));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,60}", name in "VMA_FLAGS|VM_READ_MASK|X") {
            let mut layout = layout();
            let before = layout.clone();
            for list in [text.clone(), format!("{name}={text}")] {
                if layout.apply_overrides(&list).is_err() {
                    prop_assert_eq!(&layout, &before);
                }
                layout = before.clone();
            }
        }
    }
}
