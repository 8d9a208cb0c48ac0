//! Reading safetensors: see the folder's `mod.rs` for the layout and the rules.

use super::{DTYPES, MAX_HEADER, METADATA_KEY};
use crate::cursor::Fault;
use crate::json::{self, Field, Object};
use crate::map::Source;
use crate::opened::{Opened, checked_nbytes};
use crate::sharded::FileSet;
use crate::{Checkpoint, Error, Metadata, TensorInfo};
use fonio_codec::DType;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::fmt;
use std::path::Path;

/// More dimensions than any framework has.
const MAX_DIMS: usize = 64;

/// A plausible header length and the header's beginning; or an index.
pub(super) fn sniff(first: &[u8]) -> bool {
    let header = first.split_first_chunk::<8>().is_some_and(|(len, rest)| {
        (2..=MAX_HEADER).contains(&u64::from_le_bytes(*len)) && rest.starts_with(b"{")
    });
    let has = |text: &[u8]| first.windows(text.len()).any(|w| w == text);
    header || (first.starts_with(b"{") && has(b"\"weight_map\"") && has(b".safetensors\""))
}

/// Opens a file, a sharded model by its index or any of its files, or the model in a folder.
pub(super) fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    if path.is_dir() {
        return open(&crate::list::file_in(path, &super::SAFETENSORS)?);
    }
    let set = FileSet::find(path)?;
    let sources = set.files.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(assemble(sources, Some(&set))?))
}

/// Reads a file in memory, with all checks.
pub(crate) fn open_memory(bytes: Vec<u8>) -> Result<Box<dyn Checkpoint>, Error> {
    let source = Source::memory(Path::new("memory.safetensors"), bytes);
    Ok(Box::new(assemble(vec![source], None)?))
}

fn assemble(sources: Vec<Source>, set: Option<&FileSet>) -> Result<Opened, Error> {
    let mut metadata = Metadata::new();
    let mut tensors = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        let header = read_header(source)?;
        metadata.add_new(header.metadata);
        tensors.extend(header.tensors.into_iter().map(|t| TensorInfo { file, ..t }));
    }
    if let Some(set) = set {
        set.compare(&tensors)?;
    }
    Opened::new("safetensors", sources, metadata, tensors)
}

/// What a file's header says; offsets are in the file.
struct Header {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

fn read_header(source: &Source) -> Result<Header, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    let corrupt = |reason: String| Fault::Corrupt { tensor: None, offset: Some(0), reason };
    if source.len() < 8 {
        let reason = format!("{} bytes are too few for a header", source.len());
        return Err(in_file(corrupt(reason)));
    }
    let mut len = [0; 8];
    source.read_at(0, &mut len)?;
    let len = u64::from_le_bytes(len);
    let left = source.len().saturating_sub(8);
    if len > left {
        return Err(in_file(corrupt(format!("a header of {len} bytes, but {left} follow"))));
    }
    if len > MAX_HEADER {
        let reason = format!("a header of {len} bytes; {MAX_HEADER} are allowed");
        return Err(in_file(Fault::Limit { tensor: None, reason }));
    }
    let text = source.read_vec(8, len)?;
    parse(&text, left.saturating_sub(len)).map_err(in_file)
}

/// Parses a header that `data` bytes follow.
fn parse(text: &[u8], data: u64) -> Result<Header, Fault> {
    let base = 8u64.saturating_add(text.len() as u64);
    if !text.starts_with(b"{") {
        let reason = "the header does not begin with {".into();
        return Err(Fault::Corrupt { tensor: None, offset: Some(8), reason });
    }
    let mut reader = HeaderReader::default();
    let mut json = serde_json::Deserializer::from_slice(text);
    let result = json.deserialize_map(&mut reader).and_then(|()| {
        // What follows the object is not about its last key.
        reader.current = None;
        json.end()
    });
    result.map_err(|e| {
        let fault = json::fault(&e, text, 8);
        match &reader.current {
            Some(name) => fault.of(name),
            None => fault,
        }
    })?;
    let mut entries = reader.entries;
    entries.sort_by_key(|(_, entry)| entry.range);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (name, entry) in entries {
        let info = entry.check(&name, &mut end, data, base).map_err(|fault| fault.of(&name))?;
        tensors.push(TensorInfo { name, ..info });
    }
    if end != data {
        let reason = format!("the tensors end after {end} bytes, but {data} follow the header");
        return Err(Fault::Corrupt { tensor: None, offset: Some(base.saturating_add(end)), reason });
    }
    let mut metadata = Metadata::new();
    for (key, text) in reader.metadata {
        metadata.insert(key, text);
    }
    Ok(Header { metadata, tensors })
}

/// A tensor's entry.
#[derive(Default)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    range: (u64, u64),
}

impl Entry {
    /// Everything about it is right, and it begins where the one before ended.
    fn check(self, name: &str, end: &mut u64, data: u64, base: u64) -> Result<TensorInfo, Fault> {
        let (from, to) = self.range;
        let corrupt =
            |reason| Fault::Corrupt { tensor: None, offset: Some(base.saturating_add(from)), reason };
        if from != *end || to < from || to > data {
            let how = if from < *end { "overlaps" } else { "gap" };
            let how = if to < from || to > data { "out of range" } else { how };
            return Err(corrupt(format!(
                "{how}: it is at {from}..{to}, the next free byte is {end} of {data}"
            )));
        }
        if !DTYPES.contains(&self.dtype.as_str()) {
            let reason = format!("type {}; {} are", self.dtype, DTYPES.join(", "));
            return Err(Fault::Unsupported { tensor: Some(name.into()), reason });
        }
        if self.shape.len() > MAX_DIMS {
            let reason = format!("{} dimensions; {MAX_DIMS} are allowed", self.shape.len());
            return Err(Fault::Limit { tensor: None, reason });
        }
        let dtype = DType::named(&self.dtype).ok_or_else(|| corrupt(format!("type {}", self.dtype)))?;
        let nbytes = checked_nbytes(dtype, &self.shape).map_err(corrupt)?;
        if to.saturating_sub(from) != nbytes {
            let reason = format!("{dtype} {:?} has {nbytes} bytes, but its range {from}..{to}", self.shape);
            return Err(corrupt(reason));
        }
        *end = to;
        let offset = base.saturating_add(from);
        Ok(TensorInfo { name: String::new(), dtype, shape: self.shape, file: 0, offset, nbytes })
    }
}

/// One field of an entry.
enum EntryField {
    Dtype(String),
    Shape(Vec<u64>),
    Range((u64, u64)),
}

impl<'de> Field<'de> for EntryField {
    fn read<A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        Ok(match key {
            "dtype" => EntryField::Dtype(map.next_value()?),
            "shape" => EntryField::Shape(map.next_value()?),
            "data_offsets" => EntryField::Range(map.next_value()?),
            _ => return Err(A::Error::custom(format!("unknown field {key:?}"))),
        })
    }
}

impl Entry {
    fn from_fields(fields: Vec<(String, EntryField)>) -> Option<Entry> {
        // Names are known and unique, so three fields are all of them.
        (fields.len() == 3).then(|| {
            let mut entry = Entry::default();
            for (_, field) in fields {
                match field {
                    EntryField::Dtype(dtype) => entry.dtype = dtype,
                    EntryField::Shape(shape) => entry.shape = shape,
                    EntryField::Range(range) => entry.range = range,
                }
            }
            entry
        })
    }
}

/// Collects the header's entries, and remembers which one it is at for errors.
#[derive(Default)]
struct HeaderReader {
    current: Option<String>,
    metadata: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
}

impl<'de> Visitor<'de> for &mut HeaderReader {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.current = Some(key.clone());
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom("the key is there twice"));
            }
            if key == METADATA_KEY {
                self.metadata = map.next_value::<Object<String>>()?.0;
                continue;
            }
            let Object(fields) = map.next_value::<Object<EntryField>>()?;
            let entry = Entry::from_fields(fields);
            let entry = entry.ok_or_else(|| A::Error::custom("dtype, shape or data_offsets is missing"))?;
            self.entries.push((key, entry));
        }
        Ok(())
    }
}
