//! The configuration file: TOML, one key a setting.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use toml::de::{DeInteger, DeTable, DeValue};

use crate::cli::UsageError;

/// One key of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// Line of the key, from 1.
    pub(super) line: usize,
    pub(super) key: String,
    /// Values, as one would type them.
    pub(super) values: Vec<String>,
    /// Written as a list or a table.
    pub(super) list: bool,
    /// Written as `true` or `false`.
    pub(super) boolean: bool,
}

impl Entry {
    /// Where it stands, for messages.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.line)
    }
}

/// Reads the file.
pub(super) fn entries(path: &Path, text: &str) -> Result<Vec<Entry>, UsageError> {
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        UsageError(format!(
            "{}:{line}: this is not TOML: {}; correct the line, `sdtrace config example` shows how a file looks",
            path.display(),
            error.message().lines().collect::<Vec<_>>().join(" ")
        ))
    })?;
    document
        .into_inner()
        .iter()
        .map(|(key, value)| {
            let mut entry = Entry {
                path: path.to_owned(),
                line: line_of(text, key.span().start),
                key: key.get_ref().to_string(),
                values: Vec::new(),
                list: false,
                boolean: false,
            };
            take(&mut entry, value.get_ref())
                .map_err(|why| UsageError(format!("{}: {}: {why}", entry.place(), entry.key)))?;
            Ok(entry)
        })
        .collect()
}

fn take(entry: &mut Entry, value: &DeValue<'_>) -> Result<(), &'static str> {
    match value {
        DeValue::Array(items) => {
            entry.list = true;
            for item in items {
                entry.values.push(single(item.get_ref())?.into_owned());
            }
        }
        // A table is a list of `key=value`, as labels are typed.
        DeValue::Table(table) => {
            entry.list = true;
            for (key, value) in table {
                entry
                    .values
                    .push(format!("{}={}", key.get_ref(), single(value.get_ref())?));
            }
        }
        DeValue::Boolean(value) => {
            entry.boolean = true;
            entry.values.push(value.to_string());
        }
        value => entry.values.push(single(value)?.into_owned()),
    }
    Ok(())
}

/// A text or a number, as one would type it.
fn single<'v>(value: &'v DeValue<'_>) -> Result<Cow<'v, str>, &'static str> {
    match value {
        DeValue::String(text) => Ok(Cow::Borrowed(text)),
        DeValue::Integer(integer) => decimal(integer).ok_or("the number is too large; write it in quotes"),
        DeValue::Float(float) => Ok(Cow::Borrowed(float.as_str())),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err("only texts in quotes and numbers can stand here")
        }
    }
}

fn decimal<'v>(integer: &'v DeInteger<'_>) -> Option<Cow<'v, str>> {
    if integer.radix() == 10 {
        return Some(Cow::Borrowed(integer.as_str()));
    }
    let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
    Some(Cow::Owned(value.to_string()))
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        entries(Path::new("f.toml"), text).map_err(|error| error.0)
    }

    #[test]
    fn every_kind_of_value_becomes_what_one_would_type() {
        let text = "# a comment\nlisten = \"[::1]:9\"\nfault-return = true\nmax-vmas = 0x1000\nkeep-vmas = 2_048\n\
                    pid = [1, 2]\n\n[label]\ncluster = \"a\"\nrack = 7\n";
        let read = read(text).unwrap();
        let found = |key: &str| {
            let entry = read.iter().find(|entry| entry.key == key).unwrap();
            (entry.line, entry.values.join(" "), entry.list, entry.boolean)
        };
        assert_eq!(found("listen"), (2, "[::1]:9".to_owned(), false, false));
        assert_eq!(found("fault-return"), (3, "true".to_owned(), false, true));
        assert_eq!(found("max-vmas"), (4, "4096".to_owned(), false, false));
        assert_eq!(found("keep-vmas"), (5, "2048".to_owned(), false, false));
        assert_eq!(found("pid"), (6, "1 2".to_owned(), true, false));
        assert_eq!(found("label"), (8, "cluster=a rack=7".to_owned(), true, false));
    }

    #[test]
    fn what_is_no_toml_is_named_with_its_line() {
        for (text, expected) in [
            ("listen = \"a\"\nattach = auto\n", "f.toml:2: this is not TOML: "),
            (
                "attach = \"auto\"\n\nattach = \"kprobe\"\n",
                "f.toml:3: this is not TOML: duplicate key",
            ),
            ("pid = [[1]]\n", "f.toml:1: pid: only texts"),
            ("listen = 2020-01-01\n", "f.toml:1: listen: only texts"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
