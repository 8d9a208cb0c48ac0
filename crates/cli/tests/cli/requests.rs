//! Arguments, environment, help.

use super::*;

const COMMANDS: &[&str] = &[
    "convert",
    "run",
    "chat",
    "inspect",
    "tokenize",
    "verify",
    "logits",
    "eval",
    "bench",
    "models",
    "types",
    "completions",
    "man",
];

#[test]
fn every_command_has_help() {
    let all = good(&["--help"]);
    for command in COMMANDS {
        assert!(all.contains(command), "{command}");
        let help = good(&[command, "--help"]);
        assert!(help.contains("Usage:"), "{command}");
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{command}: {help}");
    }
    assert!(good(&["--version"]).starts_with("fonio "));
    good(&["quantize", "--help"]);
}

#[test]
fn wrong_arguments_are_code_2() {
    for arguments in [&["no-such-command"][..], &["run"], &["convert", "x"], &["run", "x", "-n", "many"], &[]]
    {
        assert_eq!(call(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let path = model("llama-gqa");
    for wrong in ["-t=-1", "--top-p=2", "--min-p=-1", "--repeat-penalty=0", "--threads=5000", "--ctx=0"] {
        bad(2, &["run", arg(&path), "-p", "x", wrong]);
    }
}

#[test]
fn the_cpu_can_be_chosen() {
    let path = model("llama-gqa");
    for isa in fonio_simd::Isa::available() {
        let output = fonio()
            .env("FONIO_CPU", isa.name())
            .args(["run", arg(&path), "-p", "x", "-n", "2", "-v"])
            .output();
        let output = output.unwrap();
        assert!(output.status.success());
        assert!(text(&output.stderr).contains(isa.name()));
    }
    let output = fonio().env("FONIO_CPU", "abacus").args(["types"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("scalar"), "{}", text(&output.stderr));
}

#[test]
fn quiet_is_quiet_and_colours_are_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("llama-gqa");
    let out = scratch.path().join("x.gguf");
    let output = call(&["convert", arg(&source), "-o", arg(&out), "-q"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    assert!(text(&call(&["inspect", "/no", "--color", "always"]).stderr).contains("\x1b["));
    assert!(!text(&call(&["inspect", "/no"]).stderr).contains("\x1b["));
}

#[test]
fn completions_and_manual_are_written() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(good(&["completions", shell]).contains("fonio"), "{shell}");
    }
    assert!(good(&["man"]).contains(".TH"));
    let scratch = tempfile::tempdir().unwrap();
    good(&["man", arg(scratch.path())]);
    let pages = names(scratch.path());
    for command in COMMANDS {
        assert!(pages.contains(&format!("fonio-{command}.1")), "{command}: {pages:?}");
    }
}

/// Names in files are shown without what could move a terminal's cursor.
#[test]
fn files_cannot_speak_to_the_terminal() {
    let said = bad(1, &["inspect", "/no/\x1b[2Jfile"]);
    assert!(!said.contains('\x1b'), "{said:?}");
}

#[test]
fn flags_that_would_do_nothing_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model("llama-gqa");
    for (name, flags) in [
        ("x.gguf", &["--compress"][..]),
        ("x.gguf", &["--block-size", "32"]),
        ("x.gguf", &["--outlier-frac", "0.01"]),
        ("x.gguf", &["--pq-m", "8"]),
        ("x.safetensors", &["--compress", "zstd"]),
        ("x.qsf", &["--quant", "4bit", "--outlier-frac", "0.01"]),
        ("x.qsf", &["--max-shard-size", "1MB"]),
        ("x.cawsf", &["--split-max-tensors", "9"]),
        ("x.cawsf", &["--block-size", "32"]),
        ("x.cawsf", &["--max-shard-size", "1MB"]),
    ] {
        let out = scratch.path().join(name);
        let output = call(&[&["convert", arg(&path), "-o", arg(&out)], flags].concat());
        assert!(!output.status.success(), "{name} {flags:?}");
        let flag = flags.iter().rfind(|f| f.starts_with("--")).unwrap().trim_start_matches('-');
        let said = text(&output.stderr);
        assert!(said.contains(flag) || said.contains("not split"), "{name} {flags:?}: {said}");
        assert!(names(scratch.path()).is_empty(), "{name} {flags:?}");
    }
}
