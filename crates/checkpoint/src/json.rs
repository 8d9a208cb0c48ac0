//! JSON objects whose keys must be unique, which serde's own maps do not ask for.
//!
//! Depth is bounded by serde_json (128) and by the types here, which never nest more than four deep.

use crate::cursor::Fault;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

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
