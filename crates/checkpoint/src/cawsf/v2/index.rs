//! The trailer and INDEX: where everything is. See the folder's `mod.rs` for the layout.

use super::super::MAGIC;
use super::super::unpack::{Packing, corrupt, justified};
use crate::cursor::{Cursor, Fault};
use crate::opened::checked_nbytes;
use fonio_codec::{DType, list};
use std::collections::{HashMap, HashSet};

/// Bytes of the header: magic, version and a reserved number.
pub(super) const HEADER: u64 = 16;
/// Bytes of the trailer.
pub(super) const TRAILER: u64 = 144;
const END: &[u8] = b"CAWSFEND";
/// Bytes of a section's place, and of a shard's.
const PLACE: u64 = 40;
const SHARD: u64 = 64;
/// Shards of so many stored bytes begin at multiples of it, others at multiples of [`SMALL`].
pub(super) const PAGE: u64 = 4096;
pub(super) const SMALL: u64 = 8;
/// Most bytes that all sums have as `F32` for each byte of the file.
const MAX_GROWTH: u64 = 1 << 11;

/// Most matrices of a stack: their numbers have 16 bits.
const MAX_STACK: u64 = 1 << 16;
/// Most bytes of a stack's name: all that belongs to its matrices has it in its own.
const MAX_STACK_NAME: usize = 127;
/// Bytes that a file has at least for each matrix of its stacks: packed, INDEX has a few for what is kept as kilobytes.
const LEAST_MATRIX: u64 = 64;

/// What a shard holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The part of low rank: two factors.
    L,
    /// The rest, by product quantization: codes.
    R,
    /// Outliers.
    S,
    /// Diagonals.
    D,
    /// Tables that codes are rows of.
    Codebook,
    /// A tensor that is no sum.
    Whole,
}

impl Kind {
    /// All of them, by their numbers.
    pub const ALL: [Kind; 6] = [Kind::L, Kind::R, Kind::S, Kind::D, Kind::Codebook, Kind::Whole];

    /// The kinds that a sum can have, in the order in which they are added.
    pub const TERMS: [Kind; 4] = [Kind::L, Kind::D, Kind::S, Kind::R];

    /// Its letter, or word.
    pub fn name(self) -> &'static str {
        ["L", "R", "S", "D", "codebook", "whole"].get(usize::from(self.number())).copied().unwrap_or_default()
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Kind::L => 0,
            Kind::R => 1,
            Kind::S => 2,
            Kind::D => 3,
            Kind::Codebook => 4,
            Kind::Whole => 5,
        }
    }
}

/// A shard: one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// What it holds.
    pub kind: Kind,
    /// How its bytes are stored.
    pub packing: Packing,
    /// Which matrix of a stack it is of; 0 for all others.
    pub matrix: u16,
    /// Number of the tensor that it is of; a codebook's own number.
    pub scope: u32,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes that it takes there.
    pub stored: u64,
    /// Bytes, unpacked.
    pub size: u64,
    /// XXH3-64 of the stored bytes.
    pub checksum: u64,
    /// What its kind needs: L the rank; D the number of diagonals and the first one's column in row 0; S the number of
    /// values; R the number of the codebook; codebooks m, k and the length of a row.
    pub numbers: [u64; 3],
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Its own type; `None` for a sum.
    pub(super) dtype: Option<DType>,
    pub(super) shape: Vec<u64>,
}

impl Tensor {
    /// How many matrices it is a stack of, if it is a sum of three dimensions.
    pub(super) fn stacked(&self) -> Option<u64> {
        self.shape.first().copied().filter(|_| self.dtype.is_none() && self.shape.len() == 3)
    }

    /// Why no file can have it, if it is a sum of a shape or of a name that is none.
    pub(super) fn refused(&self) -> Option<String> {
        let shape = &self.shape;
        if self.dtype.is_some() {
            return None;
        }
        // Row numbers of sparse planes are 32 bits wide.
        let sides = shape.iter().all(|d| (1..u64::from(u32::MAX)).contains(d));
        let stack = shape.len() == 3 && shape.first().is_some_and(|n| *n <= MAX_STACK);
        if !sides || !(shape.len() == 2 || stack) {
            return Some(format!("a sum of the shape {shape:?}"));
        }
        let long = stack && self.name.len() > MAX_STACK_NAME;
        long.then(|| format!("a stack whose name has more than {MAX_STACK_NAME} bytes"))
    }
}

/// Where a section is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) stored: u64,
    pub(super) size: u64,
    pub(super) checksum: u64,
    pub(super) packing: u32,
}

/// META, INDEX and ROUTING; the last may have no bytes.
pub(super) type Places = [Place; 3];

/// The number of a packing in files.
pub(super) fn packing_number(packing: Packing) -> u8 {
    match packing {
        Packing::Raw => 0,
        Packing::Zstd => 1,
        Packing::Lz4 => 2,
    }
}

pub(super) fn packing(number: u32) -> Option<Packing> {
    [Packing::Raw, Packing::Zstd, Packing::Lz4].get(usize::try_from(number).ok()?).copied()
}

/// The file's first bytes.
pub(super) fn header() -> Vec<u8> {
    [MAGIC, &2u32.to_le_bytes(), &0u32.to_le_bytes()].concat()
}

/// Checks the file's first bytes.
pub(super) fn read_header(bytes: &[u8], file_len: u64) -> Result<(), Fault> {
    let mut c = Cursor::new(bytes, file_len);
    if c.take(8)? != MAGIC {
        return Err(Fault::Unsupported { tensor: None, reason: "its first bytes are not CAWSF's".into() });
    }
    match (c.u32()?, c.u32()?) {
        (2, 0) => Ok(()),
        (version, reserved) => {
            let reason = format!("version {version} with {reserved} in the reserved field");
            Err(Fault::Unsupported { tensor: None, reason })
        }
    }
}

/// The file's last bytes.
pub(super) fn trailer(places: &Places, file_len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for p in places {
        [p.offset, p.stored, p.size, p.checksum].iter().for_each(|v| out.extend(v.to_le_bytes()));
        out.extend(p.packing.to_le_bytes());
        out.extend(0u32.to_le_bytes());
    }
    out.extend(file_len.to_le_bytes());
    let sum = twox_hash::XxHash3_64::oneshot(&out);
    out.extend(sum.to_le_bytes());
    out.extend(END);
    out
}

/// Reads the last [`TRAILER`] bytes of a file.
pub(super) fn read_trailer(bytes: &[u8], file_len: u64) -> Result<Places, Fault> {
    let start = file_len.saturating_sub(TRAILER);
    let at = |offset: u64, reason: String| Fault::Corrupt {
        tensor: Some("trailer".into()),
        offset: Some(start.saturating_add(offset)),
        reason,
    };
    if bytes.len() as u64 != TRAILER || !bytes.ends_with(END) {
        return Err(at(0, "it is not there: the file was cut or is not finished".into()));
    }
    let mut c = Cursor::new(bytes, TRAILER);
    let mut places = [Place::default(); 3];
    for place in &mut places {
        let [offset, stored, size, checksum] = [c.u64()?, c.u64()?, c.u64()?, c.u64()?];
        *place = Place { offset, stored, size, checksum, packing: c.u32()? };
        c.u32()?;
    }
    let len = c.u64()?;
    let summed = bytes.get(..usize::try_from(c.at()).unwrap_or(0)).unwrap_or_default();
    let (sum, found) = (c.u64()?, twox_hash::XxHash3_64::oneshot(summed));
    if sum != found {
        return Err(at(128, format!("its checksum is {found:016x}, it says {sum:016x}")));
    }
    if len != file_len {
        return Err(at(120, format!("the file has {file_len} bytes and should have {len}")));
    }
    for (i, place) in (0u64..).zip(&places) {
        let end = place.offset.checked_add(place.stored);
        let inside = end.is_some_and(|end| end <= start) && place.offset >= HEADER;
        if !inside || packing(place.packing).is_none() {
            let reason = format!("a section of {} bytes at {}", place.stored, place.offset);
            return Err(at(i.saturating_mul(PLACE), reason));
        }
    }
    Ok(places)
}

/// Tensors and shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) tensors: Vec<Tensor>,
    pub(super) shards: Vec<Shard>,
}

impl Index {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = u32::try_from(self.tensors.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            text(&mut out, tensor.dtype.map_or("", DType::name));
            out.push(u8::try_from(tensor.shape.len()).unwrap_or(u8::MAX));
            tensor.shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
        }
        out.extend(u32::try_from(self.shards.len()).unwrap_or(u32::MAX).to_le_bytes());
        for s in &self.shards {
            out.extend([s.kind.number(), packing_number(s.packing)]);
            out.extend(s.matrix.to_le_bytes());
            out.extend(s.scope.to_le_bytes());
            let [a, b, c] = s.numbers;
            [s.offset, s.stored, s.size, s.checksum, a, b, c]
                .iter()
                .for_each(|v| out.extend(v.to_le_bytes()));
        }
        out
    }

    /// Adds what a list of this form has, which is not checked further than that it is one.
    pub(super) fn extend(&mut self, c: &mut Cursor) -> Result<(), Fault> {
        for _ in 0..c.u32()? {
            self.tensors.push(tensor(c)?);
        }
        for _ in 0..c.u32()? {
            self.shards.push(shard(c)?);
        }
        Ok(())
    }

    /// Reads INDEX of a file whose shards lie before `end`; `taken` are the sections.
    pub(super) fn read(bytes: &[u8], file_len: u64, taken: &Places) -> Result<Index, Fault> {
        let mut c = Cursor::new(bytes, bytes.len() as u64);
        let n = u64::from(c.u32()?);
        let mut index = Index::default();
        let mut names = HashSet::new();
        // Each takes at least five bytes, so a count that is too large ends at the end of the bytes.
        for _ in 0..n {
            let tensor = tensor(&mut c)?;
            if !names.insert(tensor.name.clone()) {
                return Err(c.corrupt("there are two tensors of this name").of(&tensor.name));
            }
            index.tensors.push(tensor);
        }
        let n = u64::from(c.u32()?);
        if c.left() != n.saturating_mul(SHARD) {
            return Err(c.corrupt(format!("{n} shards in {} bytes", c.left())));
        }
        for _ in 0..n {
            let at = c.at();
            let shard = shard(&mut c)?;
            let end = shard.offset.checked_add(shard.stored);
            let aligned = shard.offset.is_multiple_of(if shard.stored < PAGE { SMALL } else { PAGE });
            let inside = end.is_some_and(|end| end <= file_len.saturating_sub(TRAILER));
            if !inside || !aligned || shard.offset < HEADER {
                let reason = format!("{} bytes at {} of {file_len}", shard.stored, shard.offset);
                return Err(Fault::Corrupt { tensor: Some(label(&shard)), offset: Some(at), reason });
            }
            index.shards.push(shard);
        }
        index.apart(taken)?;
        index.check(file_len)?;
        Ok(index)
    }

    /// No byte of the file is of two shards or sections.
    fn apart(&self, taken: &Places) -> Result<(), Fault> {
        let sections = taken.iter().map(|p| (p.offset, p.stored));
        let mut ranges: Vec<(u64, u64)> =
            self.shards.iter().map(|s| (s.offset, s.stored)).chain(sections).filter(|r| r.1 > 0).collect();
        ranges.sort_unstable();
        let mut end = HEADER;
        for (from, len) in ranges {
            if from < end {
                let reason = format!("what begins at {from} overlaps what ends at {end}");
                return Err(Fault::Corrupt { tensor: Some("INDEX".into()), offset: Some(from), reason });
            }
            end = from.saturating_add(len);
        }
        Ok(())
    }

    /// Whether every shard is as large as its tensor makes it, and every tensor has its shards.
    fn check(&self, file_len: u64) -> Result<(), Fault> {
        let books: HashMap<u32, [u64; 3]> =
            self.shards.iter().filter(|s| s.kind == Kind::Codebook).map(|s| (s.scope, s.numbers)).collect();
        let mut found: Vec<Vec<&Shard>> = vec![Vec::new(); self.tensors.len()];
        let mut seen = HashSet::new();
        for shard in &self.shards {
            self.check_shard(shard, &books).map_err(|reason| Fault::Corrupt {
                tensor: Some(label(shard)),
                offset: Some(shard.offset),
                reason,
            })?;
            if shard.kind == Kind::Codebook && !seen.insert(shard.scope) {
                return Err(corrupt("there are two of this number").of(&label(shard)));
            }
            if shard.kind != Kind::Codebook
                && let Some(own) = found.get_mut(shard.scope as usize)
            {
                own.push(shard);
            }
        }
        let (mut dense, mut matrices) = (0u64, 0u64);
        for (tensor, own) in self.tensors.iter().zip(&found) {
            tensor.check(own)?;
            matrices = matrices.saturating_add(tensor.stacked().unwrap_or(0));
            if tensor.dtype.is_none() {
                dense = dense.saturating_add(checked_nbytes(list::F32, &tensor.shape).unwrap_or(u64::MAX));
            }
        }
        if dense > file_len.saturating_mul(MAX_GROWTH).saturating_add(1 << 20) {
            let reason = format!("matrices of {dense} bytes in a file of {file_len}");
            return Err(Fault::Limit { tensor: None, reason });
        }
        if matrices > file_len.checked_div(LEAST_MATRIX).unwrap_or(0) {
            let reason = format!("{matrices} matrices of stacks in a file of {file_len} bytes");
            return Err(Fault::Limit { tensor: None, reason });
        }
        Ok(())
    }

    fn check_shard(&self, shard: &Shard, books: &HashMap<u32, [u64; 3]>) -> Result<(), String> {
        if shard.packing == Packing::Raw && shard.size != shard.stored {
            return Err(format!("{} bytes stored as they are in {}", shard.size, shard.stored));
        }
        if shard.size > justified(shard.stored) {
            return Err(format!("{} bytes out of {}", shard.size, shard.stored));
        }
        let [a, b, c] = shard.numbers;
        let product = |factors: &[u64]| factors.iter().try_fold(1u64, |n, &f| n.checked_mul(f));
        let exactly = |want: Option<u64>| match want == Some(shard.size) {
            true => Ok(()),
            false => Err(format!("{} bytes with the numbers {a}, {b}, {c}", shard.size)),
        };
        if shard.kind == Kind::Codebook {
            if shard.matrix != 0 {
                return Err(format!("it is of matrix {}", shard.matrix));
            }
            if a == 0 || b == 0 || c == 0 || b > 256 {
                return Err(format!("m {a}, k {b}, rows of {c}"));
            }
            return exactly(product(&[a, b, c, 2]));
        }
        let tensor = self.tensors.get(shard.scope as usize);
        let tensor = tensor.ok_or_else(|| format!("there is no tensor {}", shard.scope))?;
        let matrices = tensor.stacked().unwrap_or(1);
        if u64::from(shard.matrix) >= matrices {
            return Err(format!("matrix {} of {matrices}", shard.matrix));
        }
        if let Some(dtype) = tensor.dtype {
            let nbytes = checked_nbytes(dtype, &tensor.shape)?;
            return if shard.kind == Kind::Whole {
                exactly(Some(nbytes))
            } else {
                Err("its tensor is no sum".into())
            };
        }
        let (rows, cols) = rows_cols(&tensor.shape);
        match shard.kind {
            Kind::L if a > 0 => exactly(rows.checked_add(cols).and_then(|n| product(&[n, a, 2]))),
            Kind::D if a > 0 => {
                let last = i64::try_from(a).ok().and_then(|n| b.cast_signed().checked_add(n));
                let inside = last.is_some_and(|end| {
                    i64::try_from(cols).is_ok_and(|cols| end <= cols)
                        && i64::try_from(rows).is_ok_and(|rows| b.cast_signed() > rows.saturating_neg())
                });
                if inside {
                    exactly(product(&[a, rows.min(cols), 2]))
                } else {
                    Err(format!("diagonals from {}", b.cast_signed()))
                }
            }
            Kind::R => {
                let book = u32::try_from(a).ok().and_then(|n| books.get(&n));
                let [_, _, len] = book.ok_or_else(|| format!("there is no codebook {a}"))?;
                exactly(product(&[rows, cols.div_ceil((*len).max(1))]))
            }
            // A byte at least for each row's count and each column, two for each value.
            Kind::S => {
                let least = a.checked_mul(3).and_then(|n| n.checked_add(rows));
                let fits =
                    a > 0 && u32::try_from(a).is_ok() && product(&[rows, cols]).is_some_and(|n| a <= n);
                if fits && least.is_some_and(|n| n <= shard.size) { Ok(()) } else { exactly(None) }
            }
            _ => exactly(None),
        }
    }
}

impl Tensor {
    /// Whether these are its shards: one if it is whole; of a sum, or of each matrix of a stack, none twice, all in the
    /// order of the sum, and at least one.
    fn check(&self, own: &[&Shard]) -> Result<(), Fault> {
        let at = |shard: Option<&&Shard>, reason: String| Fault::Corrupt {
            tensor: Some(self.name.clone()),
            offset: shard.map(|s| s.offset),
            reason,
        };
        let kinds = || own.iter().map(|s| s.kind.name()).collect::<Vec<_>>().join(", ");
        let Some(matrices) = self.stacked() else {
            let right = match self.dtype {
                Some(_) => matches!(own, [only] if only.kind == Kind::Whole),
                None => !own.is_empty() && own.is_sorted_by(|a, b| place(a.kind) < place(b.kind)),
            };
            return if right {
                Ok(())
            } else {
                Err(at(own.first(), format!("its shards are [{}]", kinds())))
            };
        };
        let mut next = 0u64;
        for (i, shard) in own.iter().enumerate() {
            let matrix = u64::from(shard.matrix);
            let before = i.checked_sub(1).and_then(|i| own.get(i)).map(|s| (s.matrix, place(s.kind)));
            if before.is_some_and(|before| before >= (shard.matrix, place(shard.kind))) {
                let (kind, reason) = (shard.kind.name(), "is there twice or out of order");
                return Err(at(Some(shard), format!("{kind} of matrix {matrix} {reason}")));
            }
            if matrix > next {
                return Err(at(Some(shard), format!("matrix {next} has no shard")));
            }
            next = matrix.saturating_add(1);
        }
        match next == matrices {
            true => Ok(()),
            false => Err(at(own.last(), format!("matrix {next} of {matrices} has no shard"))),
        }
    }
}

fn place(kind: Kind) -> usize {
    Kind::TERMS.iter().position(|k| *k == kind).unwrap_or(0)
}

/// What messages call a shard.
pub(super) fn label(shard: &Shard) -> String {
    match shard.kind {
        Kind::Codebook => format!("codebook {}", shard.scope),
        kind if shard.matrix > 0 => {
            format!("scope {}, matrix {}, shard {}", shard.scope, shard.matrix, kind.name())
        }
        kind => format!("scope {}, shard {}", shard.scope, kind.name()),
    }
}

/// Rows and columns of a sum, or of each matrix of a stack.
pub(super) fn rows_cols(shape: &[u64]) -> (u64, u64) {
    let side = |back: usize| shape.iter().rev().nth(back).copied().unwrap_or(1);
    (side(1), side(0))
}

fn text<'a>(c: &mut Cursor<'a>) -> Result<&'a str, Fault> {
    let len = u64::from(c.u16()?);
    let bytes = c.take(len)?;
    std::str::from_utf8(bytes).map_err(|_| c.corrupt("a name is not UTF-8"))
}

fn tensor(c: &mut Cursor) -> Result<Tensor, Fault> {
    let name = text(c)?.to_owned();
    let of_type = text(c)?.to_owned();
    let dims = c.u8()?;
    let shape = (0..dims).map(|_| c.u64()).collect::<Result<Vec<u64>, Fault>>()?;
    let dtype = match of_type.is_empty() {
        true => None,
        false => Some(DType::named(&of_type).ok_or_else(|| Fault::Unsupported {
            tensor: Some(name.clone()),
            reason: format!("there is no type {of_type:?}"),
        })?),
    };
    checked_nbytes(dtype.unwrap_or(list::F32), &shape).map_err(|r| c.corrupt(r).of(&name))?;
    let tensor = Tensor { name, dtype, shape };
    match tensor.refused() {
        Some(reason) => Err(c.corrupt(reason).of(&tensor.name)),
        None => Ok(tensor),
    }
}

fn shard(c: &mut Cursor) -> Result<Shard, Fault> {
    let (kind, how) = (c.u8()?, c.u8()?);
    let matrix = c.u16()?;
    let kinds = Kind::ALL.get(usize::from(kind)).copied().zip(packing(how.into()));
    let (kind, packing) =
        kinds.ok_or_else(|| c.corrupt(format!("a shard of kind {kind} in packing {how}")))?;
    let scope = c.u32()?;
    let [offset, stored, size, checksum] = [c.u64()?, c.u64()?, c.u64()?, c.u64()?];
    Ok(Shard {
        kind,
        packing,
        matrix,
        scope,
        offset,
        stored,
        size,
        checksum,
        numbers: [c.u64()?, c.u64()?, c.u64()?],
    })
}
