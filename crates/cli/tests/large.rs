//! A model of 1.1 billion parameters: how much memory converting and streaming it takes, and that threads don't change
//! the bytes.

use fonio_checkpoint::{Metadata, TensorPlan, WriteOptions};
use fonio_codec::list;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const DIM: u64 = 2048;
const FFN: u64 = 5632;
const KV: u64 = 256;
const VOCAB: u64 = 49_152;
const LAYERS: usize = 22;

fn plan() -> Vec<TensorPlan> {
    let tensor = |name: String, shape: &[u64]| TensorPlan::new(name, list::F16, shape);
    let mut all = vec![
        tensor("model.embed_tokens.weight".into(), &[VOCAB, DIM]),
        tensor("model.norm.weight".into(), &[DIM]),
        tensor("lm_head.weight".into(), &[VOCAB, DIM]),
    ];
    for i in 0..LAYERS {
        let parts: [(&str, &[u64]); 9] = [
            ("input_layernorm", &[DIM]),
            ("post_attention_layernorm", &[DIM]),
            ("self_attn.q_proj", &[DIM, DIM]),
            ("self_attn.k_proj", &[KV, DIM]),
            ("self_attn.v_proj", &[KV, DIM]),
            ("self_attn.o_proj", &[DIM, DIM]),
            ("mlp.gate_proj", &[FFN, DIM]),
            ("mlp.up_proj", &[FFN, DIM]),
            ("mlp.down_proj", &[DIM, FFN]),
        ];
        for (part, shape) in parts {
            all.push(tensor(format!("model.layers.{i}.{part}.weight"), shape));
        }
    }
    all
}

/// Writes the folder: every tensor a window into one stretch of noise.
fn make(folder: &Path) {
    let plan = plan();
    let parameters: u64 = plan.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    assert!(parameters > 1_100_000_000);
    let container = fonio_checkpoint::list::named("safetensors").unwrap();
    let out = folder.join("model.safetensors");
    let mut writer =
        container.create.unwrap()(&out, &Metadata::new(), &plan, &WriteOptions::default()).unwrap();
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Sign, one of four exponents and ten bits: numbers of 2^-9 to 2^-5.
        ((state >> 16) as u16 & 0x8fff | 0x1800).to_le_bytes()
    })
    .take(8 << 20)
    .flatten()
    .collect();
    for (i, tensor) in plan.iter().enumerate() {
        let mut left = tensor.nbytes().unwrap() as usize;
        let mut at = i * 4099 * 2 % noise.len();
        while left > 0 {
            let n = left.min(noise.len() - at);
            writer.append(&noise[at..at + n]).unwrap();
            (left, at) = (left - n, 0);
        }
    }
    writer.finish().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": DIM, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let grain = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/grain");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(grain.join(file), folder.join(file)).unwrap();
    }
}

/// Runs a conversion and gives the most memory that was resident, in bytes.
fn convert(folder: &Path, out: &Path, threads: &str) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fonio"));
    command.args(["--quiet", "convert", "--quant", "Q8_0", "--threads", threads, "-o"]).args([out, folder]);
    watch(&mut command)
}

/// Runs a command and gives the most memory that was resident, in bytes.
fn watch(command: &mut Command) -> u64 {
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // The high-water mark only grows, so the last reading before the end is the one that counts.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_billion_parameters_take_little_memory_and_threads_change_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    make(scratch.path());
    let largest = plan().iter().filter_map(TensorPlan::nbytes).max().unwrap();
    let limit = 2 * largest + (256 << 20);
    let outs: Vec<_> = ["1", "2"].map(|t| (t, scratch.path().join(format!("{t}.gguf")))).into();
    for (threads, out) in &outs {
        let peak = convert(scratch.path(), out, threads);
        assert!(peak > 1 << 20, "a peak was seen");
        assert!(peak <= limit, "{threads} threads: {} MiB, more than {} MiB", peak >> 20, limit >> 20);
    }
    let same = Command::new("cmp").args(outs.iter().map(|(_, out)| out)).status().unwrap();
    assert!(same.success(), "1 and 2 threads give the same bytes");
    streams(&outs[0].1, scratch.path());
}

/// A model of 1.2 GB continues a text within a quarter of that, as it does from a memory map.
fn streams(model: &Path, scratch: &Path) {
    const BUDGET: u64 = 300 << 20;
    let run = |name: &str, more: &[&str]| {
        let out = scratch.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fonio"));
        command.arg("run").arg(model).args(["-p", "grain", "-n", "4", "-t", "0", "--ignore-eos", "-c", "64"]);
        command.args(more).stdout(std::fs::File::create(&out).unwrap());
        (watch(&mut command), std::fs::read(&out).unwrap())
    };
    let (_, want) = run("mapped", &["--residency", "mmap"]);
    let (peak, got) = run("streamed", &["--budget", &BUDGET.to_string()]);
    assert_eq!(got, want, "the same text");
    assert!(want.len() > 4, "there is some");
    assert!(peak <= BUDGET / 100 * 105, "{} MiB resident, the budget is {}", peak >> 20, BUDGET >> 20);
}
