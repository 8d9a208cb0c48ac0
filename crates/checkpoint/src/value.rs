//! Metadata: an ordered list of unique keys with values of GGUF's types.

use std::collections::HashMap;

/// A metadata value. The variants are GGUF's.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one piece of memory: vocabularies have hundreds of thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// No strings.
    pub fn new() -> Self {
        Self::default()
    }
    /// Strings that lie one after the other in `text`, each ending where `ends` says. `None` unless the ends rise,
    /// lie between characters, and the last one is the end of the text.
    pub fn from_parts(text: String, ends: Vec<usize>) -> Option<Self> {
        let rising = ends.is_sorted() && ends.last().copied().unwrap_or(0) == text.len();
        (rising && ends.iter().all(|&end| text.is_char_boundary(end))).then_some(Self { text, ends })
    }
    /// Adds one at the end.
    pub fn push(&mut self, s: &str) {
        self.text.push_str(s);
        self.ends.push(self.text.len());
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.text.get(start..end)
    }
    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut strings = Self::new();
        iter.into_iter().for_each(|s| strings.push(s.as_ref()));
        strings
    }
}

impl Value {
    /// The value as an unsigned integer, if it is a non-negative integer of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }
    /// The value as a float, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }
    /// The value as a truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
    /// The value as text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(v) => Some(v),
            _ => None,
        }
    }
    /// The value as an array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }
    /// The value as an array of strings, if it is one.
    pub fn as_strings(&self) -> Option<&Strings> {
        match self {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($from:ty => $to:expr;)*) => {
        $(impl From<$from> for Value {
            fn from(v: $from) -> Value {
                let to: fn($from) -> Value = $to;
                to(v)
            }
        })*
    };
}
from! {
    u8 => Value::U8;
    i8 => Value::I8;
    u16 => Value::U16;
    i16 => Value::I16;
    u32 => Value::U32;
    i32 => Value::I32;
    u64 => Value::U64;
    i64 => Value::I64;
    f32 => Value::F32;
    f64 => Value::F64;
    bool => Value::Bool;
    String => Value::String;
    &str => |v| Value::String(v.to_owned());
    Strings => |v| Value::Array(Array::String(v));
    Vec<f32> => |v| Value::Array(Array::F32(v));
    Vec<i32> => |v| Value::Array(Array::I32(v));
    Vec<u32> => |v| Value::Array(Array::U32(v));
    Vec<bool> => |v| Value::Array(Array::Bool(v));
}

/// Keys and values in file order; keys are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets a key: in its place if it is there, else at the end. Gives back the value it had.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(entry) = self.index.get(&key).and_then(|&at| self.entries.get_mut(at)) {
            return Some(std::mem::replace(&mut entry.1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }
    /// Adds those keys of `other` that are not here yet.
    pub fn add_new(&mut self, other: Metadata) {
        for (key, value) in other.entries {
            if self.get(&key).is_none() {
                self.insert(key, value);
            }
        }
    }
    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        let (_, value) = self.entries.remove(at);
        self.index.values_mut().filter(|i| **i > at).for_each(|i| *i = i.saturating_sub(1));
        Some(value)
    }
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&at| self.entries.get(at)).map(|(_, v)| v)
    }
    /// Everything, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
