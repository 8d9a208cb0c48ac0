//! Where weights are kept: `--residency`, `--budget`, `--plan`.

use super::*;

const WAYS: [&[&str]; 5] = [
    &["--residency", "mmap"],
    &["--residency", "resident"],
    &["--no-mmap"],
    &["--residency", "stream"],
    &["--residency", "stream", "--budget", "1GiB"],
];

#[test]
fn the_text_is_the_same_wherever_weights_are() {
    let scratch = tempfile::tempdir().unwrap();
    let path = gguf(scratch.path(), "llama-gqa", &[]);
    let base = ["run", arg(&path), "-p", "Hello", "-n", "12", "-t", "0", "--ignore-eos"];
    let want = json(&base);
    assert_eq!(want["residency"], "mmap");
    for way in WAYS {
        let got = json(&[&base[..], way].concat());
        assert_eq!(got["text"], want["text"], "{way:?}");
        let read = got["read"]["bytes"].as_u64().unwrap();
        assert_eq!(read > 0, !way.contains(&"mmap"), "{way:?} read {read}");
    }
}

#[test]
fn a_plan_says_what_would_be_held_and_runs_nothing() {
    let path = model("llama-gqa");
    let plan = json(&["run", arg(&path), "--plan", "--residency", "stream", "-c", "32"]);
    assert_eq!((plan["residency"].as_str(), plan["context"].as_u64()), (Some("stream"), Some(32)));
    let sum = |list: &str| -> u64 {
        plan[list].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("held") + sum("streamed"), plan["weights"].as_u64().unwrap());
    assert!(plan["least_budget"].as_u64().unwrap() <= plan["budget"].as_u64().unwrap());
    let text = good(&["run", arg(&path), "--plan", "--budget", "1GB"]);
    for word in ["weights:", "mmap", "cache:", "activations:", "at least"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_budget_that_is_too_small_says_which_one_works() {
    let path = model("llama-gqa");
    let least =
        json(&["run", arg(&path), "--plan", "--residency", "stream"])["least_budget"].as_u64().unwrap();
    let error = bad(1, &["run", arg(&path), "-p", "Hello", "--budget", "1MiB"]);
    assert!(error.contains("the budget is 1.0 MiB") && error.contains("at least"), "{error}");
    // What the program itself takes differs a little from run to run.
    let enough = (least + (16 << 20)).to_string();
    good(&["run", arg(&path), "-p", "Hello", "-n", "2", "--budget", &enough, "--residency", "stream"]);
    for budget in ["0%", "lots", "-1", "101%"] {
        assert_eq!(
            call(&["run", arg(&path), "-p", "x", "--budget", budget]).status.code(),
            Some(2),
            "{budget}"
        );
    }
}
