//! JSON objects whose keys must be unique, which serde's own maps do not ask for, and indexes of sharded models.
//!
//! Depth is bounded by serde_json (128) and by the types here, which never nest more than four deep.

use crate::cursor::Fault;
use crate::map::Source;
use crate::{Error, shards};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Largest index: one of a model of a trillion parameters has some 10 MB.
const MAX_INDEX: u64 = 100_000_000;

/// A value whose type may depend on its key.
pub(crate) trait Field<'de>: Sized {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl<'de> Field<'de> for String {
    fn read<A: MapAccess<'de>>(_: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

/// An object's fields in their order. Keys are unique.
pub(crate) struct Object<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Field<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Field<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
        let mut seen = HashSet::new();
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            let value = T::read(&key, &mut map)?;
            fields.push((key, value));
        }
        Ok(Object(fields))
    }
}

/// What serde_json did not like, with the byte where it stopped. `text` begins at byte `base` of the file.
pub(crate) fn fault(error: &serde_json::Error, text: &[u8], base: u64) -> Fault {
    let lines = text.split_inclusive(|&b| b == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let at = before.saturating_add(error.column().saturating_sub(1));
    let reason = error.to_string();
    let reason = reason.rsplit_once(" at line ").map_or(&*reason, |(reason, _)| reason);
    let offset = Some(base.saturating_add(at as u64));
    Fault::Corrupt { tensor: None, offset, reason: format!("JSON: {reason}") }
}

/// `model.safetensors.index.json` or `pytorch_model.bin.index.json`: which file has which tensor.
pub(crate) struct Index {
    /// The files, in the order of their names.
    pub(crate) files: Vec<PathBuf>,
    /// Tensor and index of its file.
    pub(crate) tensors: Vec<(String, usize)>,
}

enum IndexField {
    WeightMap(Object<String>),
    Other,
}

impl<'de> Field<'de> for IndexField {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        Ok(match key {
            "weight_map" => IndexField::WeightMap(map.next_value()?),
            _ => map.next_value::<IgnoredAny>().map(|_| IndexField::Other)?,
        })
    }
}

/// Reads an index. The names of files in it are whatever somebody wrote: only names of files beside the index are
/// taken.
pub(crate) fn read_index(path: &Path) -> Result<Index, Error> {
    let source = Source::open(path)?;
    if source.len() > MAX_INDEX {
        let reason = format!("an index of {} bytes; {MAX_INDEX} are allowed", source.len());
        return Err(Error::Limit { file: path.into(), tensor: None, reason });
    }
    let text = source.read_vec(0, source.len())?;
    parse_index(&text, path).map_err(|fault| fault.in_file(path))
}

/// Parses the text of the index at `path`.
pub(crate) fn parse_index(text: &[u8], path: &Path) -> Result<Index, Fault> {
    let corrupt = |tensor: Option<&str>, reason: String| Fault::Corrupt {
        tensor: tensor.map(Into::into),
        offset: None,
        reason,
    };
    let Object(fields) =
        serde_json::from_slice::<Object<IndexField>>(text).map_err(|e| fault(&e, text, 0))?;
    let map = fields.into_iter().find_map(|(_, field)| match field {
        IndexField::WeightMap(Object(map)) => Some(map),
        IndexField::Other => None,
    });
    let map = map.ok_or_else(|| corrupt(None, "there is no \"weight_map\"".into()))?;
    let mut names: Vec<&str> = map.iter().map(|(_, file)| file.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        if !shards::is_plain_name(name) {
            let tensor = map.iter().find(|(_, file)| file == name).map(|(tensor, _)| tensor.as_str());
            return Err(corrupt(tensor, format!("{name:?} is not the name of a file beside the index")));
        }
    }
    let tensors = map.iter().map(|(t, file)| (t.clone(), names.binary_search(&file.as_str()).unwrap_or(0)));
    Ok(Index {
        tensors: tensors.collect(),
        files: names.iter().map(|name| path.with_file_name(name)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(text: &str) -> Result<Index, Fault> {
        parse_index(text.as_bytes(), Path::new("/d/index.json"))
    }

    #[test]
    fn reads_an_index() {
        let text =
            r#"{"metadata": {"total_size": 5, "x": [1]}, "weight_map": {"b": "2", "a": "1", "c": "2"}}"#;
        let index = index(text).unwrap();
        assert_eq!(index.files, [Path::new("/d/1"), Path::new("/d/2")]);
        assert_eq!(index.tensors, [("b".into(), 1), ("a".into(), 0), ("c".into(), 1)]);
    }

    #[test]
    fn hostile_indexes() {
        let deep = format!(r#"{{"x": {}"#, "[".repeat(100_000));
        for text in [
            "",
            "[]",
            "null",
            "{}",
            r#"{"weight_map": {"a": "1"}} x"#,
            r#"{"weight_map": {"a": "1", "a": "2"}}"#,
            r#"{"weight_map": {"a": "1"}, "weight_map": {"a": "1"}}"#,
            r#"{"weight_map": ["1"]}"#,
            r#"{"weight_map": {"a": 1}}"#,
            r#"{"weight_map": {"a": "../1"}}"#,
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            r#"{"weight_map": {"a": "sub/1"}}"#,
            r#"{"weight_map": {"a": "sub\\1"}}"#,
            r#"{"weight_map": {"a": "c:1"}}"#,
            r#"{"weight_map": {"a": ".."}}"#,
            r#"{"weight_map": {"a": ""}}"#,
            r#"{"weight_map": {"a": "1\u0000"}}"#,
            r#"{"weight_map": {"a": "NUL.safetensors"}}"#,
            &deep,
        ] {
            assert!(matches!(index(text), Err(Fault::Corrupt { .. })), "{text:.60}");
        }
        let Err(Fault::Corrupt { tensor, reason, .. }) = index(r#"{"weight_map": {"b": "1", "a": "../1"}}"#)
        else {
            panic!()
        };
        assert_eq!(tensor.as_deref(), Some("a"));
        assert!(reason.contains("../1"));
        let Err(Fault::Corrupt { offset, .. }) = index("{\n\"weight_map\": 3}") else { panic!() };
        assert_eq!(offset, Some(16));
    }
}
