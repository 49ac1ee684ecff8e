//! sdtrace, the user side.
