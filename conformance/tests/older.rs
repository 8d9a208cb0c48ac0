//! GGUF files as older converters of llama.cpp wrote them, which are still about: each is made of a new one by undoing
//! what changed, and computes the same.

mod common;

use common::{Expected, difference};
use fonio_checkpoint::{Metadata, TensorPlan, WriteOptions};
use fonio_conformance::home;
use fonio_engine::{CacheTypes, Engine, Options};
use fonio_quantize::convert::Target;
use std::path::{Path, PathBuf};

/// Largest difference as a share of the largest value: both sides compute in `f32`, in other orders.
const RELATIVE: f32 = 1e-4;

struct Tensor {
    name: String,
    shape: Vec<u64>,
    values: Vec<f32>,
}

/// A file in `F32`, in memory.
struct File {
    metadata: Metadata,
    tensors: Vec<Tensor>,
}

impl File {
    fn read(path: &Path) -> File {
        let checkpoint = fonio_checkpoint::open(path).unwrap();
        let tensors = checkpoint.tensors().iter().enumerate().map(|(at, info)| {
            assert_eq!(info.dtype, fonio_codec::list::F32);
            let bytes = checkpoint.bytes(at).unwrap();
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            Tensor { name: info.name.clone(), shape: info.shape.clone(), values }
        });
        File { metadata: checkpoint.metadata().clone(), tensors: tensors.collect() }
    }

    fn write(&self, path: &Path) {
        let plan = |t: &Tensor| TensorPlan::new(t.name.clone(), fonio_codec::list::F32, t.shape.clone());
        let plans: Vec<TensorPlan> = self.tensors.iter().map(plan).collect();
        let create = fonio_checkpoint::list::named("gguf").unwrap().create.unwrap();
        let options = WriteOptions { force: true, ..WriteOptions::default() };
        let mut writer = create(path, &self.metadata, &plans, &options).unwrap();
        for tensor in &self.tensors {
            let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer.append(&bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    fn count(&self, key: &str) -> usize {
        self.metadata.get(key).and_then(|v| v.as_u64()).unwrap() as usize
    }

    fn remove(&mut self, key: &str) {
        assert!(self.metadata.remove(key).is_some(), "{key} is there");
    }

    /// Replaces every tensor whose name ends so; `f` gives those that take its place.
    fn replace(&mut self, end: &str, f: impl Fn(Tensor) -> Vec<Tensor>) {
        assert!(self.tensors.iter().any(|t| t.name.ends_with(end)), "{end} is there");
        let all = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = all.flat_map(|t| if t.name.ends_with(end) { f(t) } else { vec![t] }).collect();
    }

    fn take(&mut self, name: &str) -> Option<Tensor> {
        let at = self.tensors.iter().position(|t| t.name == name)?;
        Some(self.tensors.remove(at))
    }
}

impl Tensor {
    /// The parts along the first dimension.
    fn parts(self, name: impl Fn(usize) -> String) -> Vec<Tensor> {
        let shape = self.shape[1..].to_vec();
        let size = shape.iter().product::<u64>() as usize;
        let part = |(i, values): (usize, &[f32])| Tensor {
            name: name(i),
            shape: shape.clone(),
            values: values.to_vec(),
        };
        self.values.chunks_exact(size).enumerate().map(part).collect()
    }
}

fn exact(tokens: usize) -> Options {
    let cache = CacheTypes { keys: fonio_codec::list::F32, values: fonio_codec::list::F32 };
    Options { threads: 2, cache, context: Some(tokens), ..Options::default() }
}

fn logits(file: &Path, tokens: &[u32]) -> Vec<f32> {
    let engine = Engine::open(file, exact(tokens.len())).unwrap();
    let mut all = Vec::new();
    engine.session().unwrap().score(tokens, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

/// Converts a checkpoint, changes the file and compares what it computes with what is expected of the checkpoint; and
/// so with a folder that is made of it.
fn computes_the_same(name: &str, change: impl FnOnce(&mut File)) {
    let scratch = tempfile::tempdir().unwrap();
    let (path, folder) = changed(name, change, scratch.path());
    common::convert_to_folder(&path, &folder).unwrap_or_else(|e| panic!("{name}: {e}"));
    check(name, &path);
    check(name, &folder);
}

/// A changed file, and a place for a folder.
fn changed(name: &str, change: impl FnOnce(&mut File), scratch: &Path) -> (PathBuf, PathBuf) {
    let path = scratch.join("x.gguf");
    let folder = home::workspace().join("conformance/models").join(name);
    common::convert(&folder, &path, &Target::named("F32").unwrap(), |_| {}).unwrap();
    let mut file = File::read(&path);
    change(&mut file);
    file.write(&path);
    (path, scratch.join("folder"))
}

fn check(name: &str, model: &Path) {
    let expected = Expected::read(&home::workspace().join("conformance/models").join(name));
    let off = difference(&logits(model, &expected.tokens["tokens"]), &expected.floats["logits"]);
    assert!(off < RELATIVE, "{name}: {}: logits are off by {off:e}", model.display());
}

/// Until February 2024 each expert's matrices were tensors of their own.
#[test]
fn experts_in_tensors_of_their_own() {
    computes_the_same("mixtral", |file| {
        for part in ["gate", "up", "down"] {
            let end = format!(".ffn_{part}_exps.weight");
            file.replace(&end, |t| {
                let block = t.name.strip_suffix(&end).unwrap().to_owned();
                t.parts(|i| format!("{block}.ffn_{part}.{i}.weight"))
            });
        }
    });
}

/// Until April 2025 the way up from the latent vector was one matrix, and keys and values were cached in full.
fn with_one_way_up(file: &mut File) {
    let (rope, heads) =
        (file.count("deepseek2.rope.dimension_count"), file.count("deepseek2.attention.head_count"));
    let key = file.count("deepseek2.attention.key_length_mla");
    let value = file.count("deepseek2.attention.value_length_mla");
    let (rank, nope) = (file.count("deepseek2.attention.kv_lora_rank"), key - rope);
    for key in ["key_length_mla", "value_length_mla"] {
        file.remove(&format!("deepseek2.attention.{key}"));
    }
    file.metadata.insert("deepseek2.attention.key_length", key as u32);
    file.metadata.insert("deepseek2.attention.value_length", value as u32);
    file.metadata.insert("deepseek2.attention.head_count_kv", heads as u32);
    for block in 0..file.count("deepseek2.block_count") {
        let keys = file.take(&format!("blk.{block}.attn_k_b.weight")).unwrap().values;
        let of_values = file.take(&format!("blk.{block}.attn_v_b.weight")).unwrap().values;
        let mut values = Vec::new();
        for head in 0..heads {
            let keys = &keys[head * rank * nope..];
            values.extend((0..nope * rank).map(|i| keys[i % rank * nope + i / rank]));
            values.extend_from_slice(&of_values[head * value * rank..(head + 1) * value * rank]);
        }
        let shape = vec![(heads * (nope + value)) as u64, rank as u64];
        file.tensors.push(Tensor { name: format!("blk.{block}.attn_kv_b.weight"), shape, values });
    }
}

#[test]
fn latent_attention_of_before_it_was_absorbed() {
    for name in ["deepseek2-lite", "deepseek2-groups", "deepseek3"] {
        computes_the_same(name, with_one_way_up);
    }
}

/// The first files of V2 said nothing of how experts are scored and weighed.
#[test]
fn routers_of_which_nothing_is_said() {
    computes_the_same("deepseek2-lite", |file| {
        for key in ["gating_func", "weights_norm"] {
            file.remove(&format!("deepseek2.expert_{key}"));
        }
    });
}

/// The first files of Gemma 2 had neither caps nor a window, and their readers took those of the models that there were.
#[test]
fn gemma_2_without_caps_and_window() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = home::workspace().join("conformance/models/gemma2");
    let [said, unsaid] = ["said.gguf", "unsaid.gguf"].map(|name| scratch.path().join(name));
    let keys = ["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"]
        .map(|key| format!("gemma2.{key}"));
    let target = Target::named("F32").unwrap();
    common::convert(&folder, &said, &target, |metadata| {
        metadata.insert(keys[0].as_str(), 50.0f32);
        metadata.insert(keys[1].as_str(), 30.0f32);
        metadata.insert(keys[2].as_str(), 4096u32);
    })
    .unwrap();
    common::convert(&folder, &unsaid, &target, |metadata| {
        keys.iter().for_each(|key| assert!(metadata.remove(key).is_some()));
    })
    .unwrap();
    let [said, unsaid] = [said, unsaid].map(|file| Engine::open(&file, exact(8)).unwrap());
    assert_eq!(said.spec(), unsaid.spec());
    assert_eq!(said.spec().first_attention().unwrap().window, Some(4096));
}

/// Until late 2024 RWKV-6 had a tensor for each factor that a token is mixed by.
#[test]
fn rwkv_6_with_factors_of_their_own() {
    computes_the_same("rwkv6", |file| {
        file.replace(".time_mix_lerp_fused.weight", |t| {
            let block = t.name.strip_suffix("_fused.weight").unwrap().to_owned();
            t.parts(|i| format!("{block}_{}.weight", ["w", "k", "v", "r", "g"][i]))
        });
    });
}

/// Converters differ in whether they keep dimensions of 1.
#[test]
fn dimensions_of_one_come_and_go() {
    let change = |end: &'static str, shape: fn(&[u64]) -> Vec<u64>| {
        move |file: &mut File| file.replace(end, |t| vec![Tensor { shape: shape(&t.shape), ..t }])
    };
    let plain = |shape: &[u64]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    computes_the_same("mamba", change(".ssm_conv1d.weight", |shape| vec![shape[0], 1, shape[1]]));
    computes_the_same("mamba2", change(".ssm_a", plain));
    computes_the_same("rwkv6", change(".time_mix_lerp_fused.weight", plain));
    computes_the_same("qwen2moe", change(".ffn_gate_inp_shexp.weight", plain));
    computes_the_same("qwen2moe", |file: &mut File| {
        let row = |t: Tensor| vec![Tensor { shape: vec![1, t.values.len() as u64], ..t }];
        file.replace(".ffn_gate_inp_shexp.weight", row);
    });
}
