//! The program from outside, on the tiny checkpoints of `conformance/models`: every command, its exit codes, what it
//! leaves behind.

mod cawsf;
mod cawsf_experts;
mod chat;
mod convert;
#[cfg(feature = "grain")]
mod demo;
mod names;
mod requests;
mod residency;
mod run;
mod see;
mod speculate;
mod stream;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of a tiny checkpoint.
fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name)
}

/// The program, with nothing of the user's environment that could change what it does.
fn fonio() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fonio"));
    for variable in ["FONIO_CPU", "FONIO_HOME", "NO_COLOR", "HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS"] {
        command.env_remove(variable);
    }
    command
        .env("HOME", "/nonexistent")
        .env("XDG_DATA_HOME", "/nonexistent")
        .env("XDG_STATE_HOME", "/nonexistent");
    command.stdin(Stdio::null());
    command
}

/// Runs the program with these arguments.
fn call(arguments: &[&str]) -> Output {
    fonio().args(arguments).output().unwrap()
}

/// Runs it with these arguments and this text on stdin, and expects success.
fn fed(arguments: &[&str], stdin: &str) -> Output {
    let mut child = fonio()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it, expects success, and gives stdout.
fn good(arguments: &[&str]) -> String {
    let output = call(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs it, expects this exit code and one line of an error (and perhaps a hint), and gives stderr.
fn bad(code: i32, arguments: &[&str]) -> String {
    let output = call(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    let errors = stderr.lines().filter(|line| line.starts_with("fonio: ")).count();
    assert_eq!(errors, 1, "{arguments:?}: {stderr}");
    stderr
}

/// Runs it with `--json` and gives the document.
fn json(arguments: &[&str]) -> serde_json::Value {
    let stdout = good(&[arguments, &["--json"]].concat());
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {stdout}"))
}

/// A path as an argument.
fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A GGUF file of a tiny checkpoint.
fn gguf(folder: &Path, name: &str, quant: &[&str]) -> PathBuf {
    let out = folder.join(format!("{name}.gguf"));
    good(&[&["convert", arg(&model(name)), "-o", arg(&out)], quant].concat());
    out
}
