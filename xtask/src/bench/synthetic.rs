//! Models made up for measuring: the shapes of real ones, random weights, a vocabulary of invented words.
//!
//! Weights are near N(0, 1/dim), so that activations keep their size through any number of layers. They are not quantized
//! one by one: a pool of blocks is, by the type's own codec, and rows draw from it. Each row's draws depend on its
//! tensor and its number alone, so that a file is the same in whatever order its container wants it.

use fonio_checkpoint::{Metadata, Rows, Strings, TensorPlan, Value, WriteOptions, list};
use fonio_codec::DType;
use fonio_simd::Isa;
use std::path::Path;

/// The sizes of a model of LLaMA's kind, as in its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub name: &'static str,
    layers: u64,
    dim: u64,
    /// Width of the feed-forward part, or of each expert's.
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    vocab: u64,
    /// Positions that it is said to be trained for.
    context: u64,
    /// Experts, and how many of them a token uses; none for a dense model.
    experts: Option<(u64, u64)>,
}

/// The tiny ones differ from the others in their sizes only.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "llama-7b",
        layers: 32,
        dim: 4096,
        ffn: 11_008,
        heads: 32,
        kv_heads: 32,
        vocab: 32_000,
        context: 4096,
        experts: None,
    },
    // The sizes of TinyLlama 1.1 B with SmolLM2's vocabulary.
    Shape {
        name: "llama-1b",
        layers: 22,
        dim: 2048,
        ffn: 5632,
        heads: 32,
        kv_heads: 4,
        vocab: 49_152,
        context: 8192,
        experts: None,
    },
    // Those of SmolLM2-135M, but with a head of its own.
    Shape {
        name: "smollm2-135m",
        layers: 30,
        dim: 576,
        ffn: 1536,
        heads: 9,
        kv_heads: 3,
        vocab: 49_152,
        context: 8192,
        experts: None,
    },
    // 24 layers × 3 matrices × 2048 × 6912: 1.02 billion parameters for each set of experts.
    Shape {
        name: "mixtral-8x1b",
        layers: 24,
        dim: 2048,
        ffn: 6912,
        heads: 16,
        kv_heads: 8,
        vocab: 32_000,
        context: 4096,
        experts: Some((8, 2)),
    },
    Shape {
        name: "llama-tiny",
        layers: 8,
        dim: 512,
        ffn: 1536,
        heads: 8,
        kv_heads: 8,
        vocab: 2000,
        context: 4096,
        experts: None,
    },
    Shape {
        name: "mixtral-tiny",
        layers: 4,
        dim: 256,
        ffn: 768,
        heads: 4,
        kv_heads: 2,
        vocab: 2000,
        context: 4096,
        experts: Some((8, 2)),
    },
];

/// Bytes that are given to a writer at a time, about.
const PIECE: usize = 4 << 20;
/// Bytes of the pool of blocks, about.
const POOL: usize = 1 << 20;

impl Shape {
    /// The shape with this name.
    pub fn named(name: &str) -> Option<&'static Shape> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// Positions that it has place for.
    #[cfg(test)]
    pub fn context(&self) -> usize {
        self.context as usize
    }

    /// Writes a model with matrices of type `dtype`; norms and routers are `F32`. Gives its size in bytes, or says why
    /// it cannot be made.
    pub fn write(&self, container: &str, dtype: DType, path: &Path) -> Result<u64, String> {
        let known = list::named(container).ok_or_else(|| format!("no container is called {container}"))?;
        let create = known.create.ok_or_else(|| format!("{container} cannot be written"))?;
        let plan = self.plan(dtype);
        let options = WriteOptions { force: true, ..WriteOptions::default() };
        let wrong = |e: fonio_checkpoint::Error| e.to_string();
        let mut writer = create(path, &self.metadata(), &plan, &options).map_err(wrong)?;
        let order = writer.order().unwrap_or_else(|| in_plan_order(&plan));
        let fill = Fill::new(dtype, self.dim)?;
        let mut piece = Vec::new();
        for Rows { tensor, rows } in order {
            let plan = plan.get(tensor).ok_or("the writer asks for a tensor that is not in the plan")?;
            for row in rows {
                fill.row(tensor as u64, plan, row, &mut piece);
                if piece.len() >= PIECE {
                    writer.append(&piece).map_err(wrong)?;
                    piece.clear();
                }
            }
        }
        writer.append(&piece).map_err(wrong)?;
        let files = writer.finish().map_err(wrong)?;
        files.iter().map(|f| f.metadata().map(|m| m.len())).sum::<Result<u64, _>>().map_err(|e| e.to_string())
    }

    fn plan(&self, dtype: DType) -> Vec<TensorPlan> {
        let (dim, ffn, kv) = (self.dim, self.ffn, self.dim / self.heads * self.kv_heads);
        let mut plan = Vec::new();
        let mut add = |name: String, dtype: DType, shape: &[u64]| {
            let group = fonio_model::group(&name, shape);
            plan.push(TensorPlan { group, ..TensorPlan::new(name, dtype, shape) });
        };
        let float = fonio_codec::list::F32;
        add("token_embd.weight".into(), dtype, &[self.vocab, dim]);
        for layer in 0..self.layers {
            let mut add =
                |name: &str, dtype, shape: &[u64]| add(format!("blk.{layer}.{name}.weight"), dtype, shape);
            add("attn_norm", float, &[dim]);
            add("attn_q", dtype, &[dim, dim]);
            add("attn_k", dtype, &[kv, dim]);
            add("attn_v", dtype, &[kv, dim]);
            add("attn_output", dtype, &[dim, dim]);
            add("ffn_norm", float, &[dim]);
            if let Some((experts, _)) = self.experts {
                add("ffn_gate_inp", float, &[experts, dim]);
                add("ffn_gate_exps", dtype, &[experts, ffn, dim]);
                add("ffn_up_exps", dtype, &[experts, ffn, dim]);
                add("ffn_down_exps", dtype, &[experts, dim, ffn]);
            } else {
                add("ffn_gate", dtype, &[ffn, dim]);
                add("ffn_up", dtype, &[ffn, dim]);
                add("ffn_down", dtype, &[dim, ffn]);
            }
        }
        add("output_norm.weight".into(), float, &[dim]);
        add("output.weight".into(), dtype, &[self.vocab, dim]);
        plan
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "llama");
        metadata.insert("general.name", self.name);
        let counts = [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.dim),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("rope.dimension_count", self.dim / self.heads),
            ("vocab_size", self.vocab),
            ("expert_count", self.experts.map_or(0, |(all, _)| all)),
            ("expert_used_count", self.experts.map_or(0, |(_, used)| used)),
        ];
        for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            metadata.insert(format!("llama.{key}"), count as u32);
        }
        metadata.insert("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        metadata.insert("llama.rope.freq_base", 10_000.0f32);
        self.vocabulary(&mut metadata);
        metadata
    }

    /// SentencePiece's layout: `<unk>`, `<s>`, `</s>`, the 256 bytes, then words, each of them once.
    fn vocabulary(&self, metadata: &mut Metadata) {
        let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
        let first = ["<unk>", "<s>", "</s>"].into_iter().map(str::to_owned).chain(bytes);
        let words = (0..).map(|n| format!("\u{2581}{}", word(n)));
        let all = first.chain(words).take(self.vocab as usize);
        metadata.insert("tokenizer.ggml.model", "llama");
        metadata.insert("tokenizer.ggml.pre", "default");
        metadata.insert("tokenizer.ggml.tokens", all.collect::<Strings>());
        metadata.insert("tokenizer.ggml.scores", (0..self.vocab).map(|i| -(i as f32)).collect::<Vec<_>>());
        // Of SentencePiece's kinds: 1 is a word, 2 unknown, 3 control, 6 a byte.
        let kind = |i: u64| match i {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        metadata.insert("tokenizer.ggml.token_type", (0..self.vocab).map(kind).collect::<Vec<i32>>());
        for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
            metadata.insert(format!("tokenizer.ggml.{key}_token_id"), id);
        }
        metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(true));
    }
}

/// Whole tensors, one after the other.
fn in_plan_order(plan: &[TensorPlan]) -> Vec<Rows> {
    let rows = |plan: &TensorPlan| plan.shape.iter().rev().skip(1).product();
    plan.iter().enumerate().map(|(tensor, plan)| Rows { tensor, rows: 0..rows(plan) }).collect()
}

/// The `n`th invented word: syllables of a consonant and a vowel, so that no two are alike.
fn word(mut n: u64) -> String {
    const SYLLABLES: u64 = 20 * 5;
    let mut word = String::new();
    loop {
        let syllable = (n % SYLLABLES) as usize;
        word.push(char::from(b"bcdfghjklmnpqrstvwxz"[syllable / 5]));
        word.push(char::from(b"aeiou"[syllable % 5]));
        n /= SYLLABLES;
        if n == 0 {
            return word;
        }
        n -= 1;
    }
}

/// What rows are filled with.
struct Fill {
    dtype: DType,
    /// Whole blocks of `dtype`.
    pool: Vec<u8>,
    /// The standard deviation of weights.
    deviation: f32,
}

impl Fill {
    fn new(dtype: DType, dim: u64) -> Result<Fill, String> {
        let blocks = POOL / dtype.block_bytes();
        let deviation = 1.0 / (dim as f32).sqrt();
        let mut random = Random::of(0, 0);
        let values: Vec<f32> = (0..blocks * dtype.block_len()).map(|_| deviation * random.normal()).collect();
        let mut pool = vec![0; blocks * dtype.block_bytes()];
        dtype.quantize(Isa::detect(), &values, None, &mut pool).map_err(|e| e.to_string())?;
        Ok(Fill { dtype, pool, deviation })
    }

    /// Adds a row of a tensor. Vectors are norms, whose weights are 1.
    fn row(&self, tensor: u64, plan: &TensorPlan, row: u64, out: &mut Vec<u8>) {
        let len = plan.shape.last().copied().unwrap_or(1) as usize;
        let mut random = Random::of(tensor + 1, row);
        if plan.dtype == self.dtype {
            let size = self.dtype.block_bytes();
            let blocks = self.pool.len() / size;
            for _ in 0..len / self.dtype.block_len() {
                let at = random.below(blocks) * size;
                out.extend_from_slice(&self.pool[at..at + size]);
            }
        } else {
            let norm = plan.shape.len() == 1;
            let values = (0..len).map(|_| if norm { 1.0 } else { self.deviation * random.normal() });
            out.extend(values.flat_map(f32::to_le_bytes));
        }
    }
}

/// Marsaglia's xorshift64* (Vigna 2016): fast, and good enough for weights that nobody trained.
struct Random(u64);

impl Random {
    /// A stream of its own for each pair of numbers, by the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    fn of(tensor: u64, row: u64) -> Random {
        let mut x =
            (tensor << 40 | row).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((x ^ x >> 31).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }

    /// Near a standard normal variate: four uniform ones of 16 bits, whose sum has a variance of 1/3.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: f32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65_536.0).sum();
        (sum - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_differ() {
        let words: HashSet<String> = (0..32_000).map(word).collect();
        assert_eq!(words.len(), 32_000);
    }

    #[test]
    fn normal_has_mean_0_and_variance_1() {
        let mut random = Random::of(3, 4);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| random.normal().into()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| v * v).sum::<f64>() / f64::from(n);
        // Five standard errors: 5/√n, and 5·√(2/n) at most (the variate's kurtosis is below a normal one's).
        assert!(mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023, "{mean} {variance}");
    }

    #[test]
    fn sizes_are_those_of_the_real_ones() {
        let parameters = |name: &str, part: &str| -> u64 {
            let plan = Shape::named(name).unwrap().plan(DType::named("Q2_K").unwrap());
            let of_part = plan.iter().filter(|t| t.name.contains(part));
            of_part.map(|t| t.shape.iter().product::<u64>()).sum()
        };
        assert_eq!(parameters("llama-7b", ""), 6_738_415_616, "LLaMA 7B's");
        assert_eq!(parameters("llama-1b", ""), 1_170_302_976);
        let experts = parameters("mixtral-8x1b", "_exps");
        assert!((8_000_000_000..8_400_000_000).contains(&experts), "{experts}");
    }

    #[test]
    fn tiny_models_load_and_do_not_change() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["llama-tiny", "mixtral-tiny"] {
            let [a, b] = ["a.gguf", "b.gguf"].map(|file| {
                let path = folder.path().join(file);
                let size =
                    Shape::named(name).unwrap().write("gguf", DType::named("Q2_K").unwrap(), &path).unwrap();
                assert!((1 << 20..16 << 20).contains(&size), "{name}: {size}");
                let source = fonio_model::source::Source::open(&path).unwrap();
                assert!(fonio_model::source::Source::is_whole(&**source.checkpoint()), "{name}");
                let tokenizer = source.tokenizer().unwrap();
                assert!(tokenizer.encode("baba keke", true, false).unwrap().len() > 1, "{name}");
                std::fs::read(&path).unwrap()
            });
            assert!(a == b, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let shape = Shape::named("llama-tiny").unwrap();
        let wrong =
            shape.write("pytorch", DType::named("Q2_K").unwrap(), Path::new("/nonexistent/x")).unwrap_err();
        assert!(wrong.contains("pytorch"), "{wrong}");
    }
}
