//! `--speculate`, `--lookup` and `--draft` of `run` and `chat`.

use super::*;

const TEXT: &str = "one two three one two three one two three one two";

/// Proposed and accepted tokens.
fn counts(document: &serde_json::Value) -> (u64, u64) {
    let count = |key: &str| document["speculation"][key].as_u64().unwrap();
    (count("proposed"), count("accepted"))
}

#[test]
fn guesses_give_the_same_text() {
    let (path, other) = (model("llama-gqa"), model("llama-rope3"));
    for sampling in [&["-t", "0"][..], &["-t", "0.9", "--seed", "7"]] {
        let base = [&["run", arg(&path), "-p", TEXT, "-n", "32", "--ignore-eos"], sampling].concat();
        let plain = json(&base);
        assert_eq!(counts(&plain), (0, 0));
        for how in [
            &["--speculate", "ngram"][..],
            &["--lookup", "--draft-max", "3"],
            &["--draft", arg(&path)],
            &["--draft", arg(&other), "--draft-max", "2"],
            &["--draft", arg(&path), "--budget", "1GiB"],
            &["--draft", arg(&path), "--residency", "stream"],
        ] {
            let got = json(&[&base[..], how].concat());
            assert_eq!((&got["text"], &got["tokens"]), (&plain["text"], &plain["tokens"]), "{how:?}");
            let (proposed, accepted) = counts(&got);
            assert!(accepted <= proposed);
            // What the model itself drafts is what it says.
            if how[1] == arg(&path) {
                assert!(accepted > 0 && (sampling[1] != "0" || accepted == proposed), "{how:?}");
            }
        }
    }
}

#[test]
fn recurrent_states_come_back() {
    let path = model("rwkv4");
    let base = ["run", arg(&path), "-p", TEXT, "-n", "32", "-t", "0.5", "--ignore-eos"];
    let plain = json(&base);
    for how in [&["--lookup"][..], &["--draft", arg(&path)], &["--draft", arg(&model("mamba"))]] {
        assert_eq!(json(&[&base[..], how].concat())["text"], plain["text"], "{how:?}");
    }
}

#[test]
fn figures_say_what_came_true() {
    let path = model("llama-gqa");
    let base = ["run", arg(&path), "-p", TEXT, "-n", "24", "-t", "0", "--ignore-eos", "--stats"];
    let said = |how: &[&str]| text(&call(&[&base[..], how].concat()).stderr);
    let drafted = said(&["--draft", arg(&path)]);
    assert!(drafted.contains("guessed: ") && drafted.contains("(100.0 %)"), "{drafted}");
    assert!(!said(&[]).contains("guessed"));
}

#[test]
fn conversations_are_the_same() {
    let path = model("llama-gqa");
    let talk = |options: &[&str]| {
        let lines = "Hello hello hello\nAnd now?\n/clear\nHello hello hello\n";
        let base = ["chat", arg(&path), "-n", "12", "--seed", "3", "--ignore-eos"];
        text(&fed(&[&base, options].concat(), lines).stdout)
    };
    let plain = talk(&[]);
    assert!(plain.lines().count() >= 3, "{plain}");
    assert_eq!(talk(&["--lookup"]), plain);
    assert_eq!(talk(&["--draft", arg(&path)]), plain);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (path, gemma) = (model("llama-gqa"), model("gemma"));
    let base = ["run", arg(&path), "-p", "x", "-n", "1"];
    let refused = |how: &[&str]| bad(2, &[&base[..], how].concat());
    let other = refused(&["--draft", arg(&gemma)]);
    assert!(other.contains("another vocabulary") && other.contains("same family"), "{other}");
    for how in [
        &["--draft", arg(&path), "--lookup"][..],
        &["--speculate", "ngram", "--draft", arg(&path)],
        &["--speculate", "magic"],
        &["--draft-max", "4"],
        &["--lookup", "--draft-max", "0"],
    ] {
        let output = call(&[&base[..], how].concat());
        assert_eq!(output.status.code(), Some(2), "{how:?}: {}", text(&output.stderr));
    }
    assert!(!call(&[&base[..], &["--draft", "/nonexistent"]].concat()).status.success());
    let small = call(&[&base[..], &["--draft", arg(&path), "--budget", "1KiB"]].concat());
    assert_eq!(small.status.code(), Some(1));
    assert!(text(&small.stderr).contains("draft model alone"), "{}", text(&small.stderr));
}
