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
    bad(2, &["convert", arg(&file), "-o", arg(&scratch.path().join("z.cawsf"))]);
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
