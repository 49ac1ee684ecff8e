//! The sdtrace binary.

fn main() {}
