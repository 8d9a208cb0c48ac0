//! A vocabulary as GGUF's `tokenizer.*` keys, and back. What the format has no key for is under `fonio.tokenizer`, which
//! other programs ignore.

use fonio_checkpoint::{Array, Metadata, Strings, Value};
use fonio_text::Vocab;

const TEMPLATE: &str = "tokenizer.chat_template";

/// Reads the keys, or says which one is wrong and why; `None` if there is no vocabulary.
pub fn from_metadata(metadata: &Metadata) -> Result<Option<Vocab>, (String, String)> {
    let read = Reader(metadata);
    let Some(model) = read.text("model")? else { return Ok(None) };
    let Some(tokens) = read.strings("tokens")? else {
        return Err(("tokenizer.ggml.tokens".into(), "is missing".into()));
    };
    let mut templates = Vec::new();
    for (key, value) in metadata.iter() {
        if let (Some(name), Some(template)) = (key.strip_prefix(&format!("{TEMPLATE}.")), value.as_str()) {
            templates.push((name.to_owned(), template.to_owned()));
        }
    }
    Ok(Some(Vocab {
        model,
        pre: read.text("pre")?,
        tokens,
        scores: read.floats("scores")?,
        token_types: read.integers("token_type")?,
        merges: read.strings("merges")?,
        bos: read.id("bos_token_id")?,
        eos: read.id("eos_token_id")?,
        eot: read.id("eot_token_id")?,
        eom: read.id("eom_token_id")?,
        unk: read.id("unknown_token_id")?,
        sep: read.id("seperator_token_id")?,
        pad: read.id("padding_token_id")?,
        cls: read.id("cls_token_id")?,
        mask: read.id("mask_token_id")?,
        add_bos: read.flag("add_bos_token")?,
        add_eos: read.flag("add_eos_token")?,
        add_space_prefix: read.flag("add_space_prefix")?,
        remove_extra_whitespaces: read.flag("remove_extra_whitespaces")?,
        precompiled_charsmap: read.bytes("precompiled_charsmap")?,
        lowercase: read.flag("normalizer.lowercase")?,
        strip_accents: read.flag("normalizer.strip_accents")?,
        normalizer: read.own_text("normalizer")?,
        metaspace: read.own_text("metaspace")?,
        ignore_merges: read.typed(own("ignore_merges"), "truth value", Value::as_bool)?,
        lstrip: read.own_ids("lstrip_ids")?,
        rstrip: read.own_ids("rstrip_ids")?,
        single_word: read.own_ids("single_word_ids")?,
        extra_eos: read.own_ids("end_token_ids")?,
        chat_template: metadata.get(TEMPLATE).and_then(|v| v.as_str()).map(str::to_owned),
        named_chat_templates: templates,
    }))
}

/// Writes the keys.
pub fn to_metadata(vocab: &Vocab, metadata: &mut Metadata) {
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            metadata.insert(format!("tokenizer.ggml.{key}"), value);
        }
    };
    set("model", Some(vocab.model.as_str().into()));
    set("pre", vocab.pre.as_deref().map(Value::from));
    set("tokens", Some(vocab.tokens.iter().collect::<Strings>().into()));
    set("scores", vocab.scores.clone().map(Value::from));
    set("token_type", vocab.token_types.clone().map(Value::from));
    set("merges", vocab.merges.as_ref().map(|m| m.iter().collect::<Strings>().into()));
    set("bos_token_id", vocab.bos.map(Value::from));
    set("eos_token_id", vocab.eos.map(Value::from));
    set("eot_token_id", vocab.eot.map(Value::from));
    set("eom_token_id", vocab.eom.map(Value::from));
    set("unknown_token_id", vocab.unk.map(Value::from));
    set("seperator_token_id", vocab.sep.map(Value::from));
    set("padding_token_id", vocab.pad.map(Value::from));
    set("cls_token_id", vocab.cls.map(Value::from));
    set("mask_token_id", vocab.mask.map(Value::from));
    set("add_bos_token", vocab.add_bos.map(Value::from));
    set("add_eos_token", vocab.add_eos.map(Value::from));
    set("add_space_prefix", vocab.add_space_prefix.map(Value::from));
    set("remove_extra_whitespaces", vocab.remove_extra_whitespaces.map(Value::from));
    set("precompiled_charsmap", vocab.precompiled_charsmap.clone().map(|b| Value::Array(Array::U8(b))));
    set("normalizer.lowercase", vocab.lowercase.map(Value::from));
    set("normalizer.strip_accents", vocab.strip_accents.map(Value::from));
    let texts = [("normalizer", &vocab.normalizer), ("metaspace", &vocab.metaspace)];
    for (key, text) in texts {
        if let Some(text) = text {
            metadata.insert(own(key), text.as_str());
        }
    }
    if let Some(ignore) = vocab.ignore_merges {
        metadata.insert(own("ignore_merges"), ignore);
    }
    let ids = [
        ("lstrip_ids", &vocab.lstrip),
        ("rstrip_ids", &vocab.rstrip),
        ("single_word_ids", &vocab.single_word),
        ("end_token_ids", &vocab.extra_eos),
    ];
    for (key, ids) in ids.into_iter().filter(|(_, ids)| !ids.is_empty()) {
        metadata.insert(own(key), Value::Array(Array::U32(ids.clone())));
    }
    if let Some(template) = &vocab.chat_template {
        metadata.insert(TEMPLATE, template.as_str());
    }
    for (name, template) in &vocab.named_chat_templates {
        metadata.insert(format!("{TEMPLATE}.{name}"), template.as_str());
    }
    if !vocab.named_chat_templates.is_empty() {
        let names: Strings = vocab.named_chat_templates.iter().map(|(name, _)| name).collect();
        metadata.insert("tokenizer.chat_templates", names);
    }
}

/// A key that is no part of the format.
fn own(key: &str) -> String {
    format!("fonio.tokenizer.{key}")
}

struct Reader<'a>(&'a Metadata);

type Field<T> = Result<Option<T>, (String, String)>;

impl Reader<'_> {
    fn get<T>(&self, key: &str, what: &str, convert: impl Fn(&Value) -> Option<T>) -> Field<T> {
        self.typed(format!("tokenizer.ggml.{key}"), what, convert)
    }
    fn typed<T>(&self, key: String, what: &str, convert: impl Fn(&Value) -> Option<T>) -> Field<T> {
        match self.0.get(&key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| (key, format!("is no {what}"))),
        }
    }
    fn own_text(&self, key: &str) -> Field<String> {
        self.typed(own(key), "text", |v| v.as_str().map(str::to_owned))
    }
    fn own_ids(&self, key: &str) -> Result<Vec<u32>, (String, String)> {
        let ids = self.typed(own(key), "array of tokens", |v| match v {
            Value::Array(Array::U32(x)) => Some(x.clone()),
            _ => None,
        })?;
        Ok(ids.unwrap_or_default())
    }
    fn text(&self, key: &str) -> Field<String> {
        self.get(key, "text", |v| v.as_str().map(str::to_owned))
    }
    fn strings(&self, key: &str) -> Field<Vec<String>> {
        self.get(key, "array of texts", |v| Some(v.as_strings()?.iter().map(str::to_owned).collect()))
    }
    fn floats(&self, key: &str) -> Field<Vec<f32>> {
        self.get(key, "array of 32-bit floats", |v| match v {
            Value::Array(Array::F32(x)) => Some(x.clone()),
            _ => None,
        })
    }
    fn integers(&self, key: &str) -> Field<Vec<i32>> {
        self.get(key, "array of 32-bit integers", |v| match v {
            Value::Array(Array::I32(x)) => Some(x.clone()),
            Value::Array(Array::U32(x)) => x.iter().map(|&x| i32::try_from(x).ok()).collect(),
            _ => None,
        })
    }
    fn bytes(&self, key: &str) -> Field<Vec<u8>> {
        self.get(key, "array of bytes", |v| match v {
            Value::Array(Array::U8(x)) => Some(x.clone()),
            Value::Array(Array::I8(x)) => Some(x.iter().map(|&x| x as u8).collect()),
            _ => None,
        })
    }
    fn id(&self, key: &str) -> Field<u32> {
        // Some converters write −1 where there is no such token.
        let id = self.get(key, "token", |v| match v {
            Value::I32(-1) | Value::U32(u32::MAX) => Some(None),
            _ => Some(Some(u32::try_from(v.as_u64()?).ok()?)),
        })?;
        Ok(id.flatten())
    }
    fn flag(&self, key: &str) -> Field<bool> {
        self.get(key, "truth value", Value::as_bool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vocab {
        Vocab {
            model: "llama".into(),
            pre: Some("default".into()),
            tokens: vec!["<unk>".into(), "a".into(), "▁b".into()],
            scores: Some(vec![0.0, -1.0, -2.0]),
            token_types: Some(vec![2, 1, 1]),
            bos: Some(1),
            unk: Some(0),
            add_bos: Some(true),
            precompiled_charsmap: Some(vec![1, 255]),
            strip_accents: Some(false),
            normalizer: Some(r#"{"type":"NFC"}"#.into()),
            metaspace: Some("first".into()),
            ignore_merges: Some(true),
            lstrip: vec![1],
            rstrip: vec![2, 0],
            single_word: vec![1],
            extra_eos: vec![2, 1],
            chat_template: Some("{{ x }}".into()),
            named_chat_templates: vec![("tool_use".into(), "{{ y }}".into())],
            ..Vocab::default()
        }
    }

    #[test]
    fn keys_hold_all_of_a_vocabulary() {
        let mut metadata = Metadata::new();
        to_metadata(&sample(), &mut metadata);
        assert_eq!(from_metadata(&metadata), Ok(Some(sample())));
        assert_eq!(from_metadata(&Metadata::new()), Ok(None));
    }

    /// Counts were checked elsewhere and types were not: every key with every type of value is read or named.
    #[test]
    fn wrong_types_are_named() {
        let mut all = Metadata::new();
        to_metadata(&sample(), &mut all);
        let values = [
            Value::U8(1),
            Value::I8(-1),
            Value::U64(u64::MAX),
            Value::F32(f32::NAN),
            Value::Bool(true),
            "x".into(),
            Value::Array(Array::U64(vec![1])),
            Value::Array(Array::F64(vec![1.0])),
            Value::Array(Array::Bool(vec![true])),
            vec![1.0f32].into(),
            vec![1i32].into(),
            Strings::from_iter(["x"]).into(),
        ];
        for (key, good) in
            all.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.") || key.starts_with("fonio."))
        {
            for value in &values {
                let mut metadata = all.clone();
                metadata.insert(key, value.clone());
                let same_kind = std::mem::discriminant(good) == std::mem::discriminant(value);
                match from_metadata(&metadata) {
                    Err((wrong, _)) => assert_eq!(wrong, key),
                    Ok(_) => assert!(same_kind || value.as_u64().is_some(), "{key} {value:?}"),
                }
            }
        }
    }
}
