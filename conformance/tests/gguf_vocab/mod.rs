//! The tokenizer's keys of a GGUF file, read in the simplest way: for test vocabularies that we trust, so it may panic.

use std::collections::HashMap;
use std::path::Path;

use fonio_text::Vocab;

/// A metadata value, as far as vocabularies need it.
#[derive(Clone)]
enum Value {
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, n: usize) -> &[u8] {
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            0 | 7 => Value::Int(self.take(1)[0].into()),
            1 => Value::Int((self.take(1)[0] as i8).into()),
            2 => Value::Int(u16::from_le_bytes(self.take(2).try_into().unwrap()).into()),
            3 => Value::Int(i16::from_le_bytes(self.take(2).try_into().unwrap()).into()),
            4 => Value::Int(self.u32().into()),
            5 => Value::Int((self.u32() as i32).into()),
            6 => Value::Float(f32::from_bits(self.u32()).into()),
            8 => Value::Text(self.text()),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                Value::List((0..n).map(|_| self.value(kind)).collect())
            }
            10 | 11 => Value::Int(self.u64() as i64),
            12 => Value::Float(f64::from_bits(self.u64())),
            other => panic!("value type {other}"),
        }
    }
}

/// The vocabulary of a GGUF file.
pub fn read_vocab(path: &Path) -> Vocab {
    let file = std::fs::read(path).unwrap();
    let mut r = Reader(&file);
    assert_eq!(r.take(4), b"GGUF", "{}", path.display());
    let (_version, _tensors, pairs) = (r.u32(), r.u64(), r.u64());
    let mut keys = HashMap::new();
    for _ in 0..pairs {
        let key = r.text();
        let kind = r.u32();
        keys.insert(key, r.value(kind));
    }
    let get = |key: &str| keys.get(&format!("tokenizer.ggml.{key}"));
    let text = |v: &Value| match v {
        Value::Text(t) => t.clone(),
        _ => panic!("not a string"),
    };
    let int = |v: &Value| match v {
        Value::Int(i) => *i,
        _ => panic!("not an integer"),
    };
    let float = |v: &Value| match v {
        Value::Float(f) => *f as f32,
        _ => panic!("not a float"),
    };
    let list = |key: &str| match get(key) {
        Some(Value::List(l)) => Some(l),
        _ => None,
    };
    let id = |key: &str| get(key).map(|v| int(v) as u32);
    let flag = |key: &str| get(key).map(|v| int(v) != 0);
    Vocab {
        model: text(get("model").unwrap()),
        pre: get("pre").map(text),
        tokens: list("tokens").unwrap().iter().map(text).collect(),
        scores: list("scores").map(|l| l.iter().map(float).collect()),
        token_types: list("token_type").map(|l| l.iter().map(|v| int(v) as i32).collect()),
        merges: list("merges").map(|l| l.iter().map(text).collect()),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        unk: id("unknown_token_id"),
        sep: id("seperator_token_id"),
        pad: id("padding_token_id"),
        cls: id("cls_token_id"),
        mask: id("mask_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        precompiled_charsmap: list("precompiled_charsmap").map(|l| l.iter().map(|v| int(v) as u8).collect()),
        chat_template: keys.get("tokenizer.chat_template").map(text),
        ..Vocab::default()
    }
}
