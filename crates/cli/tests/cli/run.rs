//! `fonio run`.

use super::*;
use std::io::Read;

#[test]
fn the_same_seed_gives_the_same_text() {
    let path = model("llama-gqa");
    let once = |seed: &str| {
        good(&["run", arg(&path), "-p", "Hello", "-n", "24", "--seed", seed, "-t", "1.5", "--ignore-eos"])
    };
    assert_eq!(once("1"), once("1"));
    assert_ne!(once("1"), once("2"));
}

#[test]
fn greedy_text_is_what_transformers_continues_with() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model("llama-gqa");
    let expected = fonio_checkpoint::open(&path.join("expected.safetensors")).unwrap();
    let ids = |name: &str| -> Vec<String> {
        let bytes = expected.bytes(expected.find(name).unwrap()).unwrap();
        bytes.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()).to_string()).collect()
    };
    // The first greedy token is the likeliest one behind the last of `tokens`.
    let out = scratch.path().join("l.safetensors");
    good(&["logits", arg(&path), "--tokens", &ids("tokens").join(","), "-o", arg(&out), "--layers"]);
    let logits = fonio_checkpoint::open(&out).unwrap();
    let info = &logits.tensors()[logits.find("logits").unwrap()];
    let bytes = logits.bytes(logits.find("logits").unwrap()).unwrap();
    let row = info.shape[1] as usize * 4;
    let last: Vec<f32> =
        bytes[bytes.len() - row..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let top = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
    assert_eq!(top.to_string(), ids("greedy")[0]);
    for layer in ["embedding", "layer.0", "final_norm"] {
        let shape = &logits.tensors()[logits.find(layer).unwrap()].shape;
        assert_eq!(*shape, expected.tensors()[expected.find(layer).unwrap()].shape, "{layer}");
    }
}

#[test]
fn stop_texts_end_the_text() {
    let path = model("llama-gqa");
    let base = ["run", arg(&path), "-p", "Hello", "-n", "32", "-t", "0", "--ignore-eos"];
    let full = json(&base)["text"].as_str().unwrap().to_owned();
    let middle = full.char_indices().nth(full.chars().count() / 2).unwrap().0;
    let stop: String = full[middle..].chars().take(2).collect();
    let cut = json(&[&base[..], &["--stop", &stop]].concat());
    assert_eq!(cut["finish"], "stop");
    assert_eq!(cut["text"].as_str().unwrap(), &full[..full.find(&stop).unwrap()]);
}

#[test]
fn prompts_come_from_arguments_files_and_stdin() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model("llama-gqa");
    let file = scratch.path().join("p.txt");
    std::fs::write(&file, "Hello there").unwrap();
    let options = ["-n", "8", "-t", "0", "--ignore-eos"];
    let base = ["run", arg(&path)];
    let given = good(&[&base[..], &["-p", "Hello there"], &options].concat());
    assert_eq!(good(&[&base[..], &["-f", arg(&file)], &options].concat()), given);
    let output = fed(&[&base[..], &options].concat(), "Hello there");
    assert_eq!(text(&output.stdout), given);
    // A dash at its beginning makes a text no option.
    good(&[&base[..], &["-p", "- one\n- two"], &options].concat());
}

#[test]
fn an_empty_prompt_begins_at_the_beginning_if_there_is_one() {
    let with = model("llama-gqa");
    assert_eq!(json(&["run", arg(&with), "-p", "", "-n", "2", "--ignore-eos"])["prompt_tokens"], 1);
    let without = model("qwen2-tied");
    bad(2, &["run", arg(&without), "-p", "", "-n", "2"]);
}

#[test]
fn contexts_end() {
    let path = model("llama-gqa");
    let ran = json(&["run", arg(&path), "-p", "Hello", "-n", "1000", "--ctx", "16", "--ignore-eos"]);
    assert_eq!(ran["finish"], "context");
    assert!(ran["tokens"].as_u64().unwrap() <= 16);
    let long = "word ".repeat(100);
    let said = bad(2, &["run", arg(&path), "-p", &long, "--ctx", "16"]);
    assert!(said.contains("--ctx"), "{said}");
}

#[test]
fn chat_templates_are_used_when_asked_for() {
    let path = model("llama-gqa");
    let options = ["-p", "Hi", "-n", "2", "-t", "0", "--ignore-eos"];
    let plain = json(&[&["run", arg(&path)], &options[..]].concat());
    let chat = json(&[&["run", arg(&path), "--chat"], &options[..]].concat());
    let system = json(&[&["run", arg(&path), "--system", "Be brief."], &options[..]].concat());
    let n = |v: &serde_json::Value| v["prompt_tokens"].as_u64().unwrap();
    assert!(n(&plain) < n(&chat) && n(&chat) < n(&system));
}

#[test]
fn cache_types_and_memory_change_little() {
    let path = model("llama-rope3");
    let base = ["run", arg(&path), "-p", "Hello", "-n", "4", "-t", "0", "--ignore-eos"];
    let mapped = good(&base);
    assert_eq!(good(&[&base[..], &["--no-mmap"]].concat()), mapped);
    good(&[&base[..], &["--cache-type-k", "F32", "--cache-type-v", "F32"]].concat());
    // Heads of 24 values are no whole blocks of 32.
    bad(2, &[&base[..], &["--cache-type-k", "Q8_0"]].concat());
    assert_eq!(call(&[&base[..], &["--cache-type-k", "Q8_K"]].concat()).status.code(), Some(2));
}

#[test]
fn statistics_go_to_stderr() {
    let path = model("llama-gqa");
    let base = ["run", arg(&path), "-p", "Hello", "-n", "4", "-t", "0", "--ignore-eos"];
    let output = call(&[&base[..], &["--stats"]].concat());
    assert!(text(&output.stderr).contains("tokens/s"));
    assert_eq!(text(&output.stdout), good(&base));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_the_text_quietly() {
    let path = model("llama-gqa");
    let mut child = fonio()
        .args([
            "run",
            arg(&path),
            "-p",
            "Hello",
            "-n",
            "100000000",
            "--ctx",
            "100000000",
            "--ignore-eos",
            "-q",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_its_own_code() {
    let path = model("llama-gqa");
    let mut child = fonio()
        .args([
            "run",
            arg(&path),
            "-p",
            "Hello",
            "-n",
            "100000000",
            "--ctx",
            "100000000",
            "--ignore-eos",
            "-q",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_saved_session_gives_the_same_text_without_computing_it_again() {
    let scratch = tempfile::tempdir().unwrap();
    let file = gguf(scratch.path(), "llama-gqa", &[]);
    let kept = scratch.path().join("kept.session");
    let run =
        |text: &str| json(&["run", arg(&file), "-p", text, "-n", "8", "-t", "0", "--session", arg(&kept)]);
    let plain = json(&["run", arg(&file), "-p", "Once upon a time", "-n", "8", "-t", "0"]);
    let (first, second) = (run("Once upon a time"), run("Once upon a time"));
    assert_eq!((&first["text"], &second["text"]), (&plain["text"], &plain["text"]));
    assert_eq!((&first["prompt_tokens"], &second["prompt_tokens"]), (&0.into(), &0.into()));
    assert_ne!(run("Twice upon a time")["text"], plain["text"]);
    // Another model's, and one that is damaged.
    let other = gguf(scratch.path(), "qwen2-tied", &[]);
    bad(2, &["run", arg(&other), "-p", "Once", "--session", arg(&kept)]);
    let bytes = std::fs::read(&kept).unwrap();
    std::fs::write(&kept, &bytes[..bytes.len() - 9]).unwrap();
    bad(2, &["run", arg(&file), "-p", "Once", "--session", arg(&kept)]);
}

#[test]
fn a_reason_is_said_once() {
    // The weights of a respelled model have no tokenizer beside them.
    let output = call(&["run", arg(&model("rwkv7-pth")), "-p", "x"]);
    let said = text(&output.stderr);
    assert_eq!(said.matches("no tokenizer.json").count(), 1, "{said}");
}
