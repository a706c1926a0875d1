//! `cargo xtask bench`: numbers that the documentation quotes.

pub(crate) mod tables;
