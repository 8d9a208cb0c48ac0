//! The header and the section behind it, in memory and as bytes.

use super::pack::{Packing, justified};
use crate::cursor::{Cursor, Fault};
use crate::gguf;
use crate::opened::checked_nbytes;
use crate::{Group, Metadata, Term, sum};
use fonio_codec::{DType, list};
use std::collections::HashSet;

/// Bytes of the header.
pub(super) const HEADER: u64 = 64;
/// Extents begin at multiples of this.
pub(super) const PAGE: u64 = 4096;
/// Tensors begin at multiples of this in their extent.
pub(super) const ALIGN: u64 = 64;
/// Bytes of an extent's description.
pub(super) const EXTENT: u64 = 32;
/// Most bytes of the section; real ones have some megabytes.
pub(super) const MAX_SECTION: u64 = 1 << 30;
const MAX_DIMS: u32 = 8;
const MAX_NAME: usize = 65_535;
const VERSION: u32 = 2;

/// Tensors that lie together in each of some extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupRow {
    pub group: Group,
    /// Extents; each has its share of every tensor, along the first dimension.
    pub parts: u64,
    /// Bytes of each, unpacked.
    pub nbytes: u64,
}

/// A piece of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub offset: u64,
    pub stored: u64,
    /// XXH3-64 of the stored bytes.
    pub sum: u64,
    pub packing: Packing,
}

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// In each extent of this group, from this byte on.
    Plain { group: usize, offset: u64 },
    /// Nowhere: it is a sum of other entries.
    Sum(Vec<Term>),
}

/// A tensor or a plane.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub body: Body,
}

/// All that is in a file but the data.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub metadata: Metadata,
    pub groups: Vec<GroupRow>,
    pub entries: Vec<Entry>,
    /// Those of the first group, those of the second, and so on.
    pub extents: Vec<Piece>,
}

/// Puts tensors into groups one after the other.
pub(super) struct Placer(Vec<u64>);

impl Placer {
    pub(super) fn new(groups: usize) -> Placer {
        Placer(vec![0; groups])
    }

    /// Where the next tensor of a group begins in its extents.
    pub(super) fn place(&mut self, group: usize, bytes: u64) -> Option<u64> {
        let end = self.0.get_mut(group)?;
        let at = end.checked_next_multiple_of(ALIGN)?;
        *end = at.checked_add(bytes).filter(|&end| i64::try_from(end).is_ok())?;
        Some(at)
    }

    /// Bytes of a group's extents.
    pub(super) fn nbytes(&self, group: usize) -> u64 {
        self.0.get(group).copied().unwrap_or(0)
    }
}

/// A tensor's bytes in each of `parts` extents.
pub(super) fn part_bytes(dtype: DType, shape: &[u64], parts: u64) -> Result<u64, String> {
    let nbytes = checked_nbytes(dtype, shape)?;
    let first = shape.first().copied().unwrap_or(1);
    // Parts are whole rows.
    let rows_are_whole = shape.len() > 1;
    match parts {
        1 => Ok(nbytes),
        _ if parts > 0 && rows_are_whole && first.is_multiple_of(parts) => {
            Ok(nbytes.checked_div(parts).unwrap_or(0))
        }
        _ => Err(format!("the shape {shape:?} has no {parts} equal parts")),
    }
}

/// Where the first extent begins behind a section of this size.
pub(super) fn data_start(section: u64) -> Option<u64> {
    HEADER.checked_add(section)?.checked_next_multiple_of(PAGE)
}

/// The header.
pub(super) fn header(section: &[u8], file_size: u64) -> Vec<u8> {
    let mut out = super::super::MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(u32::try_from(HEADER).unwrap_or(0).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(file_size.to_le_bytes());
    out.extend((section.len() as u64).to_le_bytes());
    out.extend(xxh3(section).to_le_bytes());
    out.extend([0; 16]);
    out.extend(xxh3(&out).to_le_bytes());
    out
}

pub(super) fn xxh3(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

fn fault(offset: u64, reason: impl Into<String>) -> Fault {
    Fault::Corrupt { tensor: None, offset: Some(offset), reason: reason.into() }
}

/// Checks the header; gives the section's size and checksum.
pub(super) fn check_header(bytes: &[u8], file_len: u64) -> Result<(u64, u64), Fault> {
    let mut c = Cursor::new(bytes, file_len);
    c.need(HEADER)?;
    let sum = bytes.get(..56).map(xxh3);
    c.take(8)?;
    let size = c.u32()?;
    if u64::from(size) != HEADER {
        return Err(fault(8, format!("header: a size of {size} bytes; version 2 has {HEADER}")));
    }
    let flags = c.u32()?;
    let (file_size, section, section_sum) = (c.u64()?, c.u64()?, c.u64()?);
    let reserved = c.take(16)?;
    let found = c.u64()?;
    if sum != Some(found) {
        return Err(fault(
            56,
            format!("header: the checksum is {:016x}, it should be {found:016x}", sum.unwrap_or(0)),
        ));
    }
    if flags != 0 || reserved.iter().any(|b| *b != 0) {
        let reason = format!(
            "header: flags {flags:#x} and a reserved field {reserved:x?} that a later fonio may know"
        );
        return Err(Fault::Unsupported { tensor: None, reason });
    }
    if file_size != file_len {
        return Err(fault(16, format!("the file should have {file_size} bytes and has {file_len}")));
    }
    if section > MAX_SECTION {
        let reason = format!("metadata and index of {section} bytes; {MAX_SECTION} are possible");
        return Err(Fault::Limit { tensor: None, reason });
    }
    if HEADER.checked_add(section).is_none_or(|end| end > file_len) {
        return Err(fault(24, format!("metadata and index of {section} bytes in a file of {file_len}")));
    }
    Ok((section, section_sum))
}

impl Layout {
    /// The section's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_count(&mut out, self.metadata.len());
        gguf::put_metadata(&mut out, &self.metadata);
        let mut types: Vec<DType> = Vec::new();
        for entry in &self.entries {
            if !types.contains(&entry.dtype) {
                types.push(entry.dtype);
            }
        }
        put_count(&mut out, types.len());
        for dtype in &types {
            gguf::put_string(&mut out, dtype.name());
            put_count(&mut out, dtype.block_len());
            put_count(&mut out, dtype.block_bytes());
        }
        put_count(&mut out, self.groups.len());
        for row in &self.groups {
            let (kind, number) = match row.group {
                Group::Alone => (0u32, 0),
                Group::Layer(n) => (1, n),
                Group::Experts(n) => (2, n),
                Group::Small => (3, 0),
            };
            out.extend(kind.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend(row.parts.to_le_bytes());
            out.extend(row.nbytes.to_le_bytes());
        }
        put_count(&mut out, self.entries.len());
        for entry in &self.entries {
            let dtype = types.iter().position(|t| *t == entry.dtype).unwrap_or(0);
            put_entry(&mut out, entry, dtype);
        }
        put_count(&mut out, self.extents.len());
        for extent in &self.extents {
            put_piece(&mut out, extent);
        }
        out
    }

    /// Reads a section of a file of `file_len` bytes, with all checks that need no data.
    pub(super) fn decode(bytes: &[u8], file_len: u64) -> Result<Layout, Fault> {
        let mut c = Cursor::new(bytes, bytes.len() as u64);
        let n_kv = c.u64()?;
        let metadata = gguf::metadata(&mut c, n_kv)?;
        let types = types(&mut c)?;
        let groups = groups(&mut c)?;
        let entries = entries(&mut c, &types, &groups)?;
        let start =
            data_start(bytes.len() as u64).ok_or_else(|| c.corrupt("the section's size overflows"))?;
        let extents = extents(&mut c, &groups, start, file_len)?;
        if c.left() > 0 {
            return Err(c.corrupt(format!("{} bytes follow the list of extents", c.left())));
        }
        Ok(Layout { metadata, groups, entries, extents })
    }
}

fn put_count(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

pub(super) fn put_piece(out: &mut Vec<u8>, piece: &Piece) {
    out.extend(piece.offset.to_le_bytes());
    out.extend(piece.stored.to_le_bytes());
    out.extend(piece.sum.to_le_bytes());
    out.extend(piece.packing.number().to_le_bytes());
    out.extend(0u32.to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry, dtype: usize) {
    gguf::put_string(out, &entry.name);
    let terms: &[Term] = match &entry.body {
        Body::Plain { .. } => &[],
        Body::Sum(terms) => terms,
    };
    for n in [dtype, entry.shape.len(), terms.len(), 0] {
        out.extend(u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }
    entry.shape.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
    if let Body::Plain { group, offset } = &entry.body {
        put_count(out, *group);
        out.extend(offset.to_le_bytes());
    }
    for term in terms {
        let (kind, first) = match term {
            Term::Whole { .. } => (0u64, None),
            Term::Product { .. } => (1, None),
            Term::Band { first, .. } => (2, Some(first)),
            Term::Sparse { .. } => (3, None),
            Term::Vectors { .. } => (4, None),
        };
        out.extend(kind.to_le_bytes());
        term.planes().into_iter().for_each(|plane| put_count(out, plane));
        out.extend(first.map(|n| n.to_le_bytes()).into_iter().flatten());
    }
}

/// The table of types.
fn types(c: &mut Cursor) -> Result<Vec<DType>, Fault> {
    let count = c.u64()?;
    gguf::check_count(c, "types", count, 24)?;
    let mut types: Vec<DType> = Vec::new();
    for _ in 0..count {
        let name = gguf::string(c)?;
        let (len, bytes) = (c.u64()?, c.u64()?);
        let dtype = DType::named(name).filter(|t| t.name() == name).ok_or_else(|| {
            let reason = format!("tensors of type {name:?}, {len} values in {bytes} bytes");
            Fault::Unsupported { tensor: None, reason }
        })?;
        if (len, bytes) != (dtype.block_len() as u64, dtype.block_bytes() as u64) {
            let reason = format!("type {name}: {len} values in {bytes} bytes are not its block");
            return Err(c.corrupt(reason));
        }
        if types.contains(&dtype) {
            return Err(c.corrupt(format!("type {name} is there twice")));
        }
        types.push(dtype);
    }
    Ok(types)
}

fn groups(c: &mut Cursor) -> Result<Vec<GroupRow>, Fault> {
    let count = c.u64()?;
    gguf::check_count(c, "groups", count, 24)?;
    let mut rows = Vec::new();
    let mut known = HashSet::new();
    for at in 0..count {
        let (kind, number) = (c.u32()?, c.u32()?);
        let group = match kind {
            0 => Group::Alone,
            1 => Group::Layer(number),
            2 => Group::Experts(number),
            3 => Group::Small,
            _ => return Err(c.corrupt(format!("group {at} is of kind {kind}; there are 0 to 3"))),
        };
        let row = GroupRow { group, parts: c.u64()?, nbytes: c.u64()? };
        if row.parts == 0 || (kind != 2 && row.parts > 1) {
            return Err(c.corrupt(format!("group {at} has {} parts", row.parts)));
        }
        if kind > 0 && !known.insert(group) {
            return Err(c.corrupt(format!("{group:?} is there twice")));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn entries(c: &mut Cursor, types: &[DType], groups: &[GroupRow]) -> Result<Vec<Entry>, Fault> {
    let count = c.u64()?;
    gguf::check_count(c, "tensors", count, 40)?;
    let mut placer = Placer::new(groups.len());
    let mut names = HashSet::new();
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..count {
        let name = gguf::string(c)?.to_owned();
        if name.len() > MAX_NAME {
            return Err(c.corrupt(format!("a name of {} bytes; {MAX_NAME} are possible", name.len())));
        }
        if !names.insert(name.clone()) {
            return Err(c.corrupt("there are two tensors of this name").of(&name));
        }
        let entry = entry(c, name.clone(), types, groups, &mut placer).map_err(|fault| fault.of(&name))?;
        entries.push(entry);
    }
    for (at, row) in groups.iter().enumerate() {
        let end = placer.nbytes(at);
        if end != row.nbytes {
            return Err(c.corrupt(format!("group {at} has {} bytes, its tensors {end}", row.nbytes)));
        }
    }
    check_sums(&entries).map_err(|(name, reason)| c.corrupt(reason).of(&name))?;
    Ok(entries)
}

/// One description after its name.
fn entry(
    c: &mut Cursor,
    name: String,
    types: &[DType],
    groups: &[GroupRow],
    placer: &mut Placer,
) -> Result<Entry, Fault> {
    let (dtype, n_dims, n_terms, zero) = (c.u32()?, c.u32()?, c.u32()?, c.u32()?);
    let found = usize::try_from(dtype).ok().and_then(|at| types.get(at)).copied();
    let dtype = found.ok_or_else(|| c.corrupt(format!("type {dtype} of {}", types.len())))?;
    if n_dims > MAX_DIMS {
        return Err(c.corrupt(format!("{n_dims} dimensions; {MAX_DIMS} are possible")));
    }
    if zero != 0 {
        return Err(c.corrupt(format!("{zero} in a field that is 0")));
    }
    let shape = (0..n_dims).map(|_| c.u64()).collect::<Result<Vec<u64>, Fault>>()?;
    if n_terms > 0 {
        gguf::check_count(c, "terms", n_terms.into(), 16)?;
        let terms = (0..n_terms).map(|_| term(c)).collect::<Result<_, _>>()?;
        return Ok(Entry { name, dtype, shape, body: Body::Sum(terms) });
    }
    let (group, offset) = (c.u64()?, c.u64()?);
    let at = usize::try_from(group).ok().filter(|&at| at < groups.len());
    let at = at.ok_or_else(|| c.corrupt(format!("group {group} of {}", groups.len())))?;
    let parts = groups.get(at).map_or(1, |row| row.parts);
    let bytes = part_bytes(dtype, &shape, parts).map_err(|reason| c.corrupt(reason))?;
    let want = placer.place(at, bytes).ok_or_else(|| c.corrupt("the size of its group overflows"))?;
    if offset != want {
        return Err(c.corrupt(format!("begins at byte {offset} of its group, but should at {want}")));
    }
    Ok(Entry { name, dtype, shape, body: Body::Plain { group: at, offset } })
}

fn term(c: &mut Cursor) -> Result<Term, Fault> {
    let kind = c.u64()?;
    let mut plane = || -> Result<usize, Fault> { Ok(usize::try_from(c.u64()?).unwrap_or(usize::MAX)) };
    Ok(match kind {
        0 => Term::Whole { plane: plane()? },
        1 => Term::Product { left: plane()?, right: plane()? },
        2 => Term::Band { plane: plane()?, first: c.i64()? },
        3 => Term::Sparse { starts: plane()?, columns: plane()?, values: plane()? },
        4 => Term::Vectors { codes: plane()?, tables: plane()? },
        _ => {
            let reason = format!("a term of kind {kind}; there are 0 to 4");
            return Err(Fault::Unsupported { tensor: None, reason });
        }
    })
}

/// Whether all sums are of planes that fit. The tensor and the reason if not.
pub(super) fn check_sums(entries: &[Entry]) -> Result<(), (String, String)> {
    for entry in entries {
        let Body::Sum(terms) = &entry.body else { continue };
        let wrong = |reason: String| (entry.name.clone(), reason);
        if entry.dtype != list::F32 {
            return Err(wrong(format!("a sum of type {}; sums are F32", entry.dtype)));
        }
        let plane = |at: usize| match entries.get(at) {
            Some(Entry { dtype, shape, body: Body::Plain { .. }, .. }) => Some((*dtype, shape.as_slice())),
            _ => None,
        };
        sum::check(&entry.shape, terms, plane).map_err(wrong)?;
    }
    Ok(())
}

/// The list of extents, which lie in its order without gaps but those that alignment makes, up to the file's end.
fn extents(c: &mut Cursor, groups: &[GroupRow], start: u64, file_len: u64) -> Result<Vec<Piece>, Fault> {
    let count = c.u64()?;
    gguf::check_count(c, "extents", count, EXTENT)?;
    let parts = groups.iter().try_fold(0u64, |n, row| n.checked_add(row.parts));
    if parts != Some(count) {
        return Err(c.corrupt(format!("{count} extents of groups that have {parts:?}")));
    }
    let mut found = Vec::new();
    // A file without extents ends with the section.
    let mut end = c.file_len().saturating_add(HEADER);
    for row in groups {
        for _ in 0..row.parts {
            let at = found.len();
            let piece = piece(c)?;
            let want = if at == 0 { Some(start) } else { end.checked_next_multiple_of(PAGE) };
            if Some(piece.offset) != want {
                return Err(
                    c.corrupt(format!("extent {at} is at {}, but should be at {want:?}", piece.offset))
                );
            }
            let fits = match piece.packing {
                Packing::Plain => piece.stored == row.nbytes,
                _ => piece.stored < row.nbytes && row.nbytes <= justified(piece.stored),
            };
            if !fits {
                let (stored, nbytes) = (piece.stored, row.nbytes);
                return Err(c.corrupt(format!("extent {at}: {stored} bytes cannot hold {nbytes}")));
            }
            end = piece.offset.checked_add(piece.stored).filter(|&end| end <= file_len).ok_or_else(|| {
                let stored = piece.stored;
                c.corrupt(format!("extent {at}: its {stored} bytes go past the end of the file, {file_len}"))
            })?;
            found.push(piece);
        }
    }
    if end != file_len {
        return Err(c.corrupt(format!("the extents end at {end}, the file at {file_len}")));
    }
    Ok(found)
}

fn piece(c: &mut Cursor) -> Result<Piece, Fault> {
    let (offset, stored, sum, packing, zero) = (c.u64()?, c.u64()?, c.u64()?, c.u32()?, c.u32()?);
    let packing = Packing::from_number(packing).ok_or_else(|| {
        let reason = format!("compression {packing}; 0 (none), 1 (LZ4) and 2 (zstd) are");
        Fault::Unsupported { tensor: None, reason }
    })?;
    match zero {
        0 => Ok(Piece { offset, stored, sum, packing }),
        _ => Err(c.corrupt(format!("{zero} in a field that is 0"))),
    }
}
