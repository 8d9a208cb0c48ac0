//! Recurrent models in llama.cpp and in spellings that no checkpoint of Hugging Face has.

use super::{continues_the_same, convert_folder, settings};
use fonio_checkpoint::{Checkpoint, Error, Metadata, TensorInfo};
use fonio_codec::list;
use fonio_conformance::home;
use fonio_conformance::llamacpp::Oracle;
use fonio_engine::{Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Target};
use fonio_simd::Isa;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

fn tiny(name: &str) -> PathBuf {
    home::workspace().join("conformance/models").join(name)
}

/// Tensors in memory, all `F32`.
struct Loose {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    bytes: Vec<Vec<u8>>,
}

impl Loose {
    fn of(source: &dyn Checkpoint) -> Loose {
        let mut loose = Loose { metadata: source.metadata().clone(), tensors: Vec::new(), bytes: Vec::new() };
        for (at, info) in source.tensors().iter().enumerate() {
            let mut values = vec![0.0; info.len() as usize];
            info.dtype.dequantize(Isa::scalar(), &source.bytes(at).unwrap(), &mut values).unwrap();
            loose.push(&info.name, info.shape.clone(), &values);
        }
        loose
    }

    fn push(&mut self, name: &str, shape: Vec<u64>, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let nbytes = bytes.len() as u64;
        let (name, dtype) = (name.into(), list::F32);
        self.tensors.push(TensorInfo { name, dtype, shape, file: 0, offset: 0, nbytes });
        self.bytes.push(bytes);
    }

    fn take(&mut self, name: &str) -> (Vec<u64>, Vec<f32>) {
        let at = self.find(name).unwrap();
        let bytes = self.bytes.remove(at);
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (self.tensors.remove(at).shape, values)
    }
}

impl Checkpoint for Loose {
    fn container(&self) -> &'static str {
        "memory"
    }
    fn files(&self) -> &[PathBuf] {
        &[]
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|t| t.name == name)
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        Ok(Cow::Borrowed(&self.bytes[tensor]))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        dst.copy_from_slice(&self.bytes[tensor][offset as usize..][..dst.len()]);
        Ok(())
    }
}

/// The logits of the tokens that a tiny checkpoint's expectations are for, and those expected.
fn logits(model: &Path, expected: &Path) -> (Vec<f32>, Vec<f32>) {
    let bytes = std::fs::read(expected.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("tokens").unwrap();
    let ids = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
    let want = file.tensor("logits").unwrap();
    let want = want.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let engine = Engine::open(model, Options { threads: 2, ..Options::default() }).unwrap();
    let mut got = Vec::new();
    let tokens: Vec<u32> = ids.collect();
    engine.session().unwrap().score(&tokens, |_, row| got.extend_from_slice(row)).unwrap();
    (got, want)
}

/// As in `tiny.rs`: both sides compute in `f32`.
fn same_logits(model: &Path, expected: &Path) {
    let (got, want) = logits(model, expected);
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(got.len() == want.len() && off < 1e-4 * largest, "{}: {off}", model.display());
}

/// Random weights of RWKV-7 by the authors' names, with the tokenizer of the tiny one. llama.cpp computes heads of 64
/// values alone: its loops have no remainder.
fn rwkv7_with_usual_heads(folder: &Path) {
    const DIM: usize = 128;
    let tiny = home::workspace().join("conformance/models/rwkv7");
    for file in ["rwkv_vocab_v20230424.txt", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(file), folder.join(file)).unwrap();
    }
    let vocab = Source::open(&tiny).unwrap().spec().vocab_size;
    let mut all: Vec<(String, Vec<usize>, f32, f32)> = Vec::new();
    let mut add = |name: String, shape: &[usize], mean: f32, spread: f32| {
        all.push((name, shape.to_vec(), mean, spread));
    };
    let square = 2.0 / (DIM as f32).sqrt();
    add("emb.weight".into(), &[vocab, DIM], 0.0, 1.0);
    add("head.weight".into(), &[vocab, DIM], 0.0, square);
    for norm in ["ln_out", "blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2", "blocks.1.ln1", "blocks.1.ln2"] {
        add(format!("{norm}.weight"), &[DIM], 1.0, 0.3);
        add(format!("{norm}.bias"), &[DIM], 0.0, 0.3);
    }
    for i in 0..2 {
        let att = |name: &str| format!("blocks.{i}.att.{name}");
        add(att("ln_x.weight"), &[DIM], 1.0, 0.3);
        add(att("ln_x.bias"), &[DIM], 0.0, 0.3);
        add(att("r_k"), &[2, 64], 0.0, 0.3);
        for (c, rank) in [("w", 16), ("a", 24), ("v", 8), ("g", 32)] {
            add(att(&format!("{c}1")), &[DIM, rank], 0.0, square);
            add(att(&format!("{c}2")), &[rank, DIM], 0.0, 2.0 / (rank as f32).sqrt());
            if c != "g" {
                add(att(&format!("{c}0")), &[1, 1, DIM], 0.0, 0.8);
            }
        }
        for name in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"] {
            add(att(name), &[1, 1, DIM], 0.7, 0.3);
        }
        for name in ["receptance", "key", "value", "output"] {
            add(att(&format!("{name}.weight")), &[DIM, DIM], 0.0, square);
        }
        add(format!("blocks.{i}.ffn.x_k"), &[1, 1, DIM], 0.5, 0.3);
        add(format!("blocks.{i}.ffn.key.weight"), &[256, DIM], 0.0, square);
        add(format!("blocks.{i}.ffn.value.weight"), &[DIM, 256], 0.0, square);
    }
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .into_iter()
        .map(|(name, shape, mean, spread)| {
            let n = shape.iter().product();
            let values = (0..n).flat_map(|_| (mean + spread * random()).to_le_bytes()).collect();
            (name, shape, values)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn llama_cpp_continues_rwkv_7_the_same() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("rwkv7-heads");
    std::fs::create_dir(&folder).unwrap();
    rwkv7_with_usual_heads(&folder);
    continues_the_same(oracle, &convert_folder(&folder, scratch.path()));
}

/// llama.cpp's converter divides weights of later layers by powers of two and says so; older files have the vectors of
/// the token shift one by one.
#[test]
fn rwkv_6_as_llama_cpps_converter_writes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let source = Source::open(&tiny("rwkv6")).unwrap();
    let mut loose = Loose::of(source.checkpoint().as_ref());
    for part in ["time_mix_output", "channel_mix_value"] {
        let name = format!("blk.1.{part}.weight");
        let (shape, mut values) = loose.take(&name);
        values.iter_mut().for_each(|x| *x /= 2.0);
        loose.push(&name, shape, &values);
    }
    let (shape, values) = loose.take("blk.1.time_mix_lerp_fused.weight");
    let dim = *shape.last().unwrap();
    for (part, row) in ["w", "k", "v", "r", "g"].iter().zip(values.chunks_exact(dim as usize)) {
        loose.push(&format!("blk.1.time_mix_lerp_{part}.weight"), vec![1, 1, dim], row);
    }
    let mut metadata = source.complete_metadata().unwrap();
    metadata.insert("rwkv6.rescale_every_n_layers", 1u32);
    let file = scratch.path().join("rwkv6-rescaled.gguf");
    let plan = Plan::new(&loose, source.spec(), metadata, &Target::Keep, &[]).unwrap();
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(&loose, &plan, gguf, &file, &settings()).unwrap();
    same_logits(&file, &tiny("rwkv6"));
    if let Some(oracle) = Oracle::need() {
        continues_the_same(oracle, &file);
    }
}

/// Falcon Mamba's tensors are Mamba's; its norms have no weights.
#[test]
fn llama_cpp_continues_falcon_mamba_the_same() {
    let Some(oracle) = Oracle::need() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("falcon");
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(tiny("mamba")).unwrap().map(|f| f.unwrap()) {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["model_type"] = json!("falcon_mamba");
    // llama.cpp takes the epsilon of the other norms.
    config["mixer_rms_eps"] = config["layer_norm_epsilon"].clone();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (normed, plain) = logits(&folder, &tiny("mamba"));
    assert_ne!(normed, plain, "the norms show");
    continues_the_same(oracle, &convert_folder(&folder, scratch.path()));
}

/// Mamba-2 in the files of its authors.
#[test]
fn mamba_2_in_its_authors_spelling() {
    let scratch = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(tiny("mamba2").join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, t)| (name.replace("embeddings.", "embedding."), t));
    safetensors::serialize_to_file(tensors, None, &scratch.path().join("model.safetensors")).unwrap();
    let mut config = json!({
        "d_model": 24, "n_layer": 2, "vocab_size": 301, "rms_norm": true, "residual_in_fp32": true,
        "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": false,
        "attn_layer_idx": [], "attn_cfg": {}, "d_intermediate": 0,
        "ssm_cfg": { "layer": "Mamba2", "headdim": 8, "d_state": 10, "ngroups": 2 },
    });
    let path = scratch.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    same_logits(scratch.path(), &tiny("mamba2"));
    for (key, value) in [
        ("rms_norm", json!(false)),
        ("attn_layer_idx", json!([1])),
        ("d_intermediate", json!(64)),
        ("ssm_cfg", json!({ "layer": "Mamba2", "ngroups": 2, "norm_before_gate": true })),
        ("ssm_cfg", json!({ "layer": "Mamba3" })),
    ] {
        let kept = std::mem::replace(&mut config[key], value);
        std::fs::write(&path, config.to_string()).unwrap();
        assert!(Source::open(scratch.path()).is_err(), "{key}");
        config[key] = kept;
    }
}

/// However many tokens there were, a recurrent state has the same size.
#[test]
fn states_do_not_grow() {
    for name in ["mamba", "mamba2", "rwkv4", "rwkv6", "rwkv7"] {
        let engine = Engine::open(&tiny(name), Options { threads: 1, ..Options::default() }).unwrap();
        let mut session = engine.session().unwrap();
        let empty = session.cache_bytes();
        session.extend(&[1; 300]).unwrap();
        assert!(empty > 0 && session.cache_bytes() == empty, "{name}");
    }
}
