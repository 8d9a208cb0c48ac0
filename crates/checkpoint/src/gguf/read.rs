//! Reading GGUF: see the folder's `mod.rs` for the layout.

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, kind,
};
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::opened::{Opened, checked_nbytes};
use crate::{Array, Checkpoint, Error, Metadata, Strings, TensorInfo, Value, shards};
use fonio_codec::DType;
use std::path::Path;

/// Most bytes before the data. The largest real headers (vocabularies of 260,000 tokens with their scores, merges
/// and an embedded tokenizer.json) have some 40 MB.
const MAX_HEADER: u64 = 512 << 20;
/// First bytes that are read; real headers mostly have one to ten MB.
const FIRST_READ: u64 = 1 << 20;
/// Longest key, by the specification.
const MAX_KEY: usize = 65_535;

/// What comes before the data.
struct Header {
    metadata: Metadata,
    /// `file` is 0; offsets are in the file.
    tensors: Vec<TensorInfo>,
}

/// Opens a file, all files of a split set by any of them, or the one model in a folder.
pub(super) fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    if path.is_dir() {
        return open(&crate::list::file_in(path, &super::GGUF)?);
    }
    let source = Source::open(path)?;
    let header = read_header(&source)?;
    let opened = match split_of(&header.metadata).map_err(|fault| fault.in_file(path))? {
        Some(split) if split.count > 1 => open_set(path, source, header, split.count)?,
        _ => assemble(vec![source], without_split(header.metadata), header.tensors)?,
    };
    Ok(Box::new(opened))
}

/// Reads a file in memory, with all checks. A part of a split set is taken by itself.
pub(crate) fn open_memory(bytes: Vec<u8>) -> Result<Box<dyn Checkpoint>, Error> {
    let source = Source::memory(Path::new("memory.gguf"), bytes);
    let header = read_header(&source)?;
    split_of(&header.metadata).map_err(|fault| fault.in_file(source.path()))?;
    Ok(Box::new(assemble(vec![source], without_split(header.metadata), header.tensors)?))
}

fn assemble(sources: Vec<Source>, metadata: Metadata, tensors: Vec<TensorInfo>) -> Result<Opened, Error> {
    Opened::new("gguf", sources, metadata, tensors)
}

/// What `split.*` says.
struct Split {
    no: u64,
    count: u64,
    tensors: Option<u64>,
}

fn split_of(metadata: &Metadata) -> Result<Option<Split>, Fault> {
    let number = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| Fault::Corrupt {
            tensor: Some(key.into()),
            offset: None,
            reason: "not a non-negative integer".into(),
        }),
    };
    let (no, tensors) = (number(SPLIT_NO)?, number(SPLIT_TENSORS)?);
    let Some(count) = number(SPLIT_COUNT)? else { return Ok(None) };
    // split.count is 16 bits wide in the files that llama.cpp writes, file names have five digits.
    if count > 65_535 || (count > 0 && no.unwrap_or(0) >= count) {
        let reason = format!("part {no:?} of {count}");
        return Err(Fault::Corrupt { tensor: Some(SPLIT_COUNT.into()), offset: None, reason });
    }
    Ok(Some(Split { no: no.unwrap_or(0), count, tensors }))
}

fn without_split(mut metadata: Metadata) -> Metadata {
    for key in [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS] {
        metadata.remove(key);
    }
    metadata
}

/// Opens all parts; `given`, with its header, is one of them.
fn open_set(given: &Path, source: Source, header: Header, count: u64) -> Result<Opened, Error> {
    let corrupt = |file: &Path, key: Option<&str>, reason: String| Error::Corrupt {
        file: file.into(),
        tensor: key.map(Into::into),
        offset: None,
        reason,
    };
    let paths = shards::siblings(given, count).ok_or_else(|| {
        let reason = format!(
            "says that it is one of {count} files, but is not named like NAME-00001-of-{count:05}.gguf"
        );
        corrupt(given, Some(SPLIT_COUNT), reason)
    })?;
    let mut given_part = Some((source, header));
    let (mut sources, mut tensors, mut metadata) = (Vec::new(), Vec::new(), None);
    let mut total = None;
    for (no, path) in paths.iter().enumerate() {
        let (source, header) = match given_part.take_if(|_| path.file_name() == given.file_name()) {
            Some(part) => part,
            None => {
                shards::require(path, no, count)?;
                let source = Source::open(path)?;
                let header = read_header(&source)?;
                (source, header)
            }
        };
        let split = split_of(&header.metadata).map_err(|fault| fault.in_file(path))?;
        let total = *total.get_or_insert(split.as_ref().and_then(|s| s.tensors));
        let agrees = |s: Split| s.count == count && s.no == no as u64 && s.tensors == total;
        if !split.is_some_and(agrees) {
            let reason = format!(
                "does not agree with the other files that it is part {} of {count}",
                no.saturating_add(1)
            );
            return Err(corrupt(path, Some(SPLIT_NO), reason));
        }
        metadata.get_or_insert(header.metadata);
        tensors.extend(header.tensors.into_iter().map(|t| TensorInfo { file: no, ..t }));
        sources.push(source);
    }
    if let Some(Some(want)) = total
        && want != tensors.len() as u64
    {
        let reason = format!("the set should have {want} tensors and has {}", tensors.len());
        return Err(corrupt(given, Some(SPLIT_TENSORS), reason));
    }
    assemble(sources, without_split(metadata.unwrap_or_default()), tensors)
}

/// Reads as much of the file as the header turns out to need.
fn read_header(source: &Source) -> Result<Header, Error> {
    let mut bytes = Vec::new();
    let mut len = FIRST_READ.min(source.len());
    loop {
        source.read_more(&mut bytes, len)?;
        let need = match parse(&bytes, source.len()) {
            Ok(header) => return Ok(header),
            Err(Fault::Short(need)) => need,
            Err(fault) => return Err(fault.in_file(source.path())),
        };
        if need > MAX_HEADER {
            let reason = format!("metadata and tensor list of more than {MAX_HEADER} bytes");
            return Err(Fault::Limit { tensor: None, reason }.in_file(source.path()));
        }
        len = need.max(len.saturating_mul(4)).min(MAX_HEADER).min(source.len());
    }
}

/// Parses the header in the first `bytes` of a file of `file_len` bytes.
fn parse(bytes: &[u8], file_len: u64) -> Result<Header, Fault> {
    let mut at = Cursor::new(bytes, file_len);
    if at.take(4)? != MAGIC {
        return Err(Fault::Corrupt {
            tensor: None,
            offset: Some(0),
            reason: "does not begin with GGUF".into(),
        });
    }
    check_version(&mut at)?;
    let n_tensors = at.u64()?;
    let n_kv = at.u64()?;
    // A tensor's description has at least 24 bytes.
    check_count(&at, "tensors", n_tensors, 8 + 4 + 4 + 8)?;
    let metadata = metadata(&mut at, n_kv)?;
    let alignment = alignment(&metadata)?;
    let tensors = tensors(&mut at, n_tensors, alignment)?;
    Ok(Header { metadata, tensors })
}

/// Reads so many keys with their values.
pub(crate) fn metadata(at: &mut Cursor, n_kv: u64) -> Result<Metadata, Fault> {
    // A key has at least one letter and its value one byte.
    check_count(at, "keys", n_kv, 8 + 1 + 4 + 1)?;
    let mut metadata = Metadata::new();
    for _ in 0..n_kv {
        let key = key(at)?;
        if metadata.get(&key).is_some() {
            return Err(at.corrupt("the key is there twice").of(&key));
        }
        let value = value(at).map_err(|fault| fault.of(&key))?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn check_version(at: &mut Cursor) -> Result<(), Fault> {
    let unsupported = |reason: String| Err(Fault::Unsupported { tensor: None, reason });
    match at.u32()? {
        2 | 3 => Ok(()),
        0 => Err(at.corrupt("version 0")),
        // The two halves of a small number change places in a big-endian file.
        v if v & 0xffff == 0 => unsupported("big-endian GGUF".into()),
        v => unsupported(format!("GGUF version {v}; 2 and 3 are")),
    }
}

/// Refuses counts of things that could not all be in the bytes that are left.
pub(crate) fn check_count(at: &Cursor, what: &str, count: u64, least: u64) -> Result<(), Fault> {
    if count.checked_mul(least).is_none_or(|bytes| bytes > at.left()) {
        return Err(at.corrupt(format!("{count} {what} in a file of which {} bytes are left", at.left())));
    }
    Ok(())
}

/// A length and text.
pub(crate) fn string<'a>(at: &mut Cursor<'a>) -> Result<&'a str, Fault> {
    let len = at.u64()?;
    let start = at.at();
    let bytes = at.take(len)?;
    std::str::from_utf8(bytes).map_err(|e| Fault::Corrupt {
        tensor: None,
        offset: Some(start.saturating_add(e.valid_up_to() as u64)),
        reason: "text is not UTF-8".into(),
    })
}

fn key(at: &mut Cursor) -> Result<String, Fault> {
    let key = string(at)?;
    match key.len() {
        0 => Err(at.corrupt("an empty key")),
        1..=MAX_KEY => Ok(key.to_owned()),
        len => Err(at.corrupt(format!("a key of {len} bytes"))),
    }
}

fn boolean(at: &Cursor, byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(at.corrupt(format!("{byte} is not a truth value"))),
    }
}

fn value(at: &mut Cursor) -> Result<Value, Fault> {
    let kind = at.u32()?;
    Ok(match kind {
        kind::U8 => Value::U8(at.u8()?),
        kind::I8 => Value::I8(at.i8()?),
        kind::U16 => Value::U16(at.u16()?),
        kind::I16 => Value::I16(at.i16()?),
        kind::U32 => Value::U32(at.u32()?),
        kind::I32 => Value::I32(at.i32()?),
        kind::F32 => Value::F32(at.f32()?),
        kind::BOOL => {
            let byte = at.u8()?;
            Value::Bool(boolean(at, byte)?)
        }
        kind::STRING => Value::String(string(at)?.to_owned()),
        kind::ARRAY => Value::Array(array(at)?),
        kind::U64 => Value::U64(at.u64()?),
        kind::I64 => Value::I64(at.i64()?),
        kind::F64 => Value::F64(at.f64()?),
        _ => return Err(at.corrupt(format!("there is no value type {kind}"))),
    })
}

/// Values of `N` bytes each, in one piece.
fn numbers<T, const N: usize>(at: &mut Cursor, count: u64, from: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
    check_count(at, "values", count, N as u64)?;
    let (chunks, _) = at.take(count.saturating_mul(N as u64))?.as_chunks::<N>();
    Ok(chunks.iter().map(|&bytes| from(bytes)).collect())
}

fn array(at: &mut Cursor) -> Result<Array, Fault> {
    let kind = at.u32()?;
    let count = at.u64()?;
    Ok(match kind {
        kind::U8 => Array::U8(numbers(at, count, u8::from_le_bytes)?),
        kind::I8 => Array::I8(numbers(at, count, i8::from_le_bytes)?),
        kind::U16 => Array::U16(numbers(at, count, u16::from_le_bytes)?),
        kind::I16 => Array::I16(numbers(at, count, i16::from_le_bytes)?),
        kind::U32 => Array::U32(numbers(at, count, u32::from_le_bytes)?),
        kind::I32 => Array::I32(numbers(at, count, i32::from_le_bytes)?),
        kind::F32 => Array::F32(numbers(at, count, f32::from_le_bytes)?),
        kind::BOOL => {
            check_count(at, "values", count, 1)?;
            let bytes = at.take(count)?;
            Array::Bool(bytes.iter().map(|&byte| boolean(at, byte)).collect::<Result<_, _>>()?)
        }
        kind::STRING => Array::String(strings(at, count)?),
        kind::U64 => Array::U64(numbers(at, count, u64::from_le_bytes)?),
        kind::I64 => Array::I64(numbers(at, count, i64::from_le_bytes)?),
        kind::F64 => Array::F64(numbers(at, count, f64::from_le_bytes)?),
        kind::ARRAY => {
            return Err(Fault::Unsupported { tensor: None, reason: "an array of arrays".into() });
        }
        _ => return Err(at.corrupt(format!("there is no value type {kind}"))),
    })
}

/// Copies all text into one piece of memory and validates it in one go: vocabularies and merge lists have hundreds of
/// thousands of strings.
fn strings(at: &mut Cursor, count: u64) -> Result<Strings, Fault> {
    check_count(at, "strings", count, 8)?;
    at.need(count.saturating_mul(8))?;
    let mut ends = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let mut text = Vec::new();
    for _ in 0..count {
        let len = at.u64()?;
        text.extend_from_slice(at.take(len)?);
        ends.push(text.len());
    }
    let not_utf8 = |byte: usize| {
        let which = ends.partition_point(|&end| end <= byte);
        at.corrupt(format!("string {which} of the array is not UTF-8"))
    };
    let text = String::from_utf8(text).map_err(|e| not_utf8(e.utf8_error().valid_up_to()))?;
    // Valid as a whole and cut between characters only: then each string is valid by itself.
    match ends.iter().find(|&&end| !text.is_char_boundary(end)) {
        Some(&end) => Err(not_utf8(end.saturating_sub(1))),
        None => Strings::from_parts(text, ends).ok_or_else(|| at.corrupt("strings overlap")),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Fault> {
    let corrupt =
        |reason: String| Fault::Corrupt { tensor: Some(ALIGNMENT_KEY.into()), offset: None, reason };
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(n)) if n.is_power_of_two() => Ok(n.into()),
        Some(Value::U32(n)) => Err(corrupt(format!("{n} is not a power of two"))),
        Some(_) => Err(corrupt("not an unsigned 32-bit integer".into())),
    }
}

/// Reads the descriptions. Data must lie without gaps in their order, as ggml demands: offsets are known before they
/// are read, so that no two tensors can overlap.
fn tensors(at: &mut Cursor, count: u64, alignment: u64) -> Result<Vec<TensorInfo>, Fault> {
    // Larger than the description in the file, so grown as descriptions are found.
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut expected = 0u64;
    for _ in 0..count {
        let name = string(at)?.to_owned();
        if name.len() > MAX_NAME {
            return Err(at.corrupt(format!("the name has {} bytes; {MAX_NAME} fit", name.len())).of(&name));
        }
        let info = tensor(at, name.clone(), expected).map_err(|fault| fault.of(&name))?;
        let end = expected.checked_add(info.nbytes).and_then(|n| n.checked_next_multiple_of(alignment));
        expected = end.ok_or_else(|| at.corrupt("the size of the data overflows").of(&name))?;
        tensors.push(info);
    }
    let data = at.at().checked_next_multiple_of(alignment);
    let end = |t: &TensorInfo| data?.checked_add(t.offset)?.checked_add(t.nbytes);
    for tensor in &mut tensors {
        // An empty tensor at the end needs no padding before it.
        let inside = end(tensor).is_some_and(|end| end <= at.file_len() || tensor.nbytes == 0);
        if !inside {
            let reason =
                format!("its {} bytes go past the end of the file, {}", tensor.nbytes, at.file_len());
            let (name, offset) = (Some(tensor.name.clone()), data.map(|d| d.saturating_add(tensor.offset)));
            return Err(Fault::Corrupt { tensor: name, offset, reason });
        }
        let start = data.unwrap_or(0).saturating_add(tensor.offset);
        tensor.offset = if tensor.nbytes == 0 { start.min(at.file_len()) } else { start };
    }
    Ok(tensors)
}

/// One description after its name; the offset counts from the beginning of the data.
fn tensor(at: &mut Cursor, name: String, expected: u64) -> Result<TensorInfo, Fault> {
    let n_dims = usize::try_from(at.u32()?).unwrap_or(usize::MAX);
    if n_dims > MAX_DIMS {
        return Err(at.corrupt(format!("{n_dims} dimensions; {MAX_DIMS} are possible")));
    }
    let mut shape = (0..n_dims).map(|_| at.u64()).collect::<Result<Vec<u64>, Fault>>()?;
    shape.reverse();
    let id = at.u32()?;
    let dtype = DType::from_ggml(id)
        .ok_or_else(|| Fault::Unsupported { tensor: None, reason: format!("tensor type {id}") })?;
    let nbytes = checked_nbytes(dtype, &shape).map_err(|reason| at.corrupt(reason))?;
    let offset = at.u64()?;
    if offset != expected {
        return Err(at.corrupt(format!("its data is at {offset}, but should be at {expected}")));
    }
    Ok(TensorInfo { name, dtype, shape, file: 0, offset, nbytes })
}
