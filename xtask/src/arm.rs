//! Tests of vectors on AArch64, on machines of any kind: built with a cross linker, run in qemu.
//!
//! Cargo is asked for what iterates over the levels: tests of the crates that are generic over vectors. CPUs without all
//! features show that levels are found, and not used where they are not there.

use fonio_conformance::home;
use std::path::Path;
use std::process::{Command, Stdio};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-aarch64-static";
/// Where Debian has libraries for this target.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Arguments of `cargo test`, qemu's CPU and the levels that it has. The codecs' own unit tests are about bits, not
/// vectors, and would have to be built besides.
const RUNS: &[(&[&str], &str, &str)] = &[
    (&["-p", "fonio-simd", "-p", "fonio-kernel", "--lib"], "max", "scalar neon neondot neoni8mm"),
    (
        &["-p", "fonio-codec", "--test", "dequantize", "--test", "random"],
        "max",
        "scalar neon neondot neoni8mm",
    ),
    (&["-p", "fonio-simd", "--lib"], "neoverse-n1", "scalar neon neondot"),
    (&["-p", "fonio-simd", "--lib"], "cortex-a72", "scalar neon"),
];

/// Runs the tests; says what is missing if something is, which in continuous integration is an error.
pub fn run() -> Result<(), String> {
    let missing = missing();
    if !missing.is_empty() {
        let missing = format!("tests on AArch64 need {}", missing.join(", "));
        if home::in_ci() {
            return Err(missing);
        }
        eprintln!("skipped: {missing}");
        return Ok(());
    }
    for (arguments, cpu, levels) in RUNS {
        println!("{TARGET}, {cpu}: cargo test {}", arguments.join(" "));
        let status = Command::new(env!("CARGO"))
            .args(["test", "--locked", "--target", TARGET])
            .args(*arguments)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", format!("{QEMU} -L {LIBRARIES} -cpu {cpu}"))
            .env("FONIO_TEST_LEVELS", levels)
            .current_dir(home::workspace())
            .status()
            .map_err(|e| format!("cargo test: {e}"))?;
        if !status.success() {
            return Err(format!("tests on AArch64, {cpu}: {status}"));
        }
    }
    Ok(())
}

/// What is missing, each with how to get it.
fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    let library = output("rustc", &["--print", "target-libdir", "--target", TARGET]);
    if !library.is_some_and(|folder| Path::new(folder.trim()).is_dir()) {
        missing.push(format!("Rust's standard library (rustup target add {TARGET})"));
    }
    if output(LINKER, &["--version"]).is_none() || !Path::new(LIBRARIES).is_dir() {
        missing.push(format!("{LINKER} (apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"));
    }
    if output(QEMU, &["--version"]).is_none() {
        missing.push(format!("{QEMU} (apt-get install qemu-user-static)"));
    }
    missing
}

/// What a program writes, if it is there and succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
