//! What both sides of sdtrace share, and every piece of logic that can be pure.
#![no_std]
