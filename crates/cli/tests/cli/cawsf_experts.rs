//! CAWSF files of mixtures of experts: each expert's matrices are sums of their own.

use super::*;
use std::fs;

/// A CAWSF file of a tiny mixture.
fn mixture(folder: &Path, name: &str, more: &[&str]) -> PathBuf {
    let file = folder.join(name).with_extension("cawsf");
    let flags = ["--force", "--rank", "4", "--pq-d", "16", "--pq-k", "16"];
    good(&[&["convert", arg(&model(name)), "-o", arg(&file)], &flags[..], more].concat());
    file
}

fn floats(file: &Path, name: &str) -> Vec<f32> {
    let opened = fonio_checkpoint::open(file).unwrap();
    let bytes = opened.bytes(opened.find(name).unwrap()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

const STACK: &str = "blk.0.ffn_up_exps.weight";

#[test]
fn experts_become_sums() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("x.cawsf");
    let dry = call(&["convert", arg(&model("mixtral")), "-o", arg(&out), "--dry-run"]);
    // Four of attention and three times four experts in each of two layers.
    assert!(text(&dry.stderr).contains("32 matrices of") && !text(&dry.stderr).contains("whole"));
    let file = mixture(scratch.path(), "mixtral", &[]);
    let seen = json(&["inspect", arg(&file)]);
    let sums = seen["tensors"].as_array().unwrap().iter().filter(|t| t["sum"].is_string());
    assert_eq!(sums.clone().count(), 8 + 6);
    let stack = sums.clone().find(|t| t["name"] == STACK).unwrap();
    assert!(stack["sum"].as_str().unwrap().starts_with("4 × (L"), "{stack}");
    assert_eq!(json(&["verify", arg(&file)])["sound"], true);
    let source = model("mixtral");
    let made = |more: &[&str]| {
        let base = ["convert", arg(&source), "-o", arg(&out), "--force"];
        json(&[&base[..], more].concat())["sums"].clone()
    };
    assert_eq!(made(&[]), 32);
    assert_eq!(made(&["--max-layers", "1"]), 16);
    assert_eq!(made(&["--tensor-type", "_exps=Q8_0"]), 8);
    // Experts' matrices have 32 × 32 values, and so are they compared, not their stacks of 4,096.
    assert_eq!(made(&["--max-elems", "1024"]), 32);
    assert_eq!(made(&["--max-elems", "1023"]), 4, "keys and values are smaller");
    let bytes =
        |threads: &str| fs::read(mixture(scratch.path(), "mixtral", &["--threads", threads])).unwrap();
    assert!(bytes("1") == bytes("3"));
}

#[test]
fn the_text_is_the_same_however_experts_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["mixtral", "qwen2moe", "deepseek3"] {
        let file = mixture(scratch.path(), name, &[]);
        let base = ["run", arg(&file), "-p", "the cat", "-n", "12", "-t", "0", "--ignore-eos", "-c", "64"];
        let kept = |more: &[&str]| json(&[&base[..], more].concat());
        let mapped = kept(&["--residency", "mmap"]);
        let resident = kept(&["--residency", "resident"]);
        let plan = kept(&["--residency", "stream", "--plan"]);
        // The program itself does not take the same each time.
        let least = (plan["least_budget"].as_u64().unwrap() + (1 << 20)).to_string();
        let streamed = kept(&["--residency", "stream", "--budget", &least]);
        assert_eq!((&resident["text"], &resident["residency"]), (&mapped["text"], &"resident".into()));
        assert_eq!((&streamed["text"], &streamed["residency"]), (&mapped["text"], &"stream".into()));
    }
}

#[test]
fn a_matrix_of_a_stack_is_a_scope() {
    let scratch = tempfile::tempdir().unwrap();
    let file = mixture(scratch.path(), "mixtral", &[]);
    let all = scratch.path().join("all.safetensors");
    good(&["export", arg(&file), "-o", arg(&all), "--scope", STACK]);
    let whole = floats(&all, STACK);
    let gguf = scratch.path().join("m.gguf");
    good(&["convert", arg(&file), "-o", arg(&gguf), "--quant", "F32"]);
    assert_eq!(floats(&gguf, STACK), whole);
    good(&["export", arg(&file), "-o", arg(&gguf), "--force"]);
    assert_eq!(json(&["inspect", arg(&gguf)])["types"]["F16"]["tensors"], 14);
    for matrix in [0, 3] {
        let name = format!("{STACK}#{matrix}");
        let seen = json(&["apply", arg(&file), "--scope", &name, "--xlen", "32"]);
        assert_eq!(
            (&seen["name"], &seen["rows"], &seen["cols"]),
            (&name.clone().into(), &32.into(), &32.into())
        );
        let number = seen["scope"].to_string();
        assert_eq!(json(&["apply", arg(&file), "--scope", &number, "--xlen", "32"]), seen);
        let out = scratch.path().join("one.gguf");
        good(&["export", arg(&file), "-o", arg(&out), "--scope", &number, "--force"]);
        let w = &whole[matrix * 1024..][..1024];
        assert_eq!(floats(&out, &name), w);
        for (y, row) in seen["y"].as_array().unwrap().iter().zip(w.chunks(32)) {
            let want: f64 = row.iter().map(|w| f64::from(*w)).sum();
            let size: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
            assert!((y.as_f64().unwrap() - want).abs() <= size * 2f64.powi(-20), "{y} {want}");
        }
    }
    let hint = bad(2, &["apply", arg(&file), "--scope", STACK, "--xlen", "32"]);
    assert!(hint.contains(&format!("{STACK}#0 to {STACK}#3")), "{hint}");
    for wrong in [&format!("{STACK}#4"), &format!("{STACK}#x"), "blk.0.attn_q.weight#0", "999"] {
        bad(2, &["apply", arg(&file), "--scope", wrong, "--xlen", "32"]);
        bad(2, &["export", arg(&file), "-o", arg(&all), "--force", "--scope", wrong]);
    }
}

#[test]
fn texts_take_residuals_of_experts() {
    let scratch = tempfile::tempdir().unwrap();
    let file = mixture(scratch.path(), "mixtral", &[]);
    let shards = json(&["route", arg(&file), "-p", "the cat", "-k", "99"])["shards"].clone();
    let shards = shards.as_array().unwrap();
    assert_eq!(shards.len(), 32);
    let experts: Vec<_> =
        shards.iter().filter(|s| s["name"].as_str().unwrap().contains("_exps.weight#")).collect();
    assert_eq!(experts.len(), 24);
    for shard in experts.iter().take(3) {
        let (number, name) = (shard["scope"].to_string(), &shard["name"]);
        let seen = json(&["apply", arg(&file), "--scope", &number, "--xlen", "32"]);
        assert_eq!(&seen["name"], name, "its number is the one that other commands take");
    }
    let base = ["run", arg(&file), "-p", "the cat", "-n", "8", "-t", "0", "--ignore-eos"];
    let all = json(&base);
    let routed = |more: &[&str]| json(&[&base[..], more].concat())["text"].clone();
    assert_eq!(routed(&["--route", "3"]), all["text"]);
    let left = |k: &str| {
        let output = call(&[&base[..], &["--route", k, "--route-rest", "leave-out", "-v"]].concat());
        assert!(output.status.success());
        text(&output.stderr)
    };
    assert!(left("31").contains("31 residuals are kept"));
    let (none, last) = (left("1"), shards.last().unwrap()["name"].as_str().unwrap().to_owned());
    let is_out = |said: &str, name: &str| said.contains(&format!("left out: {name} ("));
    assert!(is_out(&none, &last) && is_out(&left("31"), &last), "{none}");
    assert!(!is_out(&none, shards[0]["name"].as_str().unwrap()), "{none}");
}
