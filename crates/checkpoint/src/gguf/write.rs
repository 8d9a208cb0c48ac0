//! Writing GGUF version 3: see the folder's `mod.rs` for the layout.
//!
//! The whole header is known from the plan, so tensors stream behind it. A split set has the metadata in its first
//! file, and `split.*` in each, as llama.cpp's tools make and load them.

use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_NAME, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, kind,
};
use crate::set::{FilePlan, Piece, SetWriter};
use crate::{Array, Error, Metadata, TensorPlan, Value, WriteOptions, Writer, shards};
use std::collections::HashSet;
use std::path::Path;

/// Padding beyond this is surely a mistake.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Begins a file or a split set. `general.alignment` in the metadata is obeyed; `split.*` in it is left out.
pub(super) fn create(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorPlan],
    options: &WriteOptions,
) -> Result<Box<dyn Writer>, Error> {
    let refused = |reason: String| Error::Refused { file: path.into(), reason };
    options.refuse_compression(path, "GGUF")?;
    let alignment = alignment(metadata).map_err(refused)?;
    let mut kept = Metadata::new();
    for (key, value) in
        metadata.iter().filter(|(key, _)| ![SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(key))
    {
        if key.is_empty() || key.len() > 65_535 {
            return Err(refused(format!("metadata key {key:?} has {} bytes", key.len())));
        }
        kept.insert(key, value.clone());
    }
    let items = check(tensors, alignment).map_err(refused)?;
    let parts = divide(&kept, &items, alignment, options).map_err(refused)?;
    let count = parts.len();
    let mut plans = Vec::new();
    for (no, part) in parts.into_iter().enumerate() {
        let mut metadata = if no == 0 { std::mem::take(&mut kept) } else { Metadata::new() };
        let path = if count > 1 {
            add_split_keys(&mut metadata, no, count, tensors.len()).map_err(refused)?;
            // Every part is read with its own alignment.
            if no > 0 && alignment != DEFAULT_ALIGNMENT {
                metadata.insert(ALIGNMENT_KEY, u32::try_from(alignment).unwrap_or(u32::MAX));
            }
            shards::name_of(path, no, count)
        } else {
            path.to_path_buf()
        };
        let items = items.get(part).unwrap_or_default();
        let pieces = items.iter().map(Item::piece).collect();
        plans.push(FilePlan { path, header: header(&metadata, items, alignment), pieces });
    }
    Ok(Box::new(SetWriter::new(plans, options)?))
}

fn alignment(metadata: &Metadata) -> Result<u64, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(n)) if n.is_power_of_two() && u64::from(n) <= MAX_ALIGNMENT => Ok(n.into()),
        Some(value) => {
            Err(format!("{ALIGNMENT_KEY} {value:?}: a U32, a power of two up to {MAX_ALIGNMENT}, is needed"))
        }
    }
}

/// A tensor with the numbers that the file needs.
struct Item<'a> {
    plan: &'a TensorPlan,
    ggml_type: u32,
    nbytes: u64,
    padded: u64,
}

impl Item<'_> {
    fn piece(&self) -> Piece {
        let padding = self.padded.saturating_sub(self.nbytes);
        Piece { name: self.plan.name.clone(), nbytes: self.nbytes, padding }
    }
    /// Bytes of the description.
    fn described(&self) -> u64 {
        let dims = self.plan.shape.len() as u64;
        (8u64 + 4 + 4 + 8).saturating_add(self.plan.name.len() as u64).saturating_add(dims.saturating_mul(8))
    }
}

fn check(tensors: &[TensorPlan], alignment: u64) -> Result<Vec<Item<'_>>, String> {
    let mut names = HashSet::new();
    let item = |plan: &'_ TensorPlan| -> Result<(u32, u64, u64), String> {
        let name = &plan.name;
        if name.len() > MAX_NAME {
            return Err(format!("{name:?} is longer than {MAX_NAME} bytes"));
        }
        if plan.shape.len() > MAX_DIMS {
            return Err(format!("{name:?} has more than {MAX_DIMS} dimensions: {:?}", plan.shape));
        }
        if !plan.terms.is_empty() {
            return Err(format!("{name:?}: GGUF has no tensors that are sums"));
        }
        let id = plan.dtype.ggml_type();
        let id = id.ok_or_else(|| {
            let home = match fonio_codec::qsf::kind(plan.dtype) {
                Some(_) => "QSF",
                None => "safetensors",
            };
            format!("{name:?}: GGUF has no type {}; {home} files can hold it", plan.dtype)
        })?;
        let nbytes = crate::opened::checked_nbytes(plan.dtype, &plan.shape);
        let nbytes = nbytes.map_err(|reason| format!("{name:?}: {reason}"))?;
        let padded = nbytes.checked_next_multiple_of(alignment);
        Ok((id, nbytes, padded.ok_or_else(|| format!("{name:?}: its size overflows"))?))
    };
    let mut items = Vec::with_capacity(tensors.len());
    for plan in tensors {
        let (ggml_type, nbytes, padded) = item(plan)?;
        if !names.insert(plan.name.as_str()) {
            return Err(format!("two tensors have the name {:?}", plan.name));
        }
        items.push(Item { plan, ggml_type, nbytes, padded });
    }
    let total = items.iter().try_fold(0u64, |sum, item| sum.checked_add(item.padded));
    total.filter(|&n| i64::try_from(n).is_ok()).ok_or("the size of the data overflows")?;
    Ok(items)
}

/// Which items go into which file: each takes as many as fit, and at least one.
fn divide(
    metadata: &Metadata,
    items: &[Item],
    alignment: u64,
    options: &WriteOptions,
) -> Result<Vec<std::ops::Range<usize>>, String> {
    let max_bytes = options.max_file_bytes.unwrap_or(u64::MAX);
    let max_tensors = options.max_file_tensors.unwrap_or(usize::MAX);
    if max_tensors == 0 {
        return Err("files of at most 0 tensors".into());
    }
    // With room for the keys that a split adds.
    let split_keys = {
        let mut keys = Metadata::new();
        add_split_keys(&mut keys, 0, 1, items.len())?;
        keys.insert(ALIGNMENT_KEY, 0u32);
        header(&keys, &[], 1).len() as u64
    };
    let first = (header(metadata, &[], 1).len() as u64).saturating_add(split_keys);
    let (mut parts, mut begin) = (Vec::new(), 0usize);
    let (mut described, mut data) = (first, 0u64);
    for (at, item) in items.iter().enumerate() {
        described = described.saturating_add(item.described());
        data = data.saturating_add(item.padded);
        let size = described.saturating_add(alignment).saturating_add(data);
        if at > begin && (size > max_bytes || at.saturating_sub(begin) >= max_tensors) {
            parts.push(begin..at);
            begin = at;
            (described, data) = (split_keys.saturating_add(item.described()), item.padded);
        }
    }
    parts.push(begin..items.len());
    Ok(parts)
}

fn add_split_keys(metadata: &mut Metadata, no: usize, count: usize, tensors: usize) -> Result<(), String> {
    let many = |_| format!("{count} files of {tensors} tensors are too many for a split set");
    metadata.insert(SPLIT_NO, Value::U16(u16::try_from(no).map_err(many)?));
    metadata.insert(SPLIT_COUNT, Value::U16(u16::try_from(count).map_err(many)?));
    metadata.insert(SPLIT_TENSORS, Value::I32(i32::try_from(tensors).map_err(many)?));
    Ok(())
}

/// Everything before the data, padded.
fn header(metadata: &Metadata, items: &[Item], alignment: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    put_metadata(&mut out, metadata);
    let mut offset = 0u64;
    for item in items {
        put_string(&mut out, &item.plan.name);
        out.extend(u32::try_from(item.plan.shape.len()).unwrap_or(u32::MAX).to_le_bytes());
        for dim in item.plan.shape.iter().rev() {
            out.extend(dim.to_le_bytes());
        }
        out.extend(item.ggml_type.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = offset.saturating_add(item.padded);
    }
    let padded = (out.len() as u64).next_multiple_of(alignment);
    out.resize(usize::try_from(padded).unwrap_or(out.len()), 0);
    out
}

/// Writes what `read::metadata` reads.
pub(crate) fn put_metadata(out: &mut Vec<u8>, metadata: &Metadata) {
    for (key, value) in metadata.iter() {
        put_string(out, key);
        put_value(out, value);
    }
}

pub(crate) fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    macro_rules! put {
        ($kind:ident, $bytes:expr) => {{
            out.extend(kind::$kind.to_le_bytes());
            out.extend($bytes);
        }};
    }
    match value {
        Value::U8(v) => put!(U8, v.to_le_bytes()),
        Value::I8(v) => put!(I8, v.to_le_bytes()),
        Value::U16(v) => put!(U16, v.to_le_bytes()),
        Value::I16(v) => put!(I16, v.to_le_bytes()),
        Value::U32(v) => put!(U32, v.to_le_bytes()),
        Value::I32(v) => put!(I32, v.to_le_bytes()),
        Value::F32(v) => put!(F32, v.to_le_bytes()),
        Value::Bool(v) => put!(BOOL, [u8::from(*v)]),
        Value::String(v) => {
            out.extend(kind::STRING.to_le_bytes());
            put_string(out, v);
        }
        Value::Array(v) => {
            out.extend(kind::ARRAY.to_le_bytes());
            put_array(out, v);
        }
        Value::U64(v) => put!(U64, v.to_le_bytes()),
        Value::I64(v) => put!(I64, v.to_le_bytes()),
        Value::F64(v) => put!(F64, v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! put {
        ($kind:ident, $values:expr) => {{
            out.extend(kind::$kind.to_le_bytes());
            out.extend(($values.len() as u64).to_le_bytes());
            out.extend($values.iter().flat_map(|v| v.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => put!(U8, v),
        Array::I8(v) => put!(I8, v),
        Array::U16(v) => put!(U16, v),
        Array::I16(v) => put!(I16, v),
        Array::U32(v) => put!(U32, v),
        Array::I32(v) => put!(I32, v),
        Array::F32(v) => put!(F32, v),
        Array::Bool(v) => {
            out.extend(kind::BOOL.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            out.extend(v.iter().map(|&b| u8::from(b)));
        }
        Array::String(v) => {
            out.extend(kind::STRING.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| put_string(out, s));
        }
        Array::U64(v) => put!(U64, v),
        Array::I64(v) => put!(I64, v),
        Array::F64(v) => put!(F64, v),
    }
}
