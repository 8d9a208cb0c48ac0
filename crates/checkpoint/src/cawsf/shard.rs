//! CODEBOOKS and SHARD_BANK, and what the four kinds of shards add to a matrix: see the folder's `mod.rs`.

use super::Scope;
use super::unpack::{Packing, corrupt};
use crate::cursor::{Cursor, Fault};
use half::f16;
use std::collections::HashMap;
use std::ops::Range;

/// What a shard adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The part of low rank, dense.
    L,
    /// What is left after the others, product-quantized.
    R,
    /// Outliers, one by one.
    S,
    /// The diagonal, dense.
    D,
}

impl Kind {
    /// The order of the sum: floating point's result depends on it.
    pub const ORDER: [Kind; 4] = [Kind::D, Kind::L, Kind::R, Kind::S];

    /// Its letter.
    pub fn name(self) -> &'static str {
        match self {
            Kind::L => "L",
            Kind::R => "R",
            Kind::S => "S",
            Kind::D => "D",
        }
    }

    fn numbered(number: u8) -> Option<Kind> {
        Kind::ORDER.into_iter().find(|kind| kind.number() == number)
    }

    /// Its number in a shard's header.
    pub(super) fn number(self) -> u8 {
        match self {
            Kind::L => 0,
            Kind::R => 1,
            Kind::S => 2,
            Kind::D => 3,
        }
    }
}

/// A shard as the bank describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// What it adds.
    pub kind: Kind,
    /// [`Scope::id`] of its matrix.
    pub scope: u16,
    /// How its bytes are stored.
    pub packing: Packing,
    /// Bytes, unpacked.
    pub size: u32,
    /// Where its stored bytes begin in the bank, and how many there are.
    pub offset: u64,
    /// How many stored bytes there are.
    pub stored: u32,
}

impl Shard {
    /// Where its stored bytes are in the bank.
    pub(super) fn range(&self) -> Option<Range<usize>> {
        let end = self.offset.checked_add(u64::from(self.stored))?;
        Some(usize::try_from(self.offset).ok()?..usize::try_from(end).ok()?)
    }
}

/// A shared table of product quantization: `f32[m][k][d / m]`.
pub(super) struct Codebook {
    shape: [u16; 3],
    /// Where its values are in the section.
    values: Range<usize>,
}

/// Bytes of a table.
fn table_len([d, m, k]: [u16; 3]) -> Result<u64, Fault> {
    if d == 0 || m == 0 || k == 0 || !d.is_multiple_of(m) {
        return Err(corrupt(format!("a codebook with d {d}, m {m}, k {k}")));
    }
    // m · k · (d / m) · 4 < 2^34.
    Ok(u64::from(k).saturating_mul(u64::from(d)).saturating_mul(4))
}

/// Reads CODEBOOKS.
pub(super) fn codebooks(bytes: &[u8]) -> Result<HashMap<u16, Codebook>, Fault> {
    let mut c = Cursor::new(bytes, bytes.len() as u64);
    let count = c.u16()?;
    let mut all = HashMap::new();
    for _ in 0..count {
        let (id, shape, size) = (c.u16()?, [c.u16()?, c.u16()?, c.u16()?], c.u32()?);
        if table_len(shape)? != u64::from(size) {
            return Err(c.corrupt(format!("codebook {id} of {shape:?} (d, m, k) has {size} bytes")));
        }
        let begin = usize::try_from(c.at()).unwrap_or(usize::MAX);
        let len = c.take(u64::from(size))?.len();
        let values = begin..begin.saturating_add(len);
        if all.insert(id, Codebook { shape, values }).is_some() {
            return Err(c.corrupt(format!("there are two codebooks {id}")));
        }
    }
    if c.left() > 0 { Err(c.corrupt("bytes follow the codebooks")) } else { Ok(all) }
}

/// Numbers of each scope's shards, by kind.
pub(super) type Places = HashMap<u16, [Option<usize>; 4]>;

/// Reads the headers of SHARD_BANK. Every scope has a shard, and none of a kind twice.
pub(super) fn bank(bytes: &[u8], scopes: &[Scope]) -> Result<(Vec<Shard>, Places), Fault> {
    let mut places: Places = scopes.iter().map(|s| (s.id, [None; 4])).collect();
    let mut c = Cursor::new(bytes, bytes.len() as u64);
    let mut all = Vec::new();
    while c.left() > 0 {
        let at = c.at();
        let broken = |reason: String| Fault::Corrupt { tensor: None, offset: Some(at), reason };
        let (kind, scope, packing) = (c.u8()?, c.u16()?, c.u8()?);
        let (size, stored) = (c.u32()?, c.u32()?);
        let number = usize::from(kind);
        let kind = Kind::numbered(kind).ok_or_else(|| broken(format!("a shard of kind {kind}")))?;
        let packing = match packing {
            0 if size == stored => Packing::Raw,
            1 => Packing::Zstd,
            2 => Packing::Lz4,
            _ => return Err(broken(format!("{size} bytes stored as {stored} in packing {packing}"))),
        };
        let kinds = places.get_mut(&scope).ok_or_else(|| broken(format!("META has no scope {scope}")))?;
        let place = kinds.get_mut(number).filter(|place| place.is_none());
        *place.ok_or_else(|| broken(format!("scope {scope} has two shards {}", kind.name())))? =
            Some(all.len());
        let offset = c.at();
        c.take(u64::from(stored))?;
        all.push(Shard { kind, scope, packing, size, offset, stored });
    }
    match scopes.iter().find(|s| places.get(&s.id).is_none_or(|kinds| kinds.iter().all(Option::is_none))) {
        Some(scope) => Err(corrupt("it has no shard").of(&scope.name)),
        None => Ok((all, places)),
    }
}

/// A shard's content, checked against its matrix.
pub(super) enum Part<'a> {
    Dense(&'a [u8]),
    Quantized(Quantized<'a>),
    Sparse(Sparse<'a>),
}

/// Vectors of `m` pieces, each of which is a row of the piece's table.
pub(super) struct Quantized<'a> {
    m: usize,
    k: usize,
    /// Values of a piece.
    piece: usize,
    codes: &'a [u8],
    table: &'a [u8],
}

/// Values and where they are.
pub(super) struct Sparse<'a> {
    rows: u64,
    cols: u64,
    places: &'a [u8],
    values: &'a [u8],
}

impl<'a> Part<'a> {
    /// Reads a payload. `shared` finds codebooks in the bytes of CODEBOOKS.
    pub(super) fn read(
        kind: Kind,
        bytes: &'a [u8],
        scope: &Scope,
        shared: impl FnOnce(u16) -> Option<([u16; 3], &'a [u8])>,
    ) -> Result<Part<'a>, Fault> {
        let mut c = Cursor::new(bytes, bytes.len() as u64);
        let (rows, cols) = (u64::from(c.u32()?), u64::from(c.u32()?));
        if (rows, cols) != (scope.rows, scope.cols) {
            let (r, w) = (scope.rows, scope.cols);
            return Err(corrupt(format!("a shard of {rows} × {cols} for a matrix of {r} × {w}")));
        }
        // The product was checked with the scope.
        let len = rows.saturating_mul(cols);
        let part = match kind {
            Kind::L | Kind::D => Part::Dense(c.take(len.saturating_mul(2))?),
            Kind::R => return Quantized::read(c, len, shared).map(Part::Quantized),
            Kind::S => {
                let n = u64::from(c.u32()?);
                let (places, values) = (c.take(n.saturating_mul(8))?, c.take(n.saturating_mul(4))?);
                Part::Sparse(Sparse { rows, cols, places, values })
            }
        };
        if c.left() > 0 { Err(c.corrupt("bytes follow the shard's values")) } else { Ok(part) }
    }

    /// Adds the values from `from` on, of the matrix row by row, to `dst`.
    pub(super) fn add(&self, from: u64, dst: &mut [f32]) -> Result<(), Fault> {
        match self {
            Part::Dense(bytes) => {
                let begin = usize::try_from(from.saturating_mul(2)).unwrap_or(usize::MAX);
                let values = bytes.get(begin..).unwrap_or_default().as_chunks::<2>().0;
                for (to, value) in dst.iter_mut().zip(values) {
                    *to += f16::from_le_bytes(*value).to_f32();
                }
                Ok(())
            }
            Part::Quantized(part) => part.add(from, dst),
            Part::Sparse(part) => part.each(|row, col, value| {
                let at = row.saturating_mul(part.cols).saturating_add(col).checked_sub(from);
                if let Some(to) = at.and_then(|at| dst.get_mut(usize::try_from(at).ok()?)) {
                    *to += value;
                }
            }),
        }
    }
}

impl<'a> Quantized<'a> {
    /// Reads what follows the shape. A shared codebook and an own one are told apart by the length alone.
    fn read(
        mut c: Cursor<'a>,
        len: u64,
        shared: impl FnOnce(u16) -> Option<([u16; 3], &'a [u8])>,
    ) -> Result<Quantized<'a>, Fault> {
        let shape = [c.u16()?, c.u16()?, c.u16()?];
        let n = u64::from(c.u32()?);
        let size = table_len(shape)?;
        let [d, m, k] = shape;
        // The last vector may reach beyond the matrix, and what no vector covers is 0.
        if n.saturating_sub(1).saturating_mul(u64::from(d)) >= len {
            return Err(c.corrupt(format!("{n} vectors of {d} for {len} values")));
        }
        let codes = n.saturating_mul(u64::from(m));
        let table = if c.left() == codes.saturating_add(2) {
            let id = c.u16()?;
            let found = shared(id).filter(|(of, _)| *of == shape);
            found.ok_or_else(|| c.corrupt(format!("there is no codebook {id} of {shape:?} (d, m, k)")))?.1
        } else {
            c.take(size)?
        };
        let codes = c.take(codes)?;
        if c.left() > 0 {
            return Err(c.corrupt("bytes follow the codes"));
        }
        let piece = usize::from(d).checked_div(usize::from(m)).unwrap_or(1).max(1);
        Ok(Quantized { m: usize::from(m), k: usize::from(k), piece, codes, table })
    }

    fn add(&self, from: u64, mut dst: &mut [f32]) -> Result<(), Fault> {
        let Ok(from) = usize::try_from(from) else { return Ok(()) };
        let mut skip = from.checked_rem(self.piece).unwrap_or(0);
        let first = from.checked_div(self.piece).unwrap_or(usize::MAX);
        let codes = self.codes.get(first..).unwrap_or_default();
        for (at, &code) in codes.iter().enumerate() {
            if dst.is_empty() {
                break;
            }
            let sub = first.saturating_add(at).checked_rem(self.m).unwrap_or(0);
            let values = self.row(sub, usize::from(code))?.get(skip..).unwrap_or_default();
            skip = 0;
            let n = values.len().min(dst.len());
            let (here, rest) = dst.split_at_mut(n);
            for (to, value) in here.iter_mut().zip(values) {
                *to += f32::from_le_bytes(*value);
            }
            dst = rest;
        }
        Ok(())
    }

    /// Row `code` of sub-space `sub`'s table.
    fn row(&self, sub: usize, code: usize) -> Result<&'a [[u8; 4]], Fault> {
        let begin = sub.saturating_mul(self.k).saturating_add(code).saturating_mul(self.piece);
        let row = self.table.as_chunks::<4>().0.get(begin..begin.saturating_add(self.piece));
        row.filter(|_| code < self.k)
            .ok_or_else(|| corrupt(format!("a code is {code}, the codebook has {}", self.k)))
    }
}

impl Sparse<'_> {
    /// Gives row, column and value of each.
    pub(super) fn each(&self, mut take: impl FnMut(u64, u64, f32)) -> Result<(), Fault> {
        let places = self.places.as_chunks::<8>().0;
        let values = self.values.as_chunks::<4>().0;
        for (&[r0, r1, r2, r3, c0, c1, c2, c3], value) in places.iter().zip(values) {
            let (row, col) = (i32::from_le_bytes([r0, r1, r2, r3]), i32::from_le_bytes([c0, c1, c2, c3]));
            let inside = |at: i32, end: u64| u64::try_from(at).ok().filter(|at| *at < end);
            let (Some(row), Some(col)) = (inside(row, self.rows), inside(col, self.cols)) else {
                let (rows, cols) = (self.rows, self.cols);
                return Err(corrupt(format!("a value at ({row}, {col}) of {rows} × {cols}")));
            };
            take(row, col, f32::from_le_bytes(*value));
        }
        Ok(())
    }
}

impl Codebook {
    /// d, m and k, and the values in the bytes of CODEBOOKS.
    pub(super) fn get<'a>(&self, bytes: &'a [u8]) -> Option<([u16; 3], &'a [u8])> {
        Some((self.shape, bytes.get(self.values.clone())?))
    }
}
