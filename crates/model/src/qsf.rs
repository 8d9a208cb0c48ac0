//! QSF version 1 files as Hugging Face checkpoints: the header as a configuration, the format's tensor numbers under
//! Hugging Face's names, the tokenizer section as a vocabulary. Their weights are in Hugging Face's row order, so the rules
//! of the architectures do the rest.
//!
//! Only what the header holds exactly is read. The format's converter wrote GPT-2, GPT-J, Gemma and Phi files with wrong
//! weights, and version 1 has no field for the sizes of StableLM's rotation, DeepSeek's latent attention or GPT-OSS's
//! blocks: those are refused by name. The tokenizer section does not say how text is split, nor what special tokens are
//! for: what is assumed of them is put into words for the user.

use crate::arch::Architecture;
use crate::keys::Config;
use crate::{Error, View, hf, vocab};
use fonio_checkpoint::{
    Array, Checkpoint, Checksums, Error as FileError, Location, Metadata, TensorInfo, Value,
};
use fonio_text::{TokenType, Vocab};
use hf::names::{capture, fill};
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A family of models that version 1 holds exactly.
struct Family {
    number: u64,
    model_type: &'static str,
    /// Whether texts begin with the token for that, where the header names one.
    add_bos: bool,
}

const FAMILIES: &[Family] = &[
    Family { number: 1, model_type: "llama", add_bos: true },
    Family { number: 2, model_type: "mistral", add_bos: true },
    Family { number: 5, model_type: "qwen2", add_bos: false },
    Family { number: 8, model_type: "mixtral", add_bos: true },
];

/// Architectures of the header that are refused, and why.
const REFUSED: &[(u64, &str)] = &[
    (0, "GPT-2: the format's converter wrote its weights wrongly"),
    (3, "Phi: the format's converter wrote its weights wrongly"),
    (4, "GPT-J: the format's converter wrote its weights wrongly"),
    (6, "Gemma: the format's converter wrote its weights wrongly"),
    (7, "StableLM: version 1 has no field for the part of a head that is rotated"),
    (9, "DeepSeek: version 1 has no fields for its attention and its experts"),
    (10, "GPT-OSS: the format's converter wrote its weights wrongly"),
];

/// The format's names and Hugging Face's.
const NAMES: &[(&str, &str)] = &[
    ("embedding.weight", "model.embed_tokens.weight"),
    ("final_norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
    ("layers.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight"),
    ("layers.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    ("layers.{}.q.weight", "model.layers.{}.self_attn.q_proj.weight"),
    ("layers.{}.k.weight", "model.layers.{}.self_attn.k_proj.weight"),
    ("layers.{}.v.weight", "model.layers.{}.self_attn.v_proj.weight"),
    ("layers.{}.o.weight", "model.layers.{}.self_attn.o_proj.weight"),
    ("layers.{}.q.bias", "model.layers.{}.self_attn.q_proj.bias"),
    ("layers.{}.k.bias", "model.layers.{}.self_attn.k_proj.bias"),
    ("layers.{}.v.bias", "model.layers.{}.self_attn.v_proj.bias"),
    ("layers.{}.o.bias", "model.layers.{}.self_attn.o_proj.bias"),
    ("layers.{}.gate.weight", "model.layers.{}.mlp.gate_proj.weight"),
    ("layers.{}.up.weight", "model.layers.{}.mlp.up_proj.weight"),
    ("layers.{}.down.weight", "model.layers.{}.mlp.down_proj.weight"),
    ("layers.{}.gate.bias", "model.layers.{}.mlp.gate_proj.bias"),
    ("layers.{}.up.bias", "model.layers.{}.mlp.up_proj.bias"),
    ("layers.{}.down.bias", "model.layers.{}.mlp.down_proj.bias"),
    ("layers.{}.router.weight", "model.layers.{}.block_sparse_moe.gate.weight"),
    ("layers.{}.experts.{}.gate.weight", "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"),
    ("layers.{}.experts.{}.up.weight", "model.layers.{}.block_sparse_moe.experts.{}.w3.weight"),
    ("layers.{}.experts.{}.down.weight", "model.layers.{}.block_sparse_moe.experts.{}.w2.weight"),
];

/// Whether a checkpoint is of this format.
pub(crate) fn is_qsf(checkpoint: &dyn Checkpoint) -> bool {
    checkpoint.metadata().get("qsf.version").is_some()
}

/// A file seen with GGUF's names, its architecture, and what was assumed.
pub(crate) fn import(
    path: &Path,
    inner: Arc<dyn Checkpoint>,
) -> Result<(View, &'static Architecture, Option<String>), Error> {
    let header = Header { path, metadata: inner.metadata() };
    let family = header.family()?;
    let config = Config::of(path, Json::Object(header.config(family, inner.as_ref())?));
    let mut metadata = Metadata::new();
    let (tokenizer, assumed) = match header.vocab(family, rows(inner.as_ref()))? {
        Some((vocab, words)) => (Some(vocab), Some(words)),
        None => (None, None),
    };
    if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
        metadata.insert("general.name", name);
    }
    let named: Arc<dyn Checkpoint> = Arc::new(Named::new(inner));
    let (mut view, architecture) = hf::of_checkpoint(named, &config, metadata)?;
    if let Some(vocab) = tokenizer {
        vocab::to_metadata(&vocab, view.metadata_mut());
    }
    Ok((view, architecture, assumed))
}

/// Rows of the embedding.
fn rows(inner: &dyn Checkpoint) -> usize {
    let embedding = inner.find("embedding.weight").and_then(|at| inner.tensors().get(at));
    let rows = embedding.and_then(|info| info.shape.first()).copied();
    rows.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// The header's fields.
struct Header<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
}

impl Header<'_> {
    fn number(&self, key: &str) -> u64 {
        self.metadata.get(&format!("qsf.{key}")).and_then(Value::as_u64).unwrap_or(0)
    }

    fn token(&self, key: &str) -> Option<u32> {
        let id = self.metadata.get(&format!("qsf.{key}")).and_then(Value::as_u64);
        id.and_then(|id| u32::try_from(id).ok())
    }

    fn float(&self, key: &str) -> Result<f64, Error> {
        let value = self.metadata.get(&format!("qsf.{key}")).and_then(Value::as_f64);
        let value = value.filter(|x| x.is_finite() && *x > 0.0);
        value.ok_or_else(|| self.wrong(key, "is no positive number"))
    }

    fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Config { file: self.path.into(), key: format!("qsf.{key}"), reason: reason.into() }
    }

    fn unsupported(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported { file: self.path.into(), key: format!("qsf.{key}"), reason: reason.into() }
    }

    /// An error unless a field has this value.
    fn expect(&self, key: &str, want: u64, what: &str) -> Result<(), Error> {
        match self.number(key) {
            n if n == want => Ok(()),
            n => Err(self.unsupported(key, format!("{n}; such models have {want} ({what})"))),
        }
    }

    fn family(&self) -> Result<&'static Family, Error> {
        let number = self.number("architecture");
        if let Some(family) = FAMILIES.iter().find(|f| f.number == number) {
            return Ok(family);
        }
        let why = REFUSED.iter().find(|(n, _)| *n == number).map_or("no known architecture", |(_, why)| why);
        Err(self.unsupported("architecture", format!("{number} ({why})")))
    }

    /// The configuration that Hugging Face's file of the model had, as far as it says how to compute.
    fn config(&self, family: &Family, inner: &dyn Checkpoint) -> Result<Map<String, Json>, Error> {
        let mixture = family.model_type == "mixtral";
        self.expect("activation", 2, "SiLU")?;
        self.expect("norm_type", 2, "RMS norms before each part")?;
        self.expect("pos_enc", 1, "rotary")?;
        self.expect("attn_type", 0, "separate queries, keys and values")?;
        let (kind, name) = if mixture { (3, "a mixture of experts") } else { (1, "gated") };
        self.expect("ffn_type", kind, name)?;
        if family.model_type == "qwen2" && inner.find("layers.0.q.bias").is_none() {
            let reason = "Qwen without biases: version 1 has no place for the norms of Qwen3's heads";
            return Err(self.unsupported("architecture", reason));
        }
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
        set("model_type", json!(family.model_type));
        set("hidden_act", json!("silu"));
        let pairs = [
            ("hidden_size", "hidden_dim"),
            ("num_hidden_layers", "num_layers"),
            ("num_attention_heads", "num_heads"),
            ("vocab_size", "vocab_size"),
            ("max_position_embeddings", "max_seq_len"),
            ("intermediate_size", "intermediate_dim"),
        ];
        for (to, from) in pairs {
            set(to, json!(self.number(from)));
        }
        // 0 leaves these to be derived, as a configuration without them does.
        for (to, from) in [("num_key_value_heads", "num_kv_heads"), ("head_dim", "head_dim")] {
            if self.number(from) > 0 {
                set(to, json!(self.number(from)));
            }
        }
        set("rms_norm_eps", json!(self.float("norm_eps")?));
        set("rope_theta", json!(self.float("rope_theta")?));
        // What is stored is what counts: a head that is stored is taken even where it is said to be the embedding.
        set("tie_word_embeddings", json!(inner.find("head.weight").is_none()));
        if mixture {
            set("num_local_experts", json!(self.number("num_experts")));
            set("num_experts_per_tok", json!(self.number("num_active_experts")));
            if self.number("expert_intermediate_dim") > 0 {
                set("intermediate_size", json!(self.number("expert_intermediate_dim")));
            }
        }
        if let Some(window) = self.window(family)? {
            set("sliding_window", json!(window));
        }
        if let Some(scaling) = self.rope_scaling()? {
            set("rope_scaling", scaling);
        }
        Ok(config)
    }

    /// The window of attention, where it is shorter than the context. Qwen's files have a number even if it is not used,
    /// and the header does not say in which layers it is.
    fn window(&self, family: &Family) -> Result<Option<u64>, Error> {
        let window = self.number("sliding_window");
        if window == 0 || window >= self.number("max_seq_len") {
            return Ok(None);
        }
        match family.model_type {
            "mistral" | "mixtral" => Ok(Some(window)),
            other => Err(self.unsupported("sliding_window", format!("{window} in a model of type {other}"))),
        }
    }

    fn rope_scaling(&self) -> Result<Option<Json>, Error> {
        match self.number("rope_scaling_type") {
            0 => {
                // Llama 3.1 and later: four numbers, none of which the header can hold.
                let theta = self.float("rope_theta")?;
                if theta == 500_000.0
                    && self.number("vocab_size") == 128_256
                    && self.number("max_seq_len") > 8192
                {
                    let reason = "Llama 3.1's rotary scaling, which version 1 does not hold";
                    return Err(self.unsupported("rope_scaling_type", reason));
                }
                Ok(None)
            }
            1 => Ok(Some(json!({ "type": "linear", "factor": self.float("rope_scaling_factor")? }))),
            n => Err(self.unsupported(
                "rope_scaling_type",
                format!("{n}: version 1 does not hold all of its numbers"),
            )),
        }
    }

    /// The vocabulary, if there is one, and what is assumed about it; `rows` are the embedding's.
    fn vocab(&self, family: &Family, rows: usize) -> Result<Option<(Vocab, String)>, Error> {
        let Some(tokens) = self.metadata.get("qsf.tokenizer.tokens").and_then(Value::as_strings) else {
            return Ok(None);
        };
        let mut vocab = Vocab { tokens: tokens.iter().map(str::to_owned).collect(), ..Vocab::default() };
        vocab.token_types = Some(vec![TokenType::Normal as i32; vocab.tokens.len()]);
        let pieces = vocab.tokens.len();
        self.add_tokens(&mut vocab, rows)?;
        if vocab.tokens.len() > rows {
            let n = vocab.tokens.len();
            return Err(
                self.wrong("tokenizer.tokens", format!("{n} tokens, but the embedding has {rows} rows"))
            );
        }
        let (merges, lost) = self.merges(&vocab.tokens);
        let fallback = self.number("tokenizer.flags") & 1 != 0;
        let split = match self.number("tokenizer.type") {
            0 if !fallback => {
                let pre = splitter(family, rows);
                vocab.model = "gpt2".into();
                vocab.pre = Some(pre.into());
                let parts = |m: &[usize; 3]| format!("{} {}", vocab.tokens[m[0]], vocab.tokens[m[1]]);
                vocab.merges = Some(merges.iter().map(parts).collect());
                format!("text is split as {pre:?} does")
            }
            0 | 1 if !merges.is_empty() => {
                vocab.model = "llama".into();
                vocab.pre = Some("default".into());
                byte_types(&mut vocab, pieces);
                vocab.scores = Some(scores(&vocab, &merges));
                vocab.add_space_prefix = Some(self.number("tokenizer.flags") & 2 != 0);
                "text is not split before it is merged".into()
            }
            n => {
                let reason = format!("{n}: version 1 does not hold the scores of its pieces");
                return Err(self.unsupported("tokenizer.type", reason));
            }
        };
        [vocab.bos, vocab.eos, vocab.pad, vocab.unk] =
            ["bos", "eos", "pad", "unk"].map(|key| self.token(key));
        vocab.add_bos = Some(family.add_bos && vocab.bos.is_some());
        vocab.pad_to(rows);
        let begin = if vocab.add_bos == Some(true) { "begins" } else { "does not begin" };
        let mut words = format!(
            "version 1 of QSF does not say how text becomes tokens; assumed: {split}, it {begin} with the token for \
             its beginning, added tokens with the lowest flag are special"
        );
        if lost > 0 {
            words += &format!("; {lost} merges that make no token are left out");
        }
        Ok(Some((vocab, words)))
    }

    /// Puts the added tokens in their places, which may lie behind the vocabulary.
    fn add_tokens(&self, vocab: &mut Vocab, rows: usize) -> Result<(), Error> {
        let get = |key: &str| self.metadata.get(&format!("qsf.tokenizer.{key}")).and_then(Value::as_array);
        let (Some(Array::U32(ids)), Some(Array::String(texts)), Some(Array::U8(flags))) =
            (get("added_ids"), get("added_tokens"), get("added_flags"))
        else {
            return Ok(());
        };
        for ((&id, text), &flags) in ids.iter().zip(texts.iter()).zip(flags) {
            let at = id as usize;
            if at >= rows {
                let reason = format!("token {id}, but the embedding has {rows} rows");
                return Err(self.wrong("tokenizer.added_ids", reason));
            }
            if at >= vocab.tokens.len() {
                vocab.pad_to(at + 1);
            }
            let kind = if flags & 1 != 0 { TokenType::Control } else { TokenType::UserDefined };
            if let Some(token) = vocab.tokens.get_mut(at) {
                *token = text.to_owned();
            }
            if let Some(to) = vocab.token_types.as_mut().and_then(|types| types.get_mut(at)) {
                *to = kind as i32;
            }
        }
        Ok(())
    }

    /// Merges as tokens (left, right, both), and how many make no token: the converter wrote 0 for what it did not find,
    /// and such a merge never applies.
    fn merges(&self, tokens: &[String]) -> (Vec<[usize; 3]>, usize) {
        let Some(Array::U32(ids)) = self.metadata.get("qsf.tokenizer.merges").and_then(Value::as_array)
        else {
            return (Vec::new(), 0);
        };
        let holds = |[left, right, both]: &[usize; 3]| {
            let [left, right, both] = [left, right, both].map(|&at| tokens.get(at).map(String::as_str));
            let pair = left.zip(right).filter(|(l, r)| !l.is_empty() && !r.is_empty());
            pair.zip(both).is_some_and(|((l, r), both)| both.strip_prefix(l) == Some(r))
        };
        let all = ids.chunks_exact(3).map(|m| [m[0] as usize, m[1] as usize, m[2] as usize]);
        let n = all.len();
        let kept: Vec<_> = all.filter(holds).collect();
        let lost = n - kept.len();
        (kept, lost)
    }
}

/// How a family's tokenizers over bytes split text.
fn splitter(family: &Family, rows: usize) -> &'static str {
    match family.model_type {
        "qwen2" => "qwen2",
        "mistral" | "mixtral" if rows >= 131_072 => "tekken",
        "llama" if rows >= 128_000 => "llama-bpe",
        _ => "gpt-2",
    }
}

/// Pieces `<0xHH>` are bytes.
fn byte_types(vocab: &mut Vocab, pieces: usize) {
    let is_byte = |text: &str| {
        let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
        digits.is_some_and(|d| d.len() == 2 && u8::from_str_radix(d, 16).is_ok())
    };
    let Some(types) = &mut vocab.token_types else { return };
    for (kind, text) in types.iter_mut().zip(&vocab.tokens).take(pieces) {
        if *kind == TokenType::Normal as i32 && is_byte(text) {
            *kind = TokenType::Byte as i32;
        }
    }
}

/// Scores in the order in which merges make their tokens, as for a `tokenizer.json` with merges.
fn scores(vocab: &Vocab, merges: &[[usize; 3]]) -> Vec<f32> {
    let kind = |at: usize| u32::try_from(at).map_or(TokenType::Normal, |id| vocab.token_type(id));
    let mut made: Vec<Option<f32>> = vec![None; vocab.tokens.len()];
    let mut next = 0u32;
    for &[_, _, at] in merges {
        let score = made.get_mut(at).filter(|score| score.is_none() && kind(at) == TokenType::Normal);
        if let Some(score) = score {
            *score = Some(-(next as f32));
            next += 1;
        }
    }
    let last = -(next as f32);
    let fill = |(at, score): (usize, Option<f32>)| match (score, kind(at)) {
        (Some(score), _) => score,
        (None, TokenType::Byte) => 0.0,
        (None, TokenType::Normal) => last,
        (None, _) => -1000.0,
    };
    made.into_iter().enumerate().map(fill).collect()
}

/// A file with Hugging Face's names; those that have none there stay.
struct Named {
    inner: Arc<dyn Checkpoint>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Named {
    fn new(inner: Arc<dyn Checkpoint>) -> Named {
        let renamed = |info: &TensorInfo| {
            let name = NAMES.iter().find_map(|(from, to)| Some(fill(to, &capture(from, &info.name)?)));
            TensorInfo { name: name.unwrap_or_else(|| info.name.clone()), ..info.clone() }
        };
        let tensors: Vec<TensorInfo> = inner.tensors().iter().map(renamed).collect();
        let index = tensors.iter().enumerate().map(|(at, info)| (info.name.clone(), at)).collect();
        Named { inner, metadata: Metadata::new(), tensors, index }
    }
}

impl Checkpoint for Named {
    fn container(&self) -> &'static str {
        self.inner.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        self.inner.bytes(tensor)
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        self.inner.read(tensor, offset, dst)
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        self.inner.locate(tensor, range)
    }
    fn slice(&self, tensor: usize, range: Range<u64>) -> Result<Cow<'_, [u8]>, FileError> {
        self.inner.slice(tensor, range)
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}
