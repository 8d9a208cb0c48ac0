//! The `fonio` program.
fn main() {}
