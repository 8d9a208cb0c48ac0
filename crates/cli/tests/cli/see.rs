//! Commands that look: inspect, verify, tokenize, eval, bench, models, types.

use super::*;
use std::fs;

#[test]
fn inspect_shows_what_there_is() {
    let scratch = tempfile::tempdir().unwrap();
    let file = gguf(scratch.path(), "llama-gqa", &["--quant", "Q8_0"]);
    let shown = good(&["inspect", arg(&file), "--all"]);
    for part in ["gguf", "llama", "token_embd.weight", "tokenizer.ggml.model", "Q8_0", "bits"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let seen = json(&["inspect", arg(&file)]);
    assert_eq!(seen["container"], "gguf");
    assert_eq!(seen["model"]["architecture"], "llama");
    assert_eq!(seen["metadata"]["general.architecture"], "llama");
    let tokens = &seen["metadata"]["tokenizer.ggml.tokens"];
    assert!(tokens["length"].as_u64().unwrap() > 100 && tokens["first"].as_array().unwrap().len() < 10);
    let sum: u64 = seen["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(seen["tensor_bytes"].as_u64(), Some(sum));

    let folder = json(&["inspect", arg(&model("llama-linear"))]);
    assert_eq!(folder["files"].as_array().unwrap().len(), 4);
    let alone = json(&["inspect", arg(&model("llama-gqa").join("expected.safetensors"))]);
    assert_eq!(alone["container"], "safetensors");
    bad(1, &["inspect", "/no/such/file"]);
    bad(2, &["inspect", env!("CARGO_MANIFEST_DIR")]);
}

#[test]
fn verify_finds_what_is_wrong() {
    let scratch = tempfile::tempdir().unwrap();
    let file = gguf(scratch.path(), "llama-gqa", &[]);
    let report = json(&["verify", arg(&file)]);
    assert_eq!(report["sound"], true);
    assert_eq!(report["files"][0]["architecture"], "llama");
    let bytes = fs::read(&file).unwrap();
    let wrong = scratch.path().join("wrong.gguf");
    for len in [0, 3, 20, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&wrong, &bytes[..len]).unwrap();
        let output = call(&["verify", arg(&wrong)]);
        assert_eq!(output.status.code(), Some(3), "{len}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("not sound"));
    }
    // The last tensor's last value becomes a NaN.
    let mut spoilt = bytes.clone();
    let data = spoilt.len() - 64;
    spoilt[data..].fill(0xff);
    fs::write(&wrong, &spoilt).unwrap();
    let output = call(&["verify", arg(&file), arg(&wrong), "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["files"][0]["sound"], &report["files"][1]["sound"]), (&true.into(), &false.into()));
    assert!(report["files"][1]["problems"][0].as_str().unwrap().contains("NaN"), "{report}");
    bad(1, &["verify", "/no/such/file"]);
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let path = model("qwen2-tied");
    let sample = "It's a test: 1234 ß 日本 🦀";
    let ids = good(&["tokenize", arg(&path), sample, "--ids"]);
    assert_eq!(
        good(&["tokenize", arg(&path), "--decode", ids.trim(), "--no-special"]),
        format!("{sample}\n")
    );
    let seen = json(&["tokenize", arg(&path), sample]);
    let listed: Vec<String> = seen["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(listed.join(","), ids.trim());
    let special = |options: &[&str]| {
        let all = json(&[&["tokenize", arg(&path), "<|im_start|>"], options].concat());
        all["ids"].as_array().unwrap().len()
    };
    assert!(special(&["--parse-special"]) < special(&[]));
    let llama = model("llama-gqa");
    let count = |options: &[&str]| {
        json(&[&["tokenize", arg(&llama), "x"], options].concat())["ids"].as_array().unwrap().len()
    };
    assert_eq!(count(&[]), count(&["--no-special"]) + 1);
    bad(2, &["tokenize", arg(&path), "--decode", "99999999"]);
}

#[test]
fn a_model_is_no_distance_from_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model("llama-gqa");
    let sample = scratch.path().join("t.txt");
    fs::write(&sample, "It was a bright cold day in April, and the clocks were striking. ".repeat(12))
        .unwrap();
    let base = ["eval", arg(&path), "--text", arg(&sample), "--ctx", "64"];
    let alone = json(&base);
    assert!(alone["perplexity"]["value"].as_f64().unwrap() > 1.0);
    assert!(alone["divergence"].is_null());
    let same = json(&[&base[..], &["--reference", arg(&path)]].concat());
    assert_eq!(same["perplexity"], alone["perplexity"]);
    assert_eq!(same["divergence"]["same_top"]["value"], 1.0);
    // Sums of f32 terms that are 0 each but for rounding.
    assert!(same["divergence"]["mean"]["value"].as_f64().unwrap() < 1e-6);
    let small = gguf(scratch.path(), "llama-gqa", &["--quant", "Q4_0"]);
    let far = json(&["eval", arg(&small), "--text", arg(&sample), "--ctx", "64", "--reference", arg(&path)]);
    assert!(far["divergence"]["mean"]["value"].as_f64().unwrap() > 1e-6);
    assert!(good(&base).contains("perplexity"));
    bad(2, &["eval", arg(&path), "--text", arg(&sample), "--ctx", "100000"]);
    bad(2, &["eval", arg(&path), "--text", arg(&sample), "--reference", arg(&model("gemma3-window"))]);
    bad(1, &["eval", arg(&path), "--text", "/no/such/file"]);
}

#[test]
fn bench_measures() {
    let path = model("llama-gqa");
    let seen = json(&["bench", arg(&path), "-p", "16", "-n", "4", "-r", "2", "--threads", "1,2"]);
    let results = seen["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert!(results.iter().all(|r| r["tokens_per_second"].as_f64().unwrap() > 0.0));
    bad(2, &["bench", arg(&path), "-p", "0", "-n", "0"]);
    bad(2, &["bench", arg(&path), "-p", "100000"]);
    let deep =
        json(&["bench", arg(&path), "-p", "5", "-n", "4", "-r", "2", "--depth", "16", "--threads", "1"]);
    assert_eq!(deep["results"].as_array().unwrap().len(), 2);
    for result in deep["results"].as_array().unwrap() {
        assert_eq!((&result["depth"], result["seconds"].as_array().unwrap().len()), (&16.into(), 2));
    }
    bad(2, &["bench", arg(&path), "-p", "1", "-n", "1", "--depth", "100000"]);
    let packed = json(&["bench", arg(&path), "-p", "2", "-n", "2", "--cache-type-k", "F32"]);
    assert_eq!((&packed["cache_type_k"], &packed["cache_type_v"]), (&"F32".into(), &"F16".into()));
}

#[test]
fn lists_are_complete() {
    assert_eq!(json(&["models"])["architectures"].as_array().unwrap().len(), fonio_model::arch::ALL.len());
    let types = json(&["types"]);
    assert_eq!(types["types"].as_array().unwrap().len(), fonio_codec::list::ALL.len());
    assert!(types["recipes"].as_array().unwrap().iter().any(|r| r["name"] == "Q4_K_M"));
    assert!(good(&["models"]).contains("gemma3") && good(&["types"]).contains("Q4_K"));
}

#[test]
fn logits_refuse_what_makes_no_sense() {
    let scratch = tempfile::tempdir().unwrap();
    let path = model("llama-gqa");
    let out = scratch.path().join("x.safetensors");
    bad(2, &["logits", arg(&path), "--tokens", "99999999", "-o", arg(&out)]);
    fs::write(&out, "").unwrap();
    bad(2, &["logits", arg(&path), "--tokens", "1", "-o", arg(&out)]);
    assert_eq!(call(&["logits", arg(&path), "-o", arg(&out)]).status.code(), Some(2));
}

#[test]
fn the_readme_lists_the_architectures_that_there_are() {
    let table = good(&["models", "--markdown"]);
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    assert!(readme.contains(&table), "README.md lacks what `fonio models --markdown` prints:\n{table}");
    let listed = json(&["models"]);
    assert_eq!(listed["architectures"].as_array().unwrap().len(), table.lines().count() - 2);
}

#[test]
fn weights_without_configuration_are_recognized_and_it_is_said_what_was_assumed() {
    let scratch = tempfile::tempdir().unwrap();
    let weights = scratch.path().join("model.safetensors");
    fs::copy(model("llama-gqa").join("model.safetensors"), &weights).unwrap();
    let shown = good(&["inspect", arg(&weights)]);
    assert!(shown.contains("assumed") && shown.contains("LLaMA") && shown.contains("rotary base"), "{shown}");
    // Names of a kind whose sizes no shape tells.
    fs::copy(model("deepseek2-lite").join("model.safetensors"), &weights).unwrap();
    let shown = json(&["inspect", arg(&weights)]);
    let reason = shown["not_a_model_because"].as_str().unwrap();
    assert!(reason.contains("config.json") && reason.contains("DeepSeek"), "{reason}");
    fs::copy(model("llama-gqa").join("expected.safetensors"), &weights).unwrap();
    let shown = json(&["inspect", arg(&weights)]);
    assert!(shown["not_a_model_because"].as_str().unwrap().contains("config.json"));
}
