//! `fonio chat`, its lines from a pipe.

use super::*;

/// Talks these lines and gives the output.
fn talk(options: &[&str], lines: &str) -> Output {
    let path = model("llama-gqa");
    fed(&[&["chat", arg(&path), "-t", "0", "-n", "6", "--ignore-eos"], options].concat(), lines)
}

#[test]
fn words_that_leave_leave() {
    for leave in ["exit\n", "quit\n", "/exit\n", "/bye\n", ""] {
        let output = talk(&[], &format!("{leave}Hello\n"));
        assert_eq!(text(&output.stdout).is_empty(), !leave.is_empty(), "{leave:?}");
    }
}

#[test]
fn the_same_conversation_has_the_same_answers() {
    let once = text(&talk(&[], "Hello\nAnd now?\n").stdout);
    assert_eq!(once, text(&talk(&[], "Hello\nAnd now?\n").stdout));
    // The first answer is what `run --chat` says.
    let path = model("llama-gqa");
    let options = ["--chat", "-p", "Hello", "-t", "0", "-n", "6", "--ignore-eos"];
    let alone = good(&[&["run", arg(&path)], &options[..]].concat());
    assert!(once.starts_with(&alone), "{once:?} {alone:?}");
    // Without temperature an answer can be had again.
    let again = text(&talk(&[], "Hello\n/retry\n").stdout);
    assert_eq!(again, alone.repeat(2));
    let cleared = text(&talk(&[], "Hello\n/clear\nHello\n").stdout);
    assert_eq!(cleared, alone.repeat(2));
}

#[test]
fn commands_speak_on_stderr() {
    let output = talk(&[], "/help\n/system Be brief.\n/system\n/stats\n/nonsense\n/retry\n");
    let said = text(&output.stderr);
    for part in ["/clear", "Be brief.", "no answer yet", "no such command", "no question yet"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn later_turns_use_the_cache() {
    let output = talk(&["--stats"], "Hello my old friend, how are you today in this fine weather?\nHi\n");
    let counts: Vec<u64> = text(&output.stderr)
        .lines()
        .filter_map(|line| line.strip_prefix("prompt: ")?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(counts.len(), 2, "{}", text(&output.stderr));
    assert!(counts[1] < counts[0], "{counts:?}");
}

#[test]
fn several_lines_are_one_message() {
    let one = text(&talk(&[], "\"\"\"one\ntwo\"\"\"\n").stdout);
    assert_eq!(text(&talk(&[], "one\\\ntwo\n").stdout), one);
    assert_ne!(text(&talk(&[], "one\ntwo\n").stdout), one);
}

#[test]
fn full_contexts_forget_the_oldest_turns() {
    let lines = "Tell me a long story, please.\n".repeat(12);
    let output = talk(&["--ctx", "96"], &lines);
    let said = text(&output.stderr);
    assert!(said.contains("forgotten"), "{said}");
    let long = format!("{}\nHello\n", "word ".repeat(400));
    let output = talk(&["--ctx", "96"], &long);
    assert!(text(&output.stderr).contains("do not fit"), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).is_empty(), "the conversation goes on");
}
