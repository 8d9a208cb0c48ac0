//! Races with programs made up of shell scripts.

use super::cases::{CASES, DECODE, DEEP, PREFILL, START};
use super::*;
use std::os::unix::fs::PermissionsExt;

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

/// A program that says what `fonio bench` and `fonio run` say, at this speed.
fn fonio(folder: &Path, rate: f64) -> PathBuf {
    let path = folder.join("fonio");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = run ]; then echo '{{\"text\": \" 100 degrees\"}}'\n\
         else echo '{{\"results\": [{{\"tokens_per_second\": {rate}}}]}}'; fi\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn rival(name: &str, line: &str, text: Option<&str>) -> Engine {
    let program = Program::Command { line: line.into(), text: text.map(Into::into) };
    Engine { name: name.into(), setting: None, program }
}

#[test]
fn rounds_alternate_and_failures_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let said = |name: &str| format!("sh -c 'echo {name} >> {}; echo 10 t/s'", log.display());
    let engines = [
        Engine::fonio(fonio(folder.path(), 15.0)),
        rival("a", &said("a"), None),
        rival("broken", "false", None),
        rival("b", &said("b"), None),
    ];
    let file = folder.path().join("model");
    std::fs::write(&file, "x").unwrap();
    let mut report = Report::default();
    let race = race(case("llama-1b-Q4_0"), &file, &DECODE, 2, None, 2, &engines, &mut report);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "a\nb\na\nb\n");
    assert_eq!(race.failed, None);
    assert_eq!(race.figures[0].fonio, Series(vec![15.0, 15.0]));
    assert_eq!((race.figures[0].ratio(), race.figures[0].rivals.len()), (Some(1.5), 2));
    assert_eq!(report.notes.len(), 1);
    assert!(report.notes[0].contains("broken is out"), "{:?}", report.notes);
}

#[test]
fn who_cannot_begin_deep_is_skipped_and_a_failing_fonio_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model");
    std::fs::write(&file, "x").unwrap();
    let mut report = Report::default();
    let engines = [Engine::fonio(fonio(folder.path(), 15.0)), rival("shallow", "echo 1 t/s", None)];
    let deep = race(case("llama-1b-Q4_0"), &file, &DEEP, 2, None, 1, &engines, &mut report);
    assert!(deep.figures[0].rivals.is_empty() && report.notes[0].contains("{depth}"), "{:?}", report.notes);
    let engines = [Engine::fonio("/nonexistent/fonio".into())];
    let failed = race(case("llama-1b-Q4_0"), &file, &DECODE, 2, None, 1, &engines, &mut report);
    assert!(failed.failed.unwrap().contains("/nonexistent/fonio"));
}

#[test]
fn a_start_has_two_figures() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model");
    std::fs::write(&file, "x").unwrap();
    let engines = [Engine::fonio(fonio(folder.path(), 1.0)), rival("slow", "sleep 0.1", None)];
    let race = race(case("smollm2-Q4_1"), &file, &START, 1, None, 1, &engines, &mut Report::default());
    let figures: Vec<_> = race.figures.iter().map(|f| (f.measure, f.target, f.ratio().is_some())).collect();
    assert_eq!(figures, [(Measure::Wall, 3.0, true), (Measure::Peak, 2.0, true)]);
}

#[test]
fn other_texts_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let engines = [
        Engine::fonio(fonio(folder.path(), 1.0)),
        rival("same", "x", Some("echo {prompt} 100 degrees")),
        rival("other", "x", Some("echo 100 apples")),
        rival("silent", "x", None),
        rival("broken", "x", Some("false")),
    ];
    let mut report = Report::default();
    compare(case("smollm2-Q4_1"), Path::new("x"), &engines, &mut report);
    let words = [
        "same says what fonio says",
        "other: texts part after 4",
        "--rival-text 'silent=",
        "broken gave no text",
    ];
    assert_eq!(report.notes.len(), words.len(), "{:?}", report.notes);
    for (note, words) in report.notes.iter().zip(words) {
        assert!(note.contains(words), "{note}");
    }
}

#[test]
fn shares_are_of_the_limit_that_binds() {
    let load = Load { bytes: 2e9, weights: 1e9 };
    let limits = Limits { threads: 2, read: 20e9, bytes: 1000e9, floats: 250e9 };
    let at = |name: &str, work: &Work, rate: f64| {
        share(case(name), work, load, limits).map(|share| (share.of, share.factor * rate))
    };
    assert_eq!(at("llama-1b-Q4_0", &DECODE, 5.0), Some(("read", 0.5)));
    assert_eq!(at("llama-1b-Q4_0", &PREFILL, 100.0), Some(("int8", 0.2)));
    assert_eq!(at("llama-1b-F16", &PREFILL, 100.0), Some(("f32", 0.8)));
    assert_eq!(at("llama-1b-F16", &START, 1.0), None);
}

#[test]
fn a_model_that_is_not_there_is_skipped() {
    let options = Options::read(&["--dir".into(), "/nonexistent".into(), "llama-tiny-Q4_0".into()]).unwrap();
    let mut report = Report::default();
    run_case(case("llama-tiny-Q4_0"), &options, &[], &mut report);
    assert_eq!(report.races.len(), 6, "three kinds of work with two numbers of threads");
    assert!(report.races.iter().all(|race| race.skipped.is_some()));
}
