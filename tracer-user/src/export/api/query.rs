//! Parameters of the JSON API. Whatever the schema allows is accepted, everything else gets an error that says what to
//! give instead.

use std::fmt;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::detectors::{Cause, Evidence, State, Verdict};

/// Items of a page, if the request does not say.
const USUAL: u64 = 100;
/// The longest name of a process: `TASK_COMM_LEN` less the zero at its end.
const LONGEST_COMM: usize = 15;

/// A whole number within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Number<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Number<LEAST, MOST> {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<const LEAST: u64, const MOST: u64> TryFrom<String> for Number<LEAST, MOST> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // `parse` would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|number| digits && (LEAST..=MOST).contains(number))
            .map(Self)
            .ok_or_else(|| format!("give a whole number from {LEAST} to {MOST}, not {}", shown(&text)))
    }
}

impl<const LEAST: u64, const MOST: u64> JsonSchema for Number<LEAST, MOST> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("NumberFrom{LEAST}To{MOST}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": LEAST, "maximum": MOST})
    }
}

/// A short part of what was given, on one line.
fn shown(text: &str) -> String {
    let mut part: String = text.chars().take(40).collect();
    if part.len() < text.len() {
        part.push('…');
    }
    format!("{part:?}")
}

/// How many items a page has.
pub type Limit = Number<1, 1000>;
/// A process id.
pub type Pid = Number<1, 4_194_304>;
/// The small number of an address space; a JSON number holds it exactly.
pub type Id = Number<1, 9_007_199_254_740_991>;

/// Where a page begins. A number, but of what is nobody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cursor(u64);

impl TryFrom<String> for Cursor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Number::<0, 999_999_999_999_999>::try_from(text.clone())
            .ok()
            .filter(|_| text == "0" || !text.starts_with('0'))
            .map(|number| Self(number.get()))
            .ok_or_else(|| format!("give the next_cursor of the page before, not {}", shown(&text)))
    }
}

impl JsonSchema for Cursor {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cursor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^(0|[1-9][0-9]{0,14})$"})
    }
}

/// Which page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Items.
    pub limit: usize,
    /// Where it begins.
    pub cursor: Option<u64>,
}

impl Page {
    fn of(limit: Option<Limit>, cursor: Option<Cursor>) -> Self {
        let limit = limit.map_or(USUAL, Number::get);
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            cursor: cursor.map(|cursor| cursor.0),
        }
    }

    /// For the page behind `place`, if there is one.
    #[must_use]
    pub fn next(place: Option<u64>) -> Option<String> {
        place.map(|place| place.to_string())
    }
}

/// Which processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhichProcesses {
    /// Those that are there.
    #[default]
    Live,
    /// Those that were torn down, as far as they are kept.
    Ended,
    /// All.
    All,
}

/// The name of a process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Comm(String);

impl TryFrom<String> for Comm {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if (1..=LONGEST_COMM).contains(&text.chars().count()) {
            Ok(Self(text))
        } else {
            Err(format!(
                "the kernel keeps names of 1 to {LONGEST_COMM} characters; give it as /proc/PID/comm shows it, not {}",
                shown(&text)
            ))
        }
    }
}

impl JsonSchema for Comm {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Comm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 1, "maxLength": LONGEST_COMM})
    }
}

/// The name of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CauseName(pub Cause);

impl TryFrom<String> for CauseName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Cause::of_label(&text)
            .map(Self)
            .ok_or_else(|| format!("{} is no cause; /api/v1/causes lists them", shown(&text)))
    }
}

impl JsonSchema for CauseName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CauseName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": Cause::ALL.map(Cause::label).to_vec()})
    }
}

/// An epoch of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum EpochName {
    /// By its number.
    Number(u32),
    /// The newest that has ended.
    Last,
    /// The one that has not.
    Open,
}

impl EpochName {
    /// Whether the open epoch is meant.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open)
    }
}

impl TryFrom<String> for EpochName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |text: String| Number::<1, 4_294_967_295>::try_from(text);
        match text.as_str() {
            "last" => Ok(Self::Last),
            "open" => Ok(Self::Open),
            _ => number(text.clone())
                .ok()
                .and_then(|number| u32::try_from(number.get()).ok())
                .map(Self::Number)
                .ok_or_else(|| format!("give the number of an epoch, last or open, not {}", shown(&text))),
        }
    }
}

impl fmt::Display for EpochName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(formatter),
            Self::Last => formatter.write_str("last"),
            Self::Open => formatter.write_str("open"),
        }
    }
}

impl JsonSchema for EpochName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EpochName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "minimum": 1, "maximum": u32::MAX},
            {"type": "string", "enum": ["last", "open"]},
        ]})
    }
}

/// Parameters of the list of processes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessesQuery {
    /// Which of them: `live` (if it is not given), `ended` or `all`.
    #[serde(default)]
    pub state: WhichProcesses,
    /// Only those whose open epoch has this verdict so far; of ended ones, whose newest finished epoch has it.
    #[serde(default)]
    #[schemars(with = "Verdict")]
    pub verdict: Option<Verdict>,
    /// Only those with this process id in sdtrace's pid namespace.
    #[serde(default)]
    #[schemars(with = "Pid")]
    pub pid: Option<Pid>,
    /// Only those with this process id in the initial pid namespace.
    #[serde(default)]
    #[schemars(with = "Pid")]
    pub initial_pid: Option<Pid>,
    /// Only those with this name.
    #[serde(default)]
    #[schemars(with = "Comm")]
    pub comm: Option<Comm>,
    /// Items of a page; 100 if it is not given.
    #[serde(default)]
    #[schemars(with = "Limit")]
    limit: Option<Limit>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[schemars(with = "Cursor")]
    cursor: Option<Cursor>,
}

impl ProcessesQuery {
    /// The page that is asked for.
    #[must_use]
    pub fn page(&self) -> Page {
        Page::of(self.limit, self.cursor)
    }

    /// The name that is asked for.
    #[must_use]
    pub fn comm(&self) -> Option<&str> {
        self.comm.as_ref().map(|comm| comm.0.as_str())
    }
}

/// Parameters of a list without filters.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Items of a page; 100 if it is not given.
    #[serde(default)]
    #[schemars(with = "Limit")]
    limit: Option<Limit>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[schemars(with = "Cursor")]
    cursor: Option<Cursor>,
}

impl PageQuery {
    /// The page that is asked for.
    #[must_use]
    pub fn page(&self) -> Page {
        Page::of(self.limit, self.cursor)
    }
}

/// Parameters of the list of incidents.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IncidentsQuery {
    /// Only those of this cause.
    #[serde(default)]
    #[schemars(with = "CauseName")]
    pub cause: Option<CauseName>,
    /// Only those with this evidence.
    #[serde(default)]
    #[schemars(with = "Evidence")]
    pub evidence: Option<Evidence>,
    /// Only those of the process with this id in sdtrace's pid namespace.
    #[serde(default)]
    #[schemars(with = "Pid")]
    pub pid: Option<Pid>,
    /// Only those of the address space with this small number.
    #[serde(default)]
    #[schemars(with = "Id")]
    pub process: Option<Id>,
    /// Only those that can still grow, or only those whose numbers are final.
    #[serde(default)]
    #[schemars(with = "State")]
    pub state: Option<State>,
    /// Items of a page; 100 if it is not given.
    #[serde(default)]
    #[schemars(with = "Limit")]
    limit: Option<Limit>,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[schemars(with = "Cursor")]
    cursor: Option<Cursor>,
}

impl IncidentsQuery {
    /// The page that is asked for.
    #[must_use]
    pub fn page(&self) -> Page {
        Page::of(self.limit, self.cursor)
    }
}

/// No parameters.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// The part of a path that names an address space.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct ProcessPath {
    /// Small number of the address space.
    pub id: Id,
}

/// The parts of a path that name an epoch.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct EpochPath {
    /// Small number of the address space.
    pub id: Id,
    /// Number of the epoch; `last`: the newest that has ended; `open`: the one that has not.
    pub epoch: EpochName,
}

/// The parameters behind the question mark.
#[derive(Clone, Copy, Debug)]
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => Err(explained(
                &error.body_text(),
                "Failed to deserialize query string: ",
            )),
        }
    }
}

/// The parts of the path.
#[derive(Clone, Copy, Debug)]
pub struct Named<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(path)) => Ok(Self(path)),
            Err(error) => Err(explained(&error.body_text(), "Invalid URL: ")),
        }
    }
}

fn explained(why: &str, prefix: &str) -> ApiError {
    let why = why.strip_prefix(prefix).unwrap_or(why);
    ApiError::bad_request(format!("{why} (/api/v1/openapi.json lists every parameter)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_digits_and_bounds_only() {
        for text in [
            "0",
            "1001",
            "",
            "+5",
            "-1",
            "1.5",
            " 1",
            "1e2",
            "99999999999999999999999",
        ] {
            assert!(Limit::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(Limit::try_from("1000".to_owned()).unwrap().get(), 1000);
        for text in ["", "00", "01", "x", "9999999999999999"] {
            assert!(Cursor::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert!(Cursor::try_from("0".to_owned()).is_ok());
    }

    #[test]
    fn epochs_are_named_by_number_or_word() {
        assert_eq!(EpochName::try_from("7".to_owned()), Ok(EpochName::Number(7)));
        assert_eq!(EpochName::try_from("last".to_owned()), Ok(EpochName::Last));
        for text in ["0", "LAST", "4294967296", ""] {
            assert!(EpochName::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
