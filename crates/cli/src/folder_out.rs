//! Everything of a Hugging Face folder but its weights: config.json, tokenizer, chat template, generation config.

use anyhow::Context as _;
use fonio_codec::DType;
use fonio_model::source::Source;
use fonio_text::{TokenType, Vocab};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Files that belong to a model without being weights or documents about it.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
];

/// Files to be written beside the weights: name and bytes.
pub type Companions = Vec<(String, Vec<u8>)>;

/// The files of a folder as they are; its configuration says the weights' new type, and no longer that they are quantized if
/// they are `plain` now.
pub fn copied(folder: &Path, dtype: Option<DType>, plain: bool) -> anyhow::Result<Companions> {
    let mut files = Vec::new();
    for name in COMPANIONS {
        let path = folder.join(name);
        if path.is_file() {
            files.push((
                (*name).to_owned(),
                std::fs::read(&path).with_context(|| path.display().to_string())?,
            ));
        }
    }
    let path = folder.join("config.json");
    if path.is_file() {
        let mut bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        if let Some(name) = dtype.and_then(torch_name) {
            let mut config: Json =
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
            for object in ["", "/text_config", "/vision_config"] {
                if let Some(object) =
                    config.pointer_mut(object).and_then(Json::as_object_mut).filter(|_| plain)
                {
                    fonio_model::prequant::KEYS.iter().for_each(|&key| drop(object.remove(key)));
                }
                for key in ["dtype", "torch_dtype"] {
                    let place = config.pointer_mut(object).and_then(|o| o.get_mut(key));
                    if let Some(value) = place.filter(|v| v.is_string()) {
                        *value = json!(name);
                    }
                }
            }
            bytes = pretty(&config);
        }
        files.push(("config.json".into(), bytes));
    }
    Ok(files)
}

/// Files made from a model that has none. `config` is what the architecture says of itself.
pub fn made(source: &Source, mut config: Map<String, Json>, dtype: DType) -> anyhow::Result<Companions> {
    if let Some(name) = torch_name(dtype) {
        config.insert("torch_dtype".into(), json!(name));
    }
    let tokenizer = source.tokenizer()?;
    let vocab = tokenizer.vocab();
    let mut ends: Vec<u32> = tokenizer.end_of_generation().collect();
    ends.sort_unstable();
    // The tokenizer's own end comes first: some readers take only that one.
    ends.sort_by_key(|&id| Some(id) != vocab.eos);
    let mut generation = Map::new();
    for (key, id) in [("bos_token_id", vocab.bos), ("pad_token_id", vocab.pad)] {
        if let Some(id) = id {
            generation.insert(key.into(), json!(id));
        }
    }
    if !ends.is_empty() {
        generation.insert("eos_token_id".into(), json!(ends));
    }
    let mut files = vec![
        ("config.json".into(), pretty(&Json::Object(config))),
        ("generation_config.json".into(), pretty(&Json::Object(generation))),
        ("tokenizer_config.json".into(), pretty(&tokenizer_config(vocab, source.spec().context_len))),
    ];
    if let Some(json) = fonio_text::tokenizer_json(vocab) {
        files.push(("tokenizer.json".into(), pretty(&json)));
    }
    Ok(files)
}

fn tokenizer_config(vocab: &Vocab, context: usize) -> Json {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("model_max_length".into(), json!(context));
    for (key, id) in [
        ("bos_token", vocab.bos),
        ("eos_token", vocab.eos),
        ("unk_token", vocab.unk),
        ("pad_token", vocab.pad),
    ] {
        if let Some(token) = id.and_then(|id| vocab.tokens.get(id as usize)) {
            config.insert(key.into(), json!(token));
        }
    }
    for (key, flag) in [("add_bos_token", vocab.add_bos), ("add_eos_token", vocab.add_eos)] {
        if let Some(flag) = flag {
            config.insert(key.into(), json!(flag));
        }
    }
    if let Some(template) = &vocab.chat_template {
        config.insert("chat_template".into(), json!(template));
    }
    let special = (0u32..).zip(&vocab.tokens).filter(|&(id, _)| vocab.token_type(id) == TokenType::Control);
    let decoder: Map<String, Json> = special
        .map(|(id, token)| {
            (id.to_string(), json!({
                "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true,
            }))
        })
        .collect();
    config.insert("added_tokens_decoder".into(), Json::Object(decoder));
    Json::Object(config)
}

/// A float type as PyTorch calls it.
fn torch_name(dtype: DType) -> Option<&'static str> {
    match dtype.name() {
        "F32" => Some("float32"),
        "F16" => Some("float16"),
        "BF16" => Some("bfloat16"),
        _ => None,
    }
}

fn pretty(json: &Json) -> Vec<u8> {
    format!("{json:#}\n").into_bytes()
}
