//! Repository chores, as `cargo xtask COMMAND`: `tidy` checks the house rules, `fetch` downloads what the tests
//! compare with, `test` runs all tests, `test-arm` those of vectors in an emulator, `bench` measures what tests cannot.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod arm;
#[cfg(target_os = "linux")]
mod bench;
mod fetch;
mod tidy;

use fonio_conformance::home;
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask COMMAND
  tidy                check the house rules of CONTRIBUTING.md
  fetch [WHAT]...     download what the tests need (all of it, or: llama.cpp vocab tokenizers models)
  test [ARG]...       fetch, then cargo test --workspace with the arguments
  test-arm            the tests of vectors on AArch64, in qemu
  bench COMMAND       measure: see cargo xtask bench";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((command, rest)) => match command.as_str() {
            "tidy" if rest.is_empty() => tidy::run(home::workspace()),
            "fetch" => fetch::run(rest),
            "test" => test(rest),
            "test-arm" if rest.is_empty() => arm::run(),
            "bench" => bench(rest),
            _ => Err(USAGE.into()),
        },
        None => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_os = "linux")]
fn bench(arguments: &[String]) -> Result<(), String> {
    bench::run(arguments)
}

#[cfg(not(target_os = "linux"))]
fn bench(_: &[String]) -> Result<(), String> {
    Err("the benches ask Linux for what they measure".into())
}

/// Fetches what can be fetched and runs the tests. Without a network the tests that need an oracle say that they
/// are skipped; in continuous integration a missing oracle is an error.
fn test(arguments: &[String]) -> Result<(), String> {
    if let Err(reason) = fetch::run(&[]) {
        if home::in_ci() {
            return Err(reason);
        }
        eprintln!("{reason}\nSome oracles are missing; tests that need them will be skipped.");
    }
    let status = Command::new(env!("CARGO"))
        .args(["test", "--workspace"])
        .args(arguments)
        .current_dir(home::workspace())
        .status()
        .map_err(|e| format!("cargo test: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo test failed: {status}")) }
}
