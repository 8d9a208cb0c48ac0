//! Conversions that are killed at any point, and gone on with.
//!
//! Processes are ended with SIGKILL, which they cannot notice, after a time drawn at random (the same in every run, as
//! far as times can be). Whatever was there then: nothing under the output's name, and the same bytes after going on.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn fonio(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fonio"));
    command.args(arguments).env("HOME", "/nonexistent").env_remove("FONIO_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn good(arguments: &[&str]) -> String {
    let done = fonio(arguments).output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{arguments:?}: {stderr}");
    stderr
}

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The model that is embedded in the program: 5 MB.
fn grain() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/grain")
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// All files of a folder but its own, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = folder
        .read_dir()
        .unwrap()
        .map(|f| f.unwrap())
        .map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap()))
        .collect();
    all.sort();
    all
}

/// Runs and kills after so long. Whether it was done before that.
fn killed(arguments: &[&str], after: Duration) -> bool {
    let mut child = fonio(arguments).spawn().unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{arguments:?}");
            return true;
        }
        if start.elapsed() >= after {
            child.kill().unwrap();
            return child.wait().unwrap().success();
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Kills a conversion `times` times at random points, going on each time, and some of the going-ons as well.
fn torture(name: &str, extra: &[&str], times: usize, seed: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let reference = scratch.path().join("reference");
    let folder = scratch.path().join("out");
    fs::create_dir(&reference).unwrap();
    let source = grain();
    let convert = |folder: &Path, more: &[&str]| -> Vec<String> {
        let out = folder.join(name);
        let all = [&["convert", arg(&source), "-o", arg(&out), "--threads", "2"], extra, more].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let call = |list: &[String]| good(&list.iter().map(String::as_str).collect::<Vec<_>>());
    let start = Instant::now();
    call(&convert(&reference, &[]));
    let whole = start.elapsed();
    let want = files(&reference);
    // Files that are written before all are complete have these names, never the output's.
    let named = |folder: &Path| files(folder).into_iter().filter(|(name, _)| !name.starts_with('.')).count();
    let resume = convert(&folder, &["--resume", "--resume-step", "20000"]);
    let resume: Vec<&str> = resume.iter().map(String::as_str).collect();
    let mut random = Random(seed);
    let (mut gone_on, mut done_early) = (0, 0);
    for _ in 0..times {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let kills = 1 + random.below(2);
        let mut done = false;
        for _ in 0..kills {
            let after = whole.mul_f64(random.below(1000) as f64 / 1000.0);
            // Killed after the last thing that it did, it is done as well.
            done = done || killed(&resume, after) || files(&folder) == want;
            let journal = files(&folder).into_iter().find(|(name, _)| name.ends_with(".journal"));
            let naming =
                journal.is_some_and(|(_, text)| String::from_utf8_lossy(&text).contains("\nnaming "));
            let count = named(&folder);
            assert!(count == 0 || count == want.len() || naming, "{count} files are named");
        }
        if done {
            done_early += 1;
        } else {
            let said = good(&resume);
            gone_on += usize::from(said.contains("gone on after"));
        }
        assert!(files(&folder) == want, "the bytes of an uninterrupted conversion, and nothing beside");
    }
    assert!(done_early < times, "all were too fast to be killed");
    assert!(gone_on >= times.div_ceil(10), "only {gone_on} of {times} had something to go on with");
}

#[test]
fn gguf_is_gone_on_with() {
    torture("m.gguf", &["--quant", "Q4_0"], 30, 1);
}

#[test]
fn qsf_is_gone_on_with() {
    torture("m.qsf", &["--quant", "2bit_outlier", "--block-size", "32"], 30, 2);
}

#[test]
fn compressed_qsf_is_gone_on_with() {
    torture("m.qsf", &["--quant", "F16", "--compress", "lz4"], 20, 3);
}

#[test]
fn several_files_are_gone_on_with() {
    torture("m.gguf", &["--quant", "Q8_0", "--max-shard-size", "400K"], 20, 4);
}

#[test]
fn cawsf_is_gone_on_with() {
    let small = ["--rank", "4", "--pq-m", "4", "--pq-k", "16", "--pq-d", "32"];
    // A short text: what is worth something for which of its windows is in the journal.
    let text = grain().join("config.json");
    torture("m.cawsf", &[&small[..], &["--calibration", arg(&text)]].concat(), 8, 5);
    let others = ["--calibration", "none", "--refine", "1", "--outlier-q", "1"];
    torture("m.cawsf", &[&small[..], &others].concat(), 3, 6);
}

/// What was left of another conversion is not gone on with, and nothing of it stays.
#[test]
fn another_conversion_begins_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("source");
    fs::create_dir(&copy).unwrap();
    for (name, bytes) in files_of_model() {
        fs::write(copy.join(name), bytes).unwrap();
    }
    let folder = scratch.path().join("out");
    let out = folder.join("m.gguf");
    let run = |quant: &str| {
        ["convert", arg(&copy), "-o", arg(&out), "--quant", quant, "--resume", "--resume-step", "20000"]
            .map(str::to_owned)
    };
    // Kills until there is something to go on with.
    let leave = |quant: &str| {
        for wait in (0..400).cycle().take(4000) {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            let list = run(quant);
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            if !killed(&list, Duration::from_millis(wait)) {
                let journal = fs::read_to_string(folder.join(".m.gguf.part.journal")).unwrap_or_default();
                if journal.contains("\nat ") {
                    return;
                }
            }
        }
        panic!("never killed in time");
    };
    let again = |quant: &str| {
        let list = run(quant);
        good(&list.iter().map(String::as_str).collect::<Vec<_>>())
    };
    leave("Q4_0");
    let said = again("Q8_0");
    assert!(said.contains("begun anew") && !said.contains("gone on"), "{said}");
    let fresh = scratch.path().join("fresh.gguf");
    good(&["convert", arg(&copy), "-o", arg(&fresh), "--quant", "Q8_0"]);
    assert!(fs::read(&out).unwrap() == fs::read(&fresh).unwrap());
    assert_eq!(files(&folder).len(), 1);
    // The same source with another time.
    leave("Q4_0");
    let weights = copy.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    assert!(again("Q4_0").contains("begun anew"));
    // A part that was changed is noticed: what is right of it is kept, or nothing.
    leave("Q4_0");
    let part = folder.join(".m.gguf.part");
    let mut bytes = fs::read(&part).unwrap();
    bytes[0] ^= 1;
    fs::write(&part, bytes).unwrap();
    let said = again("Q4_0");
    assert!(said.contains("damaged"), "{said}");
    let fresh = scratch.path().join("fresh4.gguf");
    good(&["convert", arg(&copy), "-o", arg(&fresh), "--quant", "Q4_0"]);
    assert!(fs::read(&out).unwrap() == fs::read(&fresh).unwrap());
    // Without --resume what is left is replaced.
    leave("Q4_0");
    good(&["convert", arg(&copy), "-o", arg(&out), "--quant", "Q4_0"]);
    assert!(fs::read(&out).unwrap() == fs::read(&fresh).unwrap());
    assert_eq!(files(&folder).len(), 1);
}

fn files_of_model() -> Vec<(String, Vec<u8>)> {
    let kept = |name: &str| name.ends_with(".json") || name.ends_with(".safetensors");
    files(&grain()).into_iter().filter(|(name, _)| kept(name)).collect()
}

#[test]
fn two_conversions_do_not_meet() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("m.gguf");
    let journal = scratch.path().join(".m.gguf.part.journal");
    let file = fs::File::create(journal).unwrap();
    file.try_lock().unwrap();
    let done = fonio(&["convert", arg(&grain()), "-o", arg(&out)]).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && said.contains("another process is writing it"), "{said}");
    drop(file);
    good(&["convert", arg(&grain()), "-o", arg(&out)]);
}
