//! The header, the table of contents and META: see the folder's `mod.rs` for the layout.

use super::unpack::{CHUNK, Packing, corrupt, justified};
use super::{ALIGNMENT, MAGIC, Scope};
use crate::cursor::{Cursor, Fault};
use crate::opened::checked_nbytes;
use crate::{Metadata, json};
use fonio_codec::list;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashSet;

/// Bytes of the header and of an entry of the table.
const HEADER: u64 = 20;
const ENTRY: u64 = 24;
/// The header with as many entries as there are kinds of sections.
pub(super) const HEAD: u64 = HEADER + 4 * ENTRY;

/// Where a section lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) packing: Packing,
}

/// The sections of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contents {
    pub(super) meta: Section,
    pub(super) codebooks: Option<Section>,
    pub(super) bank: Option<Section>,
    pub(super) routing: Option<Section>,
}

/// Reads the header and the table. `first` are the file's first [`HEAD`] bytes, or all that it has.
pub(super) fn read(first: &[u8], file_len: u64) -> Result<Contents, Fault> {
    let mut c = Cursor::new(first, file_len);
    if c.take(8)? != MAGIC {
        return Err(Fault::Unsupported { tensor: None, reason: "its first bytes are not CAWSF's".into() });
    }
    let (version, count, reserved) = (c.u32()?, c.u32()?, c.u32()?);
    if version != 1 || reserved != 0 {
        let reason = format!("version {version} with {reserved} in the reserved field; fonio reads 1 and 2");
        return Err(Fault::Unsupported { tensor: None, reason });
    }
    let mut found = [None; 4];
    let mut ranges = Vec::new();
    for _ in 0..count {
        let at = c.at();
        let kind = c.u32()?;
        let section = section(&mut c, file_len)?;
        let place = kind.checked_sub(1).and_then(|i| found.get_mut(i as usize));
        let place = place.ok_or_else(|| Fault::Unsupported {
            tensor: None,
            reason: format!("a section of kind {kind}; there are 1 to 4"),
        })?;
        // Each kind is there once, so the loop ends after four however large the count is.
        if place.replace(section).is_some() {
            let reason = format!("there are two sections of kind {kind}");
            return Err(Fault::Corrupt { tensor: None, offset: Some(at), reason });
        }
        ranges.push((section.offset, section.offset.saturating_add(section.len)));
    }
    apart(ranges, c.at())?;
    let [meta, codebooks, bank, routing] = found;
    let meta = meta.ok_or_else(|| corrupt("there is no META section"))?;
    Ok(Contents { meta, codebooks, bank, routing })
}

fn section(c: &mut Cursor, file_len: u64) -> Result<Section, Fault> {
    let (offset, len, flags) = (c.u64()?, c.u64()?, c.u32()?);
    if offset.checked_add(len).is_none_or(|end| end > file_len) || !offset.is_multiple_of(ALIGNMENT) {
        return Err(c.corrupt(format!("a section of {len} bytes at {offset} in a file of {file_len}")));
    }
    if flags > 3 {
        return Err(Fault::Unsupported { tensor: None, reason: format!("a section with flags {flags:#x}") });
    }
    let packing = match flags {
        0 => Packing::Raw,
        2 => Packing::Lz4,
        _ => Packing::Zstd,
    };
    Ok(Section { offset, len, packing })
}

/// Sections lie after the table and one after the other.
fn apart(mut ranges: Vec<(u64, u64)>, table: u64) -> Result<(), Fault> {
    ranges.sort_unstable();
    let mut end = table;
    for (from, to) in ranges {
        if from < end {
            let reason = format!("a section at {from} overlaps what ends at {end}");
            return Err(Fault::Corrupt { tensor: None, offset: Some(from), reason });
        }
        end = to;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Json<'a> {
    format_version: u64,
    author: Option<String>,
    tokenizer: Option<String>,
    // Their text is kept; nothing here needs what is in it.
    #[serde(borrow)]
    hf_config: Option<&'a RawValue>,
    #[serde(borrow)]
    hf_tokenizer_config: Option<&'a RawValue>,
    layers: Vec<Layer>,
    #[serde(default)]
    checksum_index: Index,
}

#[derive(Deserialize)]
struct Layer {
    scope_id: u16,
    name: String,
    shape: [u64; 2],
}

#[derive(Deserialize, Default)]
struct Index {
    #[serde(rename = "2")]
    codebooks: Option<Sums>,
    #[serde(rename = "3")]
    bank: Option<Sums>,
    #[serde(rename = "4")]
    routing: Option<Sums>,
}

#[derive(Deserialize)]
struct Sums {
    algo: String,
    chunk_size: u64,
    count: u64,
    hashes_hex: Vec<String>,
}

/// What META says.
pub(super) struct Meta {
    pub(super) metadata: Metadata,
    pub(super) scopes: Vec<Scope>,
    /// Of CODEBOOKS, SHARD_BANK and ROUTING, where META has them.
    pub(super) sums: [Option<Vec<u64>>; 3],
}

/// Reads META, `text`, of a file of `file_len` bytes.
pub(super) fn meta(text: &[u8], file_len: u64) -> Result<Meta, Fault> {
    let found: Json = serde_json::from_slice(text).map_err(|e| json::fault(&e, text, 0).of("META"))?;
    if found.format_version != 1 {
        let reason = format!("META of format_version {}", found.format_version);
        return Err(Fault::Unsupported { tensor: None, reason });
    }
    let mut metadata = Metadata::new();
    metadata.insert("cawsf.version", 1u32);
    let texts = [
        ("cawsf.author", found.author.as_deref()),
        ("cawsf.tokenizer", found.tokenizer.as_deref()),
        ("cawsf.hf_config", found.hf_config.map(RawValue::get)),
        ("cawsf.hf_tokenizer_config", found.hf_tokenizer_config.map(RawValue::get)),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            metadata.insert(key, text);
        }
    }
    let index = found.checksum_index;
    let sums = [index.codebooks, index.bank, index.routing].map(|sums| sums.map(hashes).transpose());
    let [codebooks, bank, routing] = sums;
    let scopes = scopes(found.layers, file_len)?;
    Ok(Meta { metadata, scopes, sums: [codebooks?, bank?, routing?] })
}

fn hashes(sums: Sums) -> Result<Vec<u64>, Fault> {
    if sums.algo != "xxh3-64" || sums.chunk_size != CHUNK as u64 {
        let reason = format!("checksums {:?} of {} bytes each", sums.algo, sums.chunk_size);
        return Err(Fault::Unsupported { tensor: None, reason });
    }
    if sums.count != sums.hashes_hex.len() as u64 {
        return Err(corrupt(format!("META has {} checksums and says {}", sums.hashes_hex.len(), sums.count)));
    }
    let number = |text: &String| {
        let plain = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(text, 16).ok().filter(|_| plain)
    };
    let all = sums.hashes_hex.iter().map(number).collect::<Option<Vec<u64>>>();
    all.ok_or_else(|| corrupt("META has a checksum that is not 16 hexadecimal digits"))
}

fn scopes(layers: Vec<Layer>, file_len: u64) -> Result<Vec<Scope>, Fault> {
    let (mut names, mut ids) = (HashSet::new(), HashSet::new());
    let (mut total, most) = (0u64, justified(file_len));
    let mut scopes = Vec::with_capacity(layers.len());
    for layer in layers {
        let [rows, cols] = layer.shape;
        let name = layer.name;
        let nbytes = checked_nbytes(list::F32, &layer.shape).map_err(|e| corrupt(e).of(&name))?;
        if !names.insert(name.clone()) || !ids.insert(layer.scope_id) {
            return Err(corrupt("its name or its number is there twice").of(&name));
        }
        if nbytes == 0 {
            return Err(corrupt(format!("a matrix of {rows} × {cols}")).of(&name));
        }
        total = total.saturating_add(nbytes);
        if total > most {
            let reason = format!("a matrix of {rows} × {cols} in a file of {file_len} bytes");
            return Err(Fault::Limit { tensor: Some(name), reason });
        }
        scopes.push(Scope { id: layer.scope_id, name, rows, cols });
    }
    Ok(scopes)
}
