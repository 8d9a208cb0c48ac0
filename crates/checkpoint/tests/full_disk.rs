//! A disk that fills up, stood for by a limit on the size of files that the shell sets for a child process.
#![cfg(unix)]

mod common;

use common::Dir;
use fonio_checkpoint::{Error, Metadata, TensorPlan, WriteOptions, list};
use fonio_codec::DType;
use std::path::Path;
use std::process::Command;

/// Writes as much as goes, in a process that may not write much. Does so only as a child of the test below.
#[test]
fn child() {
    let Some(path) = std::env::var_os("FONIO_TEST_OUTPUT") else { return };
    let path = Path::new(&path);
    let plans = [TensorPlan::new("t", DType::named("U8").unwrap(), [1 << 22])];
    let options = WriteOptions { force: true, ..Default::default() };
    let create = list::by_extension(path).unwrap().create.unwrap();
    let mut writer = create(path, &Metadata::new(), &plans, &options).unwrap();
    let appended = writer.append(&vec![1; 1 << 22]);
    let error = appended.and_then(|()| writer.finish()).expect_err("the limit is in the way");
    assert!(matches!(&error, Error::Io { file, .. } if file == path), "{error}");
}

fn run(path: &Path, limit: &str) -> bool {
    // The limit counts blocks of 512 bytes or 1 KiB. Ignoring the signal makes it an error of the write, as a full
    // disk is.
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" child --exact --quiet");
    let exe = std::env::current_exe().unwrap();
    let output =
        Command::new("sh").arg("-c").arg(script).arg(exe).env("FONIO_TEST_OUTPUT", path).output().unwrap();
    output.status.success()
}

#[test]
fn nothing_is_left_and_the_old_file_stays() {
    let dir = Dir::new();
    let path = dir.join("m.safetensors");
    assert!(!run(&path, "unlimited"), "without a limit there is no error, so the child fails");
    std::fs::write(&path, "old").unwrap();
    for limit in ["0", "1", "100", "4000"] {
        assert!(run(&path, limit), "limit {limit}");
        assert_eq!(dir.names(), ["m.safetensors"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
