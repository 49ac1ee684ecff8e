//! The kernel's symbols, as `/proc/kallsyms` lists them: which of the functions that sdtrace wants exist under
//! their own name, and which only as a clone that the compiler made.

use std::collections::HashMap;
use std::io::{self, BufRead};

use thiserror::Error;

/// Why the symbol list could not be used.
#[derive(Debug, Error)]
pub enum KallsymsError {
    /// It could not be read to its end.
    #[error("the kernel's symbol list could not be read: {0}")]
    Read(#[from] io::Error),
    /// A line is not `address type name`.
    #[error("line {number} of the kernel's symbol list is not `address type name`")]
    Line {
        /// Counted from 1.
        number: usize,
    },
}

/// What the symbol list says about one wanted function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbol {
    /// How many functions of exactly this name the kernel proper has; a kprobe by name wants one.
    pub count: usize,
    /// Address of the first of them; `None` if there is none or addresses are hidden.
    pub address: Option<u64>,
    /// Names of the clones: `name.isra.0`, `name.constprop.0`, `name.part.0`, … A probe on the name does not see
    /// calls that go to a clone. `name.cold` is not one: it is the unlikely half of the function itself.
    pub clones: Vec<String>,
}

/// The wanted functions of a symbol list.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    found: HashMap<String, Symbol>,
    variables: HashMap<String, Option<u64>>,
    functions_seen: usize,
    addresses_seen: bool,
}

impl Symbols {
    /// Reads a symbol list and keeps the functions of the kernel proper (not of modules) that have one of the
    /// `wanted` names, or are clones of one, and the addresses of the wanted `variables`.
    ///
    /// # Errors
    /// If reading fails, or at the first line that is not a symbol.
    pub fn parse<'n>(
        mut reader: impl BufRead,
        wanted: impl IntoIterator<Item = &'n str>,
        variables: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, KallsymsError> {
        let mut symbols = Self {
            found: wanted
                .into_iter()
                .map(|name| (name.to_owned(), Symbol::default()))
                .collect(),
            variables: variables
                .into_iter()
                .map(|name| (name.to_owned(), None))
                .collect(),
            ..Self::default()
        };
        let mut line = Vec::with_capacity(256);
        for number in 1.. {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            symbols
                .take_line(line.trim_ascii_end())
                .ok_or(KallsymsError::Line { number })?;
        }
        Ok(symbols)
    }

    /// What is known about a wanted function; `None` if it was not among the wanted names.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Symbol> {
        self.found.get(name)
    }

    /// The address of a wanted variable; `None` if there is none, or if addresses are hidden.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<u64> {
        self.variables.get(name).copied().flatten()
    }

    /// Whether the kernel showed every address as zero, as it does to readers without `CAP_SYSLOG`
    /// (`kernel.kptr_restrict`). Judged by functions alone: per-CPU variables may really begin at zero.
    #[must_use]
    pub fn addresses_hidden(&self) -> bool {
        self.functions_seen > 0 && !self.addresses_seen
    }

    /// Whether the list holds any function at all; an empty one proves nothing about what the kernel has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.functions_seen == 0
    }

    fn take_line(&mut self, line: &[u8]) -> Option<()> {
        let mut fields = line
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty());
        let (address, class, name) = (fields.next()?, fields.next()?, fields.next()?);
        let &[class] = class else { return None };
        if !address.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let is_of_module = fields.next().is_some();
        // Of any class: what is read-only after the start is listed as text by newer kernels.
        if !is_of_module
            && let Some(variable) = std::str::from_utf8(name)
                .ok()
                .and_then(|name| self.variables.get_mut(name))
        {
            let address = u64::from_str_radix(std::str::from_utf8(address).ok()?, 16).ok()?;
            *variable = Some(address).filter(|&address| address != 0);
        }
        if !matches!(class, b't' | b'T' | b'w' | b'W') || is_of_module {
            return Some(());
        }
        let shown = address.iter().any(|&digit| digit != b'0');
        self.functions_seen += 1;
        self.addresses_seen |= shown;
        let stem = name.iter().position(|&byte| byte == b'.').unwrap_or(name.len());
        let Some(symbol) = std::str::from_utf8(&name[..stem])
            .ok()
            .and_then(|stem| self.found.get_mut(stem))
        else {
            return Some(());
        };
        let name = std::str::from_utf8(name).ok()?;
        if stem == name.len() {
            symbol.count += 1;
            if shown && symbol.address.is_none() {
                symbol.address = Some(u64::from_str_radix(std::str::from_utf8(address).ok()?, 16).ok()?);
            }
        } else if !name[stem..].split('.').any(|part| part == "cold") {
            symbol.clones.push(name.to_owned());
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff815fb320 t do_wp_page
ffffffff815fb900 t do_wp_page.cold
ffffffff8160b460 T exit_mmap
ffffffff8160b4a0 t exit_mmap.part.0
ffffffff8160f230 t mprotect_fixup.isra.0
ffffffff8160f2a0 t mprotect_fixup.isra.0.cold
ffffffff81697ba0 d clear_refs_write
ffffffffc0001000 t pagemap_read\t[some_module]
ffffffff81700000 t twice
ffffffff81700040 t twice
";

    const WANTED: [&str; 7] = [
        "do_wp_page",
        "exit_mmap",
        "mprotect_fixup",
        "clear_refs_write",
        "pagemap_read",
        "twice",
        "begin_new_exec",
    ];

    const VARIABLES: [&str; 3] = ["page_offset_base", "huge_zero_pfn", "sme_me_mask"];

    fn parse(text: &str) -> Symbols {
        Symbols::parse(text.as_bytes(), WANTED, VARIABLES).unwrap()
    }

    #[test]
    fn a_function_under_its_own_name_has_an_address_and_its_cold_half_is_no_clone() {
        let symbols = parse(LIST);
        let expected = Symbol {
            count: 1,
            address: Some(0xffff_ffff_815f_b320),
            clones: vec![],
        };
        assert_eq!(symbols.get("do_wp_page"), Some(&expected));
        assert!(!symbols.addresses_hidden());
    }

    #[test]
    fn clones_are_named_whether_or_not_the_function_itself_remains() {
        let symbols = parse(LIST);
        let partly = symbols.get("exit_mmap").unwrap();
        assert_eq!(
            (partly.count, partly.clones.as_slice()),
            (1, &["exit_mmap.part.0".to_owned()][..])
        );
        let only_clone = symbols.get("mprotect_fixup").unwrap();
        assert_eq!(
            (only_clone.count, only_clone.clones.as_slice()),
            (0, &["mprotect_fixup.isra.0".to_owned()][..])
        );
    }

    #[test]
    fn variables_have_addresses_whatever_their_class_and_only_of_the_kernel_proper() {
        let symbols = parse(
            "ffffffff83000000 D page_offset_base\nffffffff83000008 T huge_zero_pfn\n\
             ffffffffc0000000 d sme_me_mask\t[some_module]\n",
        );
        assert_eq!(symbols.variable("page_offset_base"), Some(0xffff_ffff_8300_0000));
        assert_eq!(symbols.variable("huge_zero_pfn"), Some(0xffff_ffff_8300_0008));
        assert_eq!(symbols.variable("sme_me_mask"), None);
        assert_eq!(
            parse("0000000000000000 D page_offset_base\n").variable("page_offset_base"),
            None
        );
    }

    #[test]
    fn data_and_modules_do_not_count_and_duplicates_do() {
        let symbols = parse(LIST);
        for absent in ["clear_refs_write", "pagemap_read", "begin_new_exec"] {
            assert_eq!(symbols.get(absent), Some(&Symbol::default()), "{absent}");
        }
        assert_eq!(symbols.get("twice").unwrap().count, 2);
        assert_eq!(symbols.get("never_asked_for"), None);
    }

    #[test]
    fn zeroed_addresses_are_recognised_and_names_still_count() {
        let hidden = parse("0000000000000000 A fixed_percpu_data\n0000000000000000 t do_wp_page\n");
        assert!(hidden.addresses_hidden());
        assert_eq!(
            hidden.get("do_wp_page"),
            Some(&Symbol {
                count: 1,
                address: None,
                clones: vec![]
            })
        );
        let empty = parse("");
        assert!(empty.is_empty() && !empty.addresses_hidden());
    }

    #[test]
    fn a_line_that_is_no_symbol_is_named() {
        for bad in [
            "ffffffff815fb320 t",
            "ffffffff815fb320 tt do_wp_page",
            "not_an_address t do_wp_page",
            "",
        ] {
            let text = format!("ffffffff815fb320 t do_wp_page\n{bad}\n");
            let error = Symbols::parse(text.as_bytes(), WANTED, VARIABLES).unwrap_err();
            assert!(
                matches!(error, KallsymsError::Line { number: 2 }),
                "{bad}: {error}"
            );
        }
    }
}
