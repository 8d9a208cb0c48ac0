//! Writing safetensors: see the folder's `mod.rs` for the layout.

use super::{DTYPES, MAX_HEADER, METADATA_KEY};
use crate::set::{FilePlan, Piece, SetWriter};
use crate::{Error, Metadata, TensorPlan, Value, WriteOptions, Writer, shards};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// Begins a file or a sharded model with its index. Metadata that are strings are written, beside `format: pt`,
/// which readers ask for; the container has no room for others. For a sharded model, `path` is what a single file
/// would be called: `model.safetensors` becomes `model-00001-of-0000N.safetensors` and
/// `model.safetensors.index.json`.
pub(super) fn create(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorPlan],
    options: &WriteOptions,
) -> Result<Box<dyn Writer>, Error> {
    let refused = |reason: String| Error::Refused { file: path.into(), reason };
    options.refuse_compression(path, "safetensors")?;
    let sizes = check(tensors).map_err(refused)?;
    let strings = strings(metadata);
    let parts = divide(tensors, &sizes, &strings, options).map_err(refused)?;
    let count = parts.len();
    let mut plans = Vec::with_capacity(count);
    let mut weight_map = BTreeMap::new();
    for (no, part) in parts.into_iter().enumerate() {
        let file = if count > 1 { shards::name_of(path, no, count) } else { path.to_path_buf() };
        let (tensors, sizes) =
            (tensors.get(part.clone()).unwrap_or_default(), sizes.get(part).unwrap_or_default());
        let header = header(tensors, sizes, &strings);
        if header.len() as u64 > MAX_HEADER {
            return Err(refused(format!("a header of {} bytes; {MAX_HEADER} are allowed", header.len())));
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for tensor in tensors {
            weight_map.insert(&tensor.name, name.clone());
        }
        let piece = |(t, &nbytes): (&TensorPlan, &u64)| Piece { name: t.name.clone(), nbytes, padding: 0 };
        plans.push(FilePlan { path: file, header, pieces: tensors.iter().zip(sizes).map(piece).collect() });
    }
    let index = (count > 1).then(|| {
        let total: u64 = sizes.iter().sum();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        (path.with_file_name(format!("{stem}.safetensors.index.json")), index(total, &weight_map))
    });
    let mut options = options.clone();
    // The file that names the others comes after them, and a model's other files last.
    options.beside.splice(..0, index);
    Ok(Box::new(SetWriter::new(plans, &options)?))
}

/// The index. Objects are put together by hand: the order of serde_json's own depends on its features.
fn index(total: u64, weight_map: &BTreeMap<&String, String>) -> Vec<u8> {
    let entry = |(tensor, file): (&&String, &String)| format!("    {}: {}", json!(tensor), json!(file));
    let entries: Vec<String> = weight_map.iter().map(entry).collect();
    let head = format!("{{\n  \"metadata\": {{\n    \"total_size\": {total}\n  }},\n  \"weight_map\": {{\n");
    format!("{head}{}\n  }}\n}}\n", entries.join(",\n")).into_bytes()
}

/// The `__metadata__` object.
fn strings(metadata: &Metadata) -> String {
    let texts = metadata.iter().filter_map(|(key, value)| Some((key, value.as_str()?)));
    let format = metadata.get("format").and_then(Value::as_str).unwrap_or("pt");
    let all = std::iter::once(("format", format)).chain(texts.filter(|(key, _)| *key != "format"));
    let fields: Vec<String> = all.map(|(key, text)| format!("{}:{}", json!(key), json!(text))).collect();
    format!("{{{}}}", fields.join(","))
}

/// Sizes of the tensors, all of which can be written.
fn check(tensors: &[TensorPlan]) -> Result<Vec<u64>, String> {
    let mut names = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut total = 0u64;
    for plan in tensors {
        let name = &plan.name;
        if !plan.terms.is_empty() {
            return Err(format!("{name:?}: safetensors has no tensors that are sums"));
        }
        if !DTYPES.contains(&plan.dtype.name()) {
            return Err(format!("{name:?}: safetensors has no type {}", plan.dtype));
        }
        if name == METADATA_KEY || !names.insert(name) {
            return Err(format!("two entries have the name {name:?}"));
        }
        let nbytes = crate::opened::checked_nbytes(plan.dtype, &plan.shape);
        let nbytes = nbytes.map_err(|reason| format!("{name:?}: {reason}"))?;
        total = total.checked_add(nbytes).ok_or("the size of the data overflows")?;
        sizes.push(nbytes);
    }
    Ok(sizes)
}

/// Which tensors go into which file: each takes as many as fit, and at least one.
fn divide(
    tensors: &[TensorPlan],
    sizes: &[u64],
    strings: &str,
    options: &WriteOptions,
) -> Result<Vec<Range<usize>>, String> {
    let max_bytes = options.max_file_bytes.unwrap_or(u64::MAX);
    let max_tensors = options.max_file_tensors.unwrap_or(usize::MAX);
    if max_tensors == 0 {
        return Err("files of at most 0 tensors".into());
    }
    let empty = header(&[], &[], strings).len() as u64;
    let (mut parts, mut begin, mut size) = (Vec::new(), 0usize, empty);
    for (at, (plan, &nbytes)) in tensors.iter().zip(sizes).enumerate() {
        // An entry with the largest offsets that there can be, and a comma.
        let entry = entry(plan, u64::MAX, u64::MAX).len();
        let name = json!(plan.name).to_string().len();
        let needs = (entry as u64).saturating_add(name as u64).saturating_add(2).saturating_add(nbytes);
        size = size.saturating_add(needs);
        if at > begin && (size > max_bytes || at.saturating_sub(begin) >= max_tensors) {
            parts.push(begin..at);
            begin = at;
            size = empty.saturating_add(needs);
        }
    }
    parts.push(begin..tensors.len());
    Ok(parts)
}

fn entry(plan: &TensorPlan, from: u64, to: u64) -> String {
    let (dtype, shape) = (plan.dtype.name(), json!(plan.shape));
    format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
}

/// Length and JSON, padded with spaces so that the data begin at a multiple of eight bytes.
fn header(tensors: &[TensorPlan], sizes: &[u64], strings: &str) -> Vec<u8> {
    let mut object = format!("{{\"{METADATA_KEY}\":{strings}");
    let mut at = 0u64;
    for (plan, &nbytes) in tensors.iter().zip(sizes) {
        let to = at.saturating_add(nbytes);
        object.push_str(&format!(",{}:{}", json!(plan.name), entry(plan, at, to)));
        at = to;
    }
    object.push('}');
    while object.len() % 8 != 0 {
        object.push(' ');
    }
    let mut out = (object.len() as u64).to_le_bytes().to_vec();
    out.extend(object.as_bytes());
    out
}
