//! `--residency stream` with a budget that the model does not fit into, and with files that change meanwhile.

use super::*;
use fonio_checkpoint::{TensorPlan, WriteOptions, list};
use std::io::Read;
use std::time::{Duration, Instant};

const LAYERS: u64 = 8;
const DIM: u64 = 512;
const FFN: u64 = 1024;
/// Beyond the smallest budget: what the program itself takes differs a little from run to run.
const SPARE: u64 = 4 << 20;

/// A model with the vocabulary of `llama-gqa` and 42 MB of weights that nobody trained: layers must be large beside
/// [`SPARE`], or all of them would be held.
fn large(folder: &Path) -> PathBuf {
    let small = fonio_checkpoint::open(&gguf(folder, "llama-gqa", &[])).unwrap();
    let vocab = small.tensors()[small.find("token_embd.weight").unwrap()].shape[0];
    let mut metadata = small.metadata().clone();
    let counts = [
        ("block_count", LAYERS),
        ("context_length", 4096),
        ("embedding_length", DIM),
        ("feed_forward_length", FFN),
        ("attention.head_count", 8),
        ("attention.head_count_kv", 8),
        ("attention.key_length", DIM / 8),
        ("attention.value_length", DIM / 8),
        ("rope.dimension_count", DIM / 8),
    ];
    for (key, count) in counts {
        metadata.insert(format!("llama.{key}"), count as u32);
    }
    let (half, float) = (fonio_codec::list::F16, fonio_codec::list::F32);
    let mut plan = vec![TensorPlan::new("token_embd.weight", half, [vocab, DIM])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, dtype, shape: &[u64]| {
            plan.push(TensorPlan::new(format!("blk.{layer}.{name}.weight"), dtype, shape));
        };
        add("attn_norm", float, &[DIM]);
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            add(name, half, &[DIM, DIM]);
        }
        add("ffn_norm", float, &[DIM]);
        add("ffn_gate", half, &[FFN, DIM]);
        add("ffn_up", half, &[FFN, DIM]);
        add("ffn_down", half, &[DIM, FFN]);
    }
    plan.push(TensorPlan::new("output_norm.weight", float, [DIM]));
    plan.push(TensorPlan::new("output.weight", half, [vocab, DIM]));
    let path = folder.join("large.gguf");
    let create = list::named("gguf").unwrap().create.unwrap();
    let mut writer = create(&path, &metadata, &plan, &WriteOptions::default()).unwrap();
    let mut state = 1u64;
    // ±2⁻⁵ to ±2⁻⁴, about 1/√512: sign and mantissa by chance (xorshift64, Marsaglia 2003), the exponent fixed.
    let mut weight = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 32) as u16 & 0x83ff | 0x2800).to_le_bytes()
    };
    for tensor in &plan {
        let len = tensor.shape.iter().product::<u64>();
        let bytes: Vec<u8> = if tensor.dtype == half {
            (0..len).flat_map(|_| weight()).collect()
        } else {
            (0..len).flat_map(|_| 1f32.to_le_bytes()).collect()
        };
        writer.append(&bytes).unwrap();
    }
    writer.finish().unwrap();
    path
}

/// The arguments that stream a model within the smallest budget, or little more.
fn streamed(path: &Path, context: &str) -> Vec<String> {
    let base = ["run", arg(path), "-c", context, "--residency", "stream", "--threads", "2"];
    let plan = json(&[&base[..], &["--plan"]].concat());
    let budget = (plan["least_budget"].as_u64().unwrap() + SPARE).to_string();
    let base = [&base[..], &["--budget", &budget]].concat();
    let plan = json(&[&base[..], &["--plan"]].concat());
    let sizes = plan["streamed"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap());
    assert!(sizes.sum::<u64>() > path.metadata().unwrap().len() / 2, "more than half is streamed: {plan}");
    base.into_iter().map(str::to_owned).collect()
}

#[test]
fn what_does_not_fit_is_read_for_every_token() {
    let scratch = tempfile::tempdir().unwrap();
    let path = large(scratch.path());
    let ask = ["-p", "Hello", "-n", "6", "-t", "0", "--ignore-eos"];
    let want = json(&[&["run", arg(&path), "--residency", "mmap"], &ask[..]].concat());
    let streamed = streamed(&path, "64");
    let got = json(&[&streamed.iter().map(String::as_str).collect::<Vec<_>>()[..], &ask].concat());
    assert_eq!((&got["text"], &got["residency"]), (&want["text"], &"stream".into()));
    // The prompt and at least five tokens, of which each reads more than half.
    let (read, size) = (got["read"]["bytes"].as_u64().unwrap(), path.metadata().unwrap().len());
    assert!(read > 3 * size, "{read} of {size}");
}

/// The number behind a word.
fn number(text: &str, before: &str) -> Option<u64> {
    let digits = text.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[test]
fn a_file_that_is_cut_while_the_model_runs_is_an_error_that_says_where() {
    let scratch = tempfile::tempdir().unwrap();
    let path = large(scratch.path());
    let mut child = fonio()
        .args(streamed(&path, "4096"))
        .args(["-p", "Hello", "-n", "4000", "-t", "0", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0];
    assert_eq!(stdout.read(&mut first).unwrap(), 1, "a token comes before the file is cut");
    let size = path.metadata().unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
    let rest = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    let cut = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if cut.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("still running a minute after its file was cut");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    rest.join().unwrap().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with(&format!("fonio: {}", path.display())), "{error}");
    assert!(error.contains("corrupt") && error.contains("ends too early"), "{error}");
    let layer = number(&error, "layer ").expect("it names the layer");
    let at = number(&error, "at byte ").expect("it names the byte");
    // Layers are in order and of one size; the embedding before them is small.
    assert!(layer.abs_diff(LAYERS / 2) <= 1, "{error}");
    assert!((size / 2..size).contains(&at), "{at} of {size}: {error}");
}
