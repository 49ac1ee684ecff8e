//! Hours of memory stress under sdtrace.

pub mod pagemap;
