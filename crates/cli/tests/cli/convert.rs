//! `fonio convert`.

use super::*;
use std::fs;
use std::path::Path;

#[test]
fn every_container_leads_to_every_other() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama-gqa", "llama-linear", "qwen2-tied", "qwen2-window", "gemma3-window"] {
        let first = gguf(scratch.path(), name, &[]);
        good(&["verify", arg(&first)]);
        let folder = scratch.path().join(format!("{name}-hf"));
        good(&["convert", arg(&first), "-o", arg(&folder)]);
        assert!(names(&folder).contains(&"config.json".to_owned()), "{name}");
        assert!(names(&folder).contains(&"tokenizer.json".to_owned()), "{name}");
        good(&["verify", arg(&folder)]);
        // The weights are the same as those that the first file was made of.
        let options = ["--tokens", "5,6,7,8,9"];
        let mut all = Vec::new();
        for (i, path) in [&model(name), &first, &folder].into_iter().enumerate() {
            let out = scratch.path().join(format!("{name}-{i}.safetensors"));
            good(&[&["logits", arg(path), "-o", arg(&out)], &options[..]].concat());
            all.push(fs::read(out).unwrap());
        }
        assert!(all[0] == all[1] && all[1] == all[2], "{name}");
        // And the tokens.
        let text = "Hello  world, it's 2026!\nß 日本";
        let tokens = |path: &Path| good(&["tokenize", arg(path), text, "--ids"]);
        assert_eq!(tokens(&first), tokens(&model(name)), "{name}");
        assert_eq!(tokens(&folder), tokens(&model(name)), "{name}");
    }
}

/// A file with its configuration and tokenizer in it, compressed: a GGUF file and a folder of it compute the same.
#[test]
fn qsf_files_become_whole_models() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("../../crates/checkpoint/tests/data/qsf/c_2bit_outlier_lz4.qsf");
    good(&["verify", arg(&source)]);
    let (gguf, folder) = (scratch.path().join("x.gguf"), scratch.path().join("hf"));
    good(&["convert", arg(&source), "-o", arg(&gguf)]);
    good(&["convert", arg(&source), "-o", arg(&folder)]);
    let mut all = Vec::new();
    for (i, path) in [&source, &gguf, &folder].into_iter().enumerate() {
        let out = scratch.path().join(format!("{i}.safetensors"));
        good(&["logits", arg(path), "-o", arg(&out), "--tokens", "5,6,7,8,9"]);
        all.push((fs::read(out).unwrap(), good(&["tokenize", arg(path), "abc!", "--ids"])));
    }
    assert!(all[0] == all[1] && all[1] == all[2]);
}

/// A QSF file computes what the GGUF file of the same types does, bit for bit, and becomes one again.
#[test]
fn qsf_is_written_and_computes_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let options = ["--tokens", "5,6,7,8,9"];
    let logits = |path: &Path| {
        let out = scratch.path().join("logits.safetensors");
        good(&[&["logits", arg(path), "-o", arg(&out), "--force"], &options[..]].concat());
        fs::read(out).unwrap()
    };
    for name in ["llama-gqa", "qwen2-tied", "mixtral", "qwen3moe", "rwkv7"] {
        for (quant, packed) in
            [("F32", &[][..]), ("Q8_0", &["--compress"]), ("Q8_0", &["--compress", "zstd"])]
        {
            let gguf = scratch.path().join(format!("{name}.gguf"));
            let qsf = scratch.path().join(format!("{name}.qsf"));
            good(&["convert", arg(&model(name)), "-o", arg(&gguf), "--quant", quant, "--force"]);
            let source = model(name);
            let qsf_of = ["convert", arg(&source), "-o", arg(&qsf), "--quant", quant, "--force"];
            good(&[&qsf_of[..], packed].concat());
            good(&["verify", arg(&qsf)]);
            assert_eq!(json(&["inspect", arg(&qsf)])["container"], "qsf");
            assert!(logits(&qsf) == logits(&gguf), "{name} {quant}");
            // A GGUF file becomes the same QSF file, and that the same GGUF file again.
            let (qsf2, gguf2) = (scratch.path().join("2.qsf"), scratch.path().join("2.gguf"));
            let of_gguf = ["convert", arg(&gguf), "-o", arg(&qsf2), "--quant", quant, "--force"];
            good(&[&of_gguf[..], packed].concat());
            assert!(fs::read(&qsf2).unwrap() == fs::read(&qsf).unwrap(), "{name} {quant}");
            good(&["convert", arg(&qsf), "-o", arg(&gguf2), "--force"]);
            assert!(fs::read(&gguf2).unwrap() == fs::read(&gguf).unwrap(), "{name} {quant}");
        }
        let text = "Hello  world, it's 2026!\nß 日本";
        let tokens = |path: &Path| good(&["tokenize", arg(path), text, "--ids"]);
        assert_eq!(tokens(&scratch.path().join(format!("{name}.qsf"))), tokens(&model(name)), "{name}");
    }
}

#[test]
fn qsf_types_and_outliers() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["llama-gqa", "mixtral"] {
        let source = model(name);
        let made = |quant: &str, more: &[&str]| {
            let out = at(&format!("{name}-{quant}.qsf"));
            let call =
                ["convert", arg(&source), "-o", arg(&out), "--quant", quant, "--block-size", "32", "--force"];
            let done = json(&[&call[..], more].concat());
            good(&["verify", arg(&out)]);
            (out, done)
        };
        let mut sizes = Vec::new();
        for quant in ["2bit", "2bit_sym", "3bit", "4bit", "4bit_sym", "8bit", "ternary", "fp16"] {
            let (_, done) = made(quant, &[]);
            sizes.push((done["bits_per_weight"].as_f64().unwrap(), quant));
        }
        for quant in ["2bit_outlier", "3bit_outlier", "4bit_outlier"] {
            let (out, done) = made(quant, &["--outlier-frac", "0.02"]);
            let plain = quant.trim_end_matches("_outlier");
            let bits = done["bits_per_weight"].as_f64().unwrap();
            assert!(sizes.iter().any(|(b, q)| *q == plain && bits > *b), "{quant}: {bits} {sizes:?}");
            assert!(done["types"]["U32"]["tensors"].as_u64().unwrap() > 2);
            // The same bytes on one thread, and compressed it holds the same.
            let one = at("one.qsf");
            let call = ["convert", arg(&source), "-o", arg(&one), "--quant", quant, "--block-size", "32"];
            let more = ["--outlier-frac", "0.02", "--threads", "1", "--force"];
            good(&[&call[..], &more].concat());
            assert!(fs::read(&one).unwrap() == fs::read(&out).unwrap(), "{name} {quant}");
            let logits = |path: &Path| {
                let out = at("logits.safetensors");
                good(&["logits", arg(path), "-o", arg(&out), "--tokens", "5,6,7", "--force"]);
                fs::read(out).unwrap()
            };
            let want = logits(&out);
            let (packed, _) = made(quant, &["--outlier-frac", "0.02", "--compress"]);
            assert!(logits(&packed) == want);
            // Other containers hold the sum, in half precision.
            let (gguf, folder) = (at(&format!("{name}-{quant}.gguf")), at(&format!("{name}-{quant}")));
            good(&["convert", arg(&packed), "-o", arg(&gguf)]);
            good(&["convert", arg(&packed), "-o", arg(&folder)]);
            good(&["verify", arg(&gguf), arg(&folder)]);
        }
    }
    // Four bits are what QSF files get if nothing is said.
    let out = at("default.qsf");
    let types = json(&["convert", arg(&model("llama-gqa")), "-o", arg(&out)])["types"].clone();
    assert!(types.as_object().unwrap().keys().any(|t| t.starts_with("4bit_")), "{types}");
    let gguf = at("x.gguf");
    let source = model("llama-gqa");
    for (more, part) in [
        (&["-o", arg(&gguf), "--quant", "4bit"][..], "only QSF files"),
        (&["-o", arg(&gguf), "--compress"], "--compress: not for"),
        (&["-o", arg(&at("y.qsf")), "--block-size", "48"], "blocks of 48"),
        (&["-o", arg(&at("y.qsf")), "--quant", "2bit_outlier", "--outlier-frac", "0.9"], "outliers"),
        (&["-o", arg(&at("y.qsf")), "--max-shard-size", "1MB"], "not split"),
        (&["-o", arg(&at("y.qsf")), "--quant", "5bit"], "5bit"),
    ] {
        let said = bad(2, &[&["convert", arg(&source)], more].concat());
        assert!(said.contains(part), "{said}");
    }
    assert!(!gguf.exists() && !at("y.qsf").exists());
}

#[test]
fn folders_of_any_architecture_stay_what_they_are() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("half");
    let source = model("gemma3-vision");
    let done = json(&["convert", arg(&source), "-o", arg(&out), "--quant", "F16"]);
    assert_eq!(done["container"], "safetensors");
    let (old, new) = (json(&["inspect", arg(&source)]), json(&["inspect", arg(&out)]));
    let count = |v: &serde_json::Value| v["tensors"].as_array().unwrap().len();
    assert_eq!(count(&old), count(&new), "the vision tower stays");
    assert!(new["types"].as_object().unwrap().keys().all(|t| t == "F16"));
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    assert!(config.contains("float16") && !config.contains("bfloat16"), "{config}");
}

#[test]
fn folders_that_are_quantized_become_plain_ones() {
    let scratch = tempfile::tempdir().unwrap();
    let options = ["--tokens", "5,6,7,8,9"];
    let logits = |path: &Path, out: &Path| {
        good(&[&["logits", arg(path), "-o", arg(out), "--force"], &options[..]].concat());
        fs::read(out).unwrap()
    };
    for name in ["llama-gptq4", "llama-awq4", "llama-ct-int8", "llama-fp8-block", "gpt-oss-mxfp4"] {
        let source = model(name);
        let seen = json(&["inspect", arg(&source)]);
        let (folder, file) = (scratch.path().join(name), scratch.path().join(format!("{name}.gguf")));
        good(&["convert", arg(&source), "-o", arg(&folder), "--quant", "F32"]);
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        // Experts in MXFP4 stay what they are.
        assert_eq!(config.contains("quantization_config"), name == "gpt-oss-mxfp4", "{name}");
        good(&["verify", arg(&folder)]);
        good(&["convert", arg(&source), "-o", arg(&file), "--quant", "F32"]);
        assert_eq!(seen["parameters"], json(&["inspect", arg(&file)])["parameters"], "{name}");
        let out = scratch.path().join("logits.safetensors");
        if name != "gpt-oss-mxfp4" {
            assert!(logits(&folder, &out) == logits(&file, &out), "{name}");
        }
        // As it is, planes and all.
        let same = scratch.path().join(format!("{name}-same"));
        good(&["convert", arg(&source), "-o", arg(&same)]);
        assert!(logits(&same, &out) == logits(&source, &out), "{name}");
    }
}

#[test]
fn experts_in_mxfp4_go_to_gguf_and_back_unchanged() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("gpt-oss-mxfp4");
    // Whatever the other weights become: these were trained as they are.
    for (i, quant) in [&[][..], &["--quant", "Q4_0"], &["--quant", "Q8_0"]].into_iter().enumerate() {
        let (file, folder) =
            (gguf(scratch.path(), "gpt-oss-mxfp4", quant), scratch.path().join(i.to_string()));
        good(&["convert", arg(&file), "-o", arg(&folder)]);
        same_planes(&source, &folder);
        fs::remove_file(&file).unwrap();
    }
}

fn same_planes(source: &Path, folder: &Path) {
    let (old, new) = (source.join("model.safetensors"), folder.join("model.safetensors"));
    let (old, new) = (fonio_checkpoint::open(&old).unwrap(), fonio_checkpoint::open(&new).unwrap());
    let mut planes = 0;
    for (at, info) in old.tensors().iter().enumerate() {
        let there = new.find(&info.name).unwrap_or_else(|| panic!("{}", info.name));
        assert_eq!(new.tensors()[there].shape, info.shape, "{}", info.name);
        if info.name.ends_with("_blocks") || info.name.ends_with("_scales") {
            planes += 1;
            assert!(old.bytes(at).unwrap() == new.bytes(there).unwrap(), "{}", info.name);
        }
    }
    assert!(planes >= 4);
    assert!(fs::read_to_string(folder.join("config.json")).unwrap().contains("mxfp4"));
}

#[test]
fn quantized_files_are_smaller_sound_and_run() {
    let scratch = tempfile::tempdir().unwrap();
    let full = gguf(scratch.path(), "llama-gqa", &[]);
    for quant in ["Q8_0", "Q4_K_M", "Q4_0", "q6_k", "IQ4_NL", "F32"] {
        let out = scratch.path().join("out.gguf");
        let done = json(&["convert", arg(&full), "-o", arg(&out), "--quant", quant, "--force"]);
        assert_eq!(done["container"], "gguf");
        let bits = done["bits_per_weight"].as_f64().unwrap();
        assert!(bits < if quant == "F32" { 32.1 } else { 16.5 }, "{quant}: {bits}");
        good(&["verify", arg(&out)]);
        let ran = json(&["run", arg(&out), "-p", "Hello", "-n", "4", "-t", "0", "--ignore-eos"]);
        assert_eq!(ran["tokens"], 4);
    }
}

#[test]
fn overrides_say_types_by_pattern() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out.gguf");
    let source = model("llama-gqa");
    let types = ["--quant", "Q8_0", "--tensor-type", "blk\\.0\\.ffn_.*=F16", "--tensor-type", "attn_q=BF16"];
    good(&[&["convert", arg(&source), "-o", arg(&out)], &types[..]].concat());
    let tensors = json(&["inspect", arg(&out)])["tensors"].clone();
    for tensor in tensors.as_array().unwrap() {
        let (name, dtype) = (tensor["name"].as_str().unwrap(), tensor["type"].as_str().unwrap());
        if name.contains("norm") {
            assert_eq!(dtype, "F32", "{name}");
        } else if name.starts_with("blk.0.ffn_") {
            assert_eq!(dtype, "F16", "{name}");
        } else if name.contains("attn_q") {
            assert_eq!(dtype, "BF16", "{name}");
        }
    }
    for wrong in ["attn_q", "attn_q=Q9", "attn_q=Q8_K", "(=F16", "nothing_has_this=F16"] {
        let out = scratch.path().join("no.gguf");
        bad(2, &["convert", arg(&source), "-o", arg(&out), "--tensor-type", wrong]);
        assert!(!out.exists());
    }
}

#[test]
fn bytes_are_the_same_at_any_number_of_threads() {
    let scratch = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for threads in ["1", "2", "3"] {
        let out = scratch.path().join(format!("{threads}.gguf"));
        let source = model("gemma3-window");
        good(&["convert", arg(&source), "-o", arg(&out), "--quant", "Q4_K_M", "--threads", threads]);
        all.push(fs::read(out).unwrap());
    }
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[test]
fn existing_outputs_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("llama-gqa");
    let out = scratch.path().join("out.gguf");
    fs::write(&out, "precious").unwrap();
    let said = bad(2, &["convert", arg(&source), "-o", arg(&out)]);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    good(&["convert", arg(&source), "-o", arg(&out), "--force"]);
    good(&["verify", arg(&out)]);

    let folder = scratch.path().join("folder");
    good(&["convert", arg(&source), "-o", arg(&folder)]);
    let before = names(&folder);
    bad(2, &["convert", arg(&source), "-o", arg(&folder)]);
    // What stands beside the weights counts as well.
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    bad(2, &["convert", arg(&source), "-o", arg(&folder)]);
    assert!(!folder.join("model.safetensors").exists());
    good(&["convert", arg(&source), "-o", arg(&folder), "--force"]);
    assert_eq!(names(&folder), before);
}

#[test]
fn a_source_is_never_its_output() {
    let scratch = tempfile::tempdir().unwrap();
    let file = gguf(scratch.path(), "llama-gqa", &[]);
    let bytes = fs::read(&file).unwrap();
    for out in [file.clone(), scratch.path().join("./llama-gqa.gguf")] {
        bad(2, &["convert", arg(&file), "-o", arg(&out), "--quant", "Q8_0", "--force"]);
    }
    #[cfg(unix)]
    {
        let link = scratch.path().join("link.gguf");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        bad(2, &["convert", arg(&file), "-o", arg(&link), "--quant", "Q8_0", "--force"]);
    }
    assert_eq!(fs::read(&file).unwrap(), bytes);
    let folder = scratch.path().join("hf");
    good(&["convert", arg(&file), "-o", arg(&folder)]);
    bad(2, &["convert", arg(&folder), "-o", arg(&folder), "--force"]);
    good(&["verify", arg(&folder)]);
}

#[test]
fn unwritable_places_and_containers_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("llama-gqa");
    let nowhere = scratch.path().join("no/such/folder/x.gguf");
    bad(1, &["convert", arg(&source), "-o", arg(&nowhere)]);
    for name in ["x.pt", "x.bin", "x.docx"] {
        let out = scratch.path().join(name);
        bad(2, &["convert", arg(&source), "-o", arg(&out)]);
    }
    let out = scratch.path().join("x.safetensors");
    bad(2, &["convert", arg(&source), "-o", arg(&out), "--quant", "Q4_0"]);
    bad(2, &["convert", arg(&source), "-o", arg(&out), "--to", "pytorch"]);
    bad(2, &["convert", arg(&source), "-o", arg(&out), "--quant", "F16", "--tensor-type", "a=F16"]);
    let out = scratch.path().join("x.gguf");
    bad(2, &["convert", arg(&source), "-o", arg(&out), "--quant", "Q9_Z"]);
    bad(2, &["convert", arg(&source), "-o", arg(&out), "--quant", "IQ1_S"]);
    bad(1, &["convert", "no-such-model", "-o", arg(&out)]);
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}

#[test]
fn dry_runs_write_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("x.gguf");
    let source = model("llama-gqa");
    let done = json(&["convert", arg(&source), "-o", arg(&out), "--quant", "Q8_0", "--dry-run"]);
    assert_eq!(done["dry_run"], true);
    assert!(done["types"]["Q8_0"]["tensors"].as_u64().unwrap() > 0);
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}

#[test]
fn outputs_can_be_split() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("llama-gqa");
    let out = scratch.path().join("x.gguf");
    let done = json(&["convert", arg(&source), "-o", arg(&out), "--max-shard-size", "30K"]);
    let files = done["files"].as_array().unwrap().len();
    assert!(files > 1);
    let first = scratch.path().join(format!("x-00001-of-{files:05}.gguf"));
    good(&["verify", arg(&first)]);
    good(&["run", arg(&first), "-p", "Hi", "-n", "2"]);

    let folder = scratch.path().join("hf");
    good(&["convert", arg(&first), "-o", arg(&folder), "--split-max-tensors", "5"]);
    assert!(folder.join("model.safetensors.index.json").exists());
    good(&["verify", arg(&folder)]);
}

/// A file size limit ends writes with an error where a full disk would.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let source = model("llama-gqa");
    for out in ["x.gguf", "folder"] {
        let out = scratch.path().join(out);
        // Sixteen blocks of 512 bytes are less than the weights. SIGXFSZ is ignored, as a program's parent may do.
        let program = assert_cmd::cargo::cargo_bin!("fonio");
        let line = format!(
            "trap '' XFSZ; ulimit -f 16; exec {} convert {} -o {}",
            program.display(),
            source.display(),
            out.display()
        );
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).starts_with("fonio: "), "{}", text(&output.stderr));
    }
    assert_eq!(names(scratch.path()), Vec::<String>::new());
}
