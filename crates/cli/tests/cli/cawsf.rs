//! CAWSF files: what is said about them, routing, products, the dense matrices.

use super::*;
use std::fs;

fn real() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoint/tests/data/cawsf/test_partial_arch.cawsf")
}

#[test]
fn it_is_sound_and_no_model() {
    let file = real();
    let report = json(&["verify", arg(&file)]);
    assert_eq!(report["sound"], true);
    let report = &report["files"][0];
    assert_eq!((&report["container"], &report["checksums"]), (&"cawsf".into(), &4.into()));
    assert_eq!((&report["values"], &report["architecture"]), (&393_216.into(), &serde_json::Value::Null));
    let seen = json(&["inspect", arg(&file)]);
    assert_eq!((&seen["container"], &seen["parameters"]), (&"cawsf".into(), &393_216.into()));
    assert_eq!(seen["tensors"][0]["shape"], serde_json::json!([256, 1536]));
    assert!(seen["metadata"]["cawsf.hf_config"].as_str().unwrap().contains("qwen2"));
    let why = seen["not_a_model_because"].as_str().unwrap();
    assert!(why.contains("norms and vocabulary") && why.contains("convert"), "{why}");
    assert!(bad(1, &["run", arg(&file), "-p", "x"]).contains("norms and vocabulary"));

    let scratch = tempfile::tempdir().unwrap();
    let wrong = scratch.path().join("wrong.cawsf");
    let mut bytes = fs::read(&file).unwrap();
    // A key of the routing table: the checksum alone tells.
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    fs::write(&wrong, &bytes).unwrap();
    let output = call(&["verify", arg(&wrong)]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("checksum of chunk 0"), "{}", text(&output.stdout));
}

#[test]
fn dense_matrices_are_written() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("y.safetensors");
    // By itself, so that no other files are beside it.
    let file = scratch.path().join("x.cawsf");
    fs::copy(real(), &file).unwrap();
    good(&["convert", arg(&file), "-o", arg(&out)]);
    let opened = fonio_checkpoint::open(&out).unwrap();
    let source = fonio_checkpoint::open(&file).unwrap();
    assert_eq!(opened.tensors()[0].name, source.tensors()[0].name);
    assert!(opened.bytes(0).unwrap() == source.bytes(0).unwrap());
    let half = scratch.path().join("half.safetensors");
    good(&["convert", arg(&file), "-o", arg(&half), "--quant", "F16"]);
    assert_eq!(json(&["inspect", arg(&half)])["tensors"][0]["type"], "F16");
    let why = bad(1, &["convert", arg(&file), "-o", arg(&scratch.path().join("y.gguf"))]);
    assert!(why.contains("norms and vocabulary") && why.contains(".safetensors"), "{why}");
    assert_eq!(names(scratch.path()), ["half.safetensors", "x.cawsf", "y.safetensors"]);
}

#[test]
fn prompts_take_shards() {
    let file = real();
    let route = |more: &[&str]| json(&[&["route", arg(&file), "-p", "hello world"], more].concat());
    let all = route(&[]);
    let shards = all["shards"].as_array().unwrap();
    assert_eq!((shards.len(), &all["k"], &all["budget"]), (4, &8.into(), &serde_json::Value::Null));
    assert!(shards.is_sorted_by(|a, b| a["cosine"].as_f64() >= b["cosine"].as_f64()));
    let mut kinds: Vec<&str> = shards.iter().map(|s| s["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["D", "L", "R", "S"]);
    assert_eq!(route(&["-k", "1"])["shards"].as_array().unwrap()[..], shards[..1]);
    assert_eq!(route(&["--k", "8", "--budget", "0"])["shards"], all["shards"]);
    // Dense shards cost 0.75 MiB each: the two others fit, whatever their rank.
    let cheap = route(&["--budget", "0.03"]);
    assert!(cheap["shards"].as_array().unwrap().len() == 2 && cheap["cost"].as_f64().unwrap() < 0.03);
    assert!(good(&["route", arg(&file), "-p", ""]).contains("4 shards"));
    bad(2, &["route", arg(&file), "-p", "x", "-k", "0"]);
    bad(2, &["route", arg(&file), "-p", "x", "--budget=-1"]);
    bad(1, &["route", arg(&model("llama-gqa").join("model.safetensors")), "-p", "x"]);
}

#[test]
fn vectors_go_through_a_matrix() {
    let scratch = tempfile::tempdir().unwrap();
    let file = real();
    let source = fonio_checkpoint::open(&file).unwrap();
    let w: Vec<f32> =
        source.bytes(0).unwrap().as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    // The first column: one weight of a row is multiplied with 1, all others with 0, so that only the roundings of
    // the sum of four parts are left, 3 · 2⁻²⁴ of parts below 1.
    let x = scratch.path().join("x.f32");
    let mut bytes = vec![0; 1536 * 4];
    bytes[..4].copy_from_slice(&1f32.to_le_bytes());
    fs::write(&x, &bytes).unwrap();
    let seen = json(&["apply", arg(&file), "--scope", "0", "--x", arg(&x)]);
    assert_eq!((&seen["rows"], &seen["cols"]), (&256.into(), &1536.into()));
    let y: Vec<f64> = seen["y"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(y.len(), 256);
    for (y, row) in y.iter().zip(w.chunks(1536)) {
        assert!((y - f64::from(row[0])).abs() <= 3.0 * 2f64.powi(-24), "{y} {}", row[0]);
    }
    assert_eq!(good(&["apply", arg(&file), "--scope", "0", "--xlen", "1536"]).lines().count(), 256);
    fs::write(&x, &bytes[4..]).unwrap();
    for wrong in [
        &["--scope", "0", "--x", arg(&x)][..],
        &["--scope", "0", "--xlen", "1535"],
        &["--scope", "1", "--xlen", "1536"],
    ] {
        bad(2, &[&["apply", arg(&file)], wrong].concat());
    }
    for wrong in [&["--scope", "0"][..], &["--scope", "0", "--xlen", "1536", "--x", "f"]] {
        assert_eq!(call(&[&["apply", arg(&file)], wrong].concat()).status.code(), Some(2));
    }
}

/// A file of version 2 of a tiny model, and the model's own file as GGUF in 32 bits.
fn second(folder: &Path, more: &[&str]) -> (PathBuf, PathBuf) {
    let (dense, file) = (folder.join("dense.gguf"), folder.join("m.cawsf"));
    if !dense.exists() {
        good(&["convert", arg(&model("llama-gqa")), "-o", arg(&dense), "--quant", "F32"]);
    }
    good(&[&["convert", arg(&dense), "-o", arg(&file), "--force"], more].concat());
    (dense, file)
}

fn logits(file: &Path, out: &Path) -> Vec<f32> {
    good(&["logits", arg(file), "--tokens", "5,9,11,3", "-o", arg(out), "--force"]);
    let opened = fonio_checkpoint::open(out).unwrap();
    let bytes = opened.bytes(opened.find("logits").unwrap()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

#[test]
fn a_model_becomes_sums_and_runs() {
    let scratch = tempfile::tempdir().unwrap();
    let (dense, file) = second(scratch.path(), &[]);
    let report = json(&["verify", arg(&file)]);
    assert_eq!((&report["sound"], &report["files"][0]["architecture"]), (&true.into(), &"llama".into()));
    assert!(report["files"][0]["checksums"].as_u64().unwrap() > 10);
    let seen = json(&["inspect", arg(&file)]);
    assert_eq!(seen["model"]["architecture"], "llama");
    assert!(seen["types"]["sum"]["tensors"].as_u64().unwrap() >= 7);
    assert!(good(&["inspect", arg(&file), "--tensors"]).contains("L"));
    // Half of it is what 16-bit numbers take.
    assert!(fs::metadata(&file).unwrap().len() < fs::metadata(&dense).unwrap().len() / 2);
    good(&["run", arg(&file), "-p", "the", "-n", "2"]);
    let gguf = scratch.path().join("back.gguf");
    good(&["convert", arg(&file), "-o", arg(&gguf)]);
    let exported = scratch.path().join("exported.gguf");
    good(&["export-gguf", arg(&file), "-o", arg(&exported)]);
    assert!(fs::read(&exported).unwrap() == fs::read(&gguf).unwrap());
    let folder = scratch.path().join("folder");
    good(&["export", arg(&file), "-o", arg(&folder)]);
    assert!(folder.join("config.json").is_file() && folder.join("model.safetensors").is_file());
    good(&["convert", arg(&file), "-o", arg(&scratch.path().join("q.gguf")), "--quant", "Q4_K_M"]);
}

/// Multiplied term by term, sums say what their dense matrices say, but for the order of additions.
#[test]
fn sums_compute_what_dense_matrices_compute() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, file) = second(scratch.path(), &["--quant", "F32", "--band", "2", "--rank", "4"]);
    let (gguf, out) = (scratch.path().join("back.gguf"), scratch.path().join("l.safetensors"));
    good(&["convert", arg(&file), "-o", arg(&gguf), "--quant", "F32"]);
    let (ours, dense) = (logits(&file, &out), logits(&gguf, &out));
    assert_eq!(ours.len(), dense.len());
    let far = ours.iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = dense.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(far <= largest * 1e-4, "{far} of {largest}");
}

#[test]
fn residuals_that_a_text_does_not_choose_are_streamed_or_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, file) = second(scratch.path(), &[]);
    let base = ["run", arg(&file), "-p", "the", "-n", "6", "-t", "0", "--ignore-eos"];
    let all = json(&base);
    let routed = json(&[&base[..], &["--route", "2"]].concat());
    assert_eq!((&routed["text"], &routed["residency"]), (&all["text"], &"stream".into()));
    let plan = json(&[&base[..], &["--route", "2", "--plan"]].concat());
    let streamed = plan["streamed"].as_array().unwrap();
    assert!(!streamed.is_empty() && streamed.iter().all(|p| p["part"].as_str().unwrap().ends_with("rest")));
    let output = call(&[&base[..], &["--route", "2", "--route-rest", "leave-out"]].concat());
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("2 residuals are kept") && said.contains("left out"),
        "{said}"
    );
    bad(2, &["run", arg(&file), "--plan", "--route", "2"]);
}

#[test]
fn what_is_switched_off_is_not_there() {
    let scratch = tempfile::tempdir().unwrap();
    let none = ["--rank", "0", "--band", "0", "--outlier-q", "1", "--pq-m", "0"];
    let (_, file) = second(scratch.path(), &none);
    let tensors = json(&["inspect", arg(&file)])["tensors"].clone();
    assert!(tensors.as_array().unwrap().iter().all(|t| t["sum"].is_null()));
    let (_, file) =
        second(scratch.path(), &["--rank", "2", "--band", "1", "--outlier-q", "0.99", "--pq-m", "0"]);
    let seen = json(&["inspect", arg(&file)]);
    let sum = seen["tensors"].as_array().unwrap().iter().find_map(|t| t["sum"].as_str()).unwrap().to_owned();
    assert!(sum.starts_with("L2 + D1 + S") && !sum.contains('R'), "{sum}");
    let (dense, file) = second(scratch.path(), &["--max-layers", "1", "--quant", "F32"]);
    let seen = json(&["inspect", arg(&file)]);
    let of = |layer: &str| {
        let tensors = seen["tensors"].as_array().unwrap().iter();
        tensors.filter(|t| t["name"].as_str().unwrap().starts_with(layer) && t["sum"].is_string()).count()
    };
    assert!(of("blk.0.") > 0 && of("blk.1.") == 0);
    let (_, file) = second(scratch.path(), &["--max-elems", "1", "--quant", "F32"]);
    let out = scratch.path().join("l.safetensors");
    assert_eq!(logits(&file, &out), logits(&dense, &out), "nothing is decomposed");
    good(&["run", arg(&file), "-p", "the", "-n", "1"]);
}

#[test]
fn threads_change_no_byte() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = |more: &[&str]| fs::read(second(scratch.path(), more).1).unwrap();
    let one = bytes(&["--threads", "1"]);
    assert!(bytes(&["--threads", "3"]) == one);
    assert!(bytes(&["--threads", "1", "--seed", "1"]) != one);
    assert!(bytes(&["--threads", "1", "--calibration", "none"]) != one);
}

#[test]
fn prompts_take_shards_of_version_2() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, file) = second(scratch.path(), &["--pq-d", "16", "--pq-k", "16"]);
    let route = |prompt: &str, more: &[&str]| json(&[&["route", arg(&file), "-p", prompt], more].concat());
    let all = route("the cat", &["-k", "999"]);
    let shards = all["shards"].as_array().unwrap();
    assert!(shards.len() >= 7 && shards.iter().all(|s| s["kind"] == "R"));
    assert!(shards.is_sorted_by(|a, b| a["rate"].as_f64() >= b["rate"].as_f64()));
    assert!(shards.iter().all(|s| (0.0..=1.5).contains(&s["worth"].as_f64().unwrap())));
    assert_eq!(route("the cat", &["-k", "2"])["shards"].as_array().unwrap()[..], shards[..2]);
    let least = shards.iter().map(|s| s["cost"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    let budget = (least * 2.01).to_string();
    assert!(route("the cat", &["--budget", &budget])["cost"].as_f64().unwrap() <= least * 2.01);
    assert!(good(&["route", arg(&file), "-p", ""]).contains("8 shards"));
    let (_, file) = second(scratch.path(), &["--calibration", "none"]);
    assert!(bad(1, &["route", arg(&file), "-p", "x"]).contains("routing"));
}

#[test]
fn one_matrix_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let (_, file) = second(scratch.path(), &[]);
    let name = "blk.1.ffn_down.weight";
    let out = scratch.path().join("w.safetensors");
    good(&["export", arg(&file), "-o", arg(&out), "--scope", name]);
    let opened = fonio_checkpoint::open(&out).unwrap();
    let info = &opened.tensors()[0];
    let cols = info.shape[1] as usize;
    let w: Vec<f32> =
        opened.bytes(0).unwrap().as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let cols_text = cols.to_string();
    let seen = json(&["apply", arg(&file), "--scope", name, "--xlen", &cols_text]);
    assert_eq!(seen["name"], name);
    for (y, row) in seen["y"].as_array().unwrap().iter().zip(w.chunks(cols)) {
        let want: f64 = row.iter().map(|w| f64::from(*w)).sum();
        let size: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
        assert!((y.as_f64().unwrap() - want).abs() <= size * 2f64.powi(-20), "{y} {want}");
    }
    let number = seen["scope"].to_string();
    assert_eq!(json(&["apply", arg(&file), "--scope", &number, "--xlen", &cols_text])["y"], seen["y"]);
    let folder = scratch.path().join("one");
    good(&["export", arg(&file), "-o", arg(&folder), "--scope", &number]);
    assert_eq!(names(&folder), [format!("{name}.safetensors")]);
    bad(2, &["apply", arg(&file), "--scope", "no such", "--xlen", "1"]);
    bad(2, &["apply", arg(&file), "--scope", "blk.0.attn_norm.weight", "--xlen", "1"]);
}

#[test]
fn matrices_without_a_model() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("one.cawsf");
    fs::copy(real(), &file).unwrap();
    let out = scratch.path().join("two.cawsf");
    let flags = ["--rank", "16", "--pq-m", "64", "--band", "1"];
    let made = json(&[&["convert", arg(&file), "-o", arg(&out)], &flags[..]].concat());
    assert_eq!(made["sums"], 1);
    assert!(made["relative_error"].as_f64().unwrap() < 0.2, "{made}");
    // What grew to 873,510 bytes with version 1.
    assert!(fs::metadata(&out).unwrap().len() < 786_432 / 2);
    assert_eq!(json(&["verify", arg(&out)])["sound"], true);
    let gguf = scratch.path().join("plain.gguf");
    good(&["export", arg(&out), "-o", arg(&gguf)]);
    assert_eq!(json(&["inspect", arg(&gguf)])["tensors"][0]["shape"], serde_json::json!([256, 1536]));
}

#[test]
fn senseless_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let (dense, file) = second(scratch.path(), &[]);
    let out = scratch.path().join("o.cawsf");
    for wrong in [&["--outlier-q", "2"][..], &["--pq-m", "7"], &["--pq-k", "300"], &["--quant", "Q9"]] {
        bad(2, &[&["convert", arg(&dense), "-o", arg(&out)], wrong].concat());
    }
    bad(2, &["convert", arg(&dense), "-o", arg(&file)]);
    bad(2, &["convert", arg(&file), "-o", arg(&file), "--force"]);
    bad(2, &["convert", arg(&dense), "-o", arg(&scratch.path().join("o.gguf")), "--rank", "3"]);
    bad(1, &["convert", arg(&dense), "-o", arg(&out), "--calibration", "/nonexistent"]);
    assert_eq!(names(scratch.path()), ["dense.gguf", "m.cawsf"]);
    let wrong = scratch.path().join("wrong.cawsf");
    let mut bytes = fs::read(&file).unwrap();
    bytes[5000] ^= 1;
    fs::write(&wrong, &bytes).unwrap();
    assert_eq!(call(&["verify", arg(&wrong)]).status.code(), Some(3));
}
