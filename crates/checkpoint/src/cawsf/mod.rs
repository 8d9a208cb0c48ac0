//! CAWSF-NDSQ: matrices as sums of four kinds of shards, with a table that routes prompts to them. Version 2, which is
//! written and holds whole models, is in [`v2`]; this is version 1, read only.
//!
//! Layout, all little-endian (there is no specification; these are facts of existing files):
//!
//! ```text
//! "CAWSF\0\0\0"  u32 version = 1  u32 n  u32 0
//! n × { u32 kind, u64 offset, u64 stored size, u32 flags }      flags: 1 zstd, 2 LZ4 frame; zstd wins
//! sections, each at a multiple of 4,096: 1 META, 2 CODEBOOKS, 3 SHARD_BANK, 4 ROUTING
//!
//! META         JSON: format_version, author, tokenizer, hf_config, hf_tokenizer_config,
//!              layers [{scope_id, name, shape [rows, cols]}], checksum_index {"2", "3", "4": {algo, chunk_size,
//!              count, hashes_hex}}: the XXH3-64 of each 1 MiB of the unpacked section
//! CODEBOOKS    u16 count; count × { u16 id, u16 d, u16 m, u16 k, u32 size, f32[m][k][d / m] }
//! SHARD_BANK   shards back to back: { u8 kind, u16 scope, u8 packing, u32 size, u32 stored size, payload }
//!   L 0, D 3   u32 rows, u32 cols, f16[rows · cols]
//!   R 1        u32 rows, u32 cols, u16 d, u16 m, u16 k, u32 n, then u16 codebook id, or f32 codebook[m][k][d / m];
//!              u8 codes[n][m]. Vectors of d values run through the matrix row by row, across rows' ends.
//!   S 2        u32 rows, u32 cols, u32 n, n × (i32 row, i32 col), f32[n]
//! ROUTING      see [`Routing`]
//! ```
//!
//! A matrix is ((D + L) + R) + S, added in `f32` in this order, which gives the very bits of the reference. It is
//! computed where it is read and never kept. Sections are unpacked and compared with their checksums when first
//! needed. Their unpacked size is not stored; it is bounded by the number of checksums, by what the matrices' shapes
//! allow, and by 256 times what is stored, as are the matrices by 256 times the file.
//!
//! Version 1 has no norms, no vocabulary and no other tensor of one dimension, so no model can run from such a file.

mod header;
mod routing;
mod shard;
mod unpack;
pub mod v2;

pub use routing::{Choice, Routing, cost, prompt_key, slot};
pub use shard::{Kind, Shard};
pub use unpack::Packing;

use crate::cursor::Fault;
use crate::map::Source;
use crate::{Checkpoint, Checksums, Container, Error, Metadata, TensorInfo};
use fonio_codec::list;
use header::{Contents, Section};
use shard::{Codebook, Part, Places};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use unpack::{CHUNK, corrupt};

/// The container.
pub(crate) const CAWSF: Container = Container {
    name: "cawsf",
    extensions: &["cawsf"],
    sniff: |first| first.starts_with(MAGIC),
    open,
    folder_files: &[],
    create: None,
};

const MAGIC: &[u8] = b"CAWSF\0\0\0";
const ALIGNMENT: u64 = 4096;
/// META is text: 65,536 matrices and a configuration fit.
const MAX_META: u64 = 16 << 20;
/// Values of a matrix that are computed together.
const BLOCK: usize = 1 << 20;
/// Values of a row that are multiplied together.
const RUN: usize = 1 << 12;

fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    Ok(match File::open(path)? {
        File::V1(file) => file,
        File::V2(file) => file,
    })
}

/// A file of either version.
pub enum File {
    /// Version 1.
    V1(Box<Cawsf>),
    /// Version 2.
    V2(Box<v2::V2>),
}

impl File {
    /// Opens a file, of whichever version it says.
    pub fn open(path: &Path) -> Result<File, Error> {
        File::new(Source::open(path)?)
    }

    fn new(source: Source) -> Result<File, Error> {
        let first = source.read_vec(0, source.len().min(12))?;
        match first.strip_prefix(MAGIC) == Some(&2u32.to_le_bytes()) {
            true => Ok(File::V2(Box::new(v2::V2::new(source)?))),
            false => Ok(File::V1(Box::new(Cawsf::new(source)?))),
        }
    }

    /// What any container offers.
    pub fn checkpoint(&self) -> &dyn Checkpoint {
        match self {
            File::V1(file) => file.as_ref(),
            File::V2(file) => file.as_ref(),
        }
    }
}

/// Reads a file in memory, with all checks.
pub(crate) fn open_memory(bytes: Vec<u8>) -> Result<File, Error> {
    File::new(Source::memory(Path::new("memory.cawsf"), bytes))
}

/// A matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its number, by which shards name it.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Rows: values of a product.
    pub rows: u64,
    /// Columns: values of what it is multiplied with.
    pub cols: u64,
}

/// An unpacked section. `None`: its bytes are the file's.
type Held = Option<Vec<u8>>;

struct Books {
    held: Held,
    all: HashMap<u16, Codebook>,
}

struct Bank {
    held: Held,
    shards: Vec<Shard>,
    /// Numbers of each scope's shards, by kind.
    places: Places,
}

/// An opened file.
pub struct Cawsf {
    source: Source,
    paths: Vec<PathBuf>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    scopes: Vec<Scope>,
    contents: Contents,
    sums: [Option<Vec<u64>>; 3],
    books: OnceLock<Result<Books, Fault>>,
    bank: OnceLock<Result<Bank, Fault>>,
    routing: OnceLock<Result<Routing, Fault>>,
    /// Shards of the scope that was read last, as far as they are packed by themselves.
    unpacked: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl Cawsf {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Cawsf, Error> {
        Cawsf::new(Source::open(path)?)
    }

    fn new(source: Source) -> Result<Cawsf, Error> {
        let path = source.path().to_path_buf();
        let first = source.read_vec(0, source.len().min(header::HEAD))?;
        let contents = header::read(&first, source.len()).map_err(|f| f.in_file(&path))?;
        let at = contents.meta;
        let stored = source.read_vec(at.offset, at.len)?;
        let text = unpack::unpack(at.packing, &stored, MAX_META).map_err(|f| f.of("META").in_file(&path))?;
        let base = if at.packing == Packing::Raw { at.offset } else { 0 };
        let meta = header::meta(&text, source.len()).map_err(|f| f.shifted(base).in_file(&path))?;
        let offset = contents.bank.map_or(0, |s| s.offset);
        let tensor = |s: &Scope| TensorInfo {
            name: s.name.clone(),
            dtype: list::F32,
            shape: vec![s.rows, s.cols],
            file: 0,
            // Where the shards begin: the values themselves lie nowhere in the file.
            offset,
            nbytes: s.rows.saturating_mul(s.cols).saturating_mul(4),
        };
        let header::Meta { metadata, scopes, sums } = meta;
        Ok(Cawsf {
            source,
            paths: vec![path],
            metadata,
            tensors: scopes.iter().map(tensor).collect(),
            index: scopes.iter().enumerate().map(|(at, s)| (s.name.clone(), at)).collect(),
            scopes,
            contents,
            sums,
            books: OnceLock::new(),
            bank: OnceLock::new(),
            routing: OnceLock::new(),
            unpacked: Mutex::new(Vec::new()),
        })
    }

    /// The matrices.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// The matrix of this number.
    pub fn scope(&self, id: u16) -> Option<&Scope> {
        self.scopes.iter().find(|s| s.id == id)
    }

    /// The shards, in the bank's order.
    pub fn shards(&self) -> Result<&[Shard], Error> {
        Ok(&self.bank()?.0.shards)
    }

    /// The routing table.
    pub fn routing(&self) -> Result<&Routing, Error> {
        let Some(section) = self.contents.routing else {
            return Err(self.fault(corrupt("there is no such section"), "ROUTING"));
        };
        let shards = self.shards()?.len();
        // A key is no longer than its 16-bit count of values can say.
        let limit = (shards as u64).saturating_mul(8 + 4 * 65_535).saturating_add(6);
        let stored = self.stored(section)?;
        let loaded = self.routing.get_or_init(|| {
            let held = load(section, stored, self.sums[2].as_deref(), limit)?;
            Routing::read(held.as_deref().unwrap_or(stored), shards)
        });
        loaded.as_ref().map_err(|f| self.fault(f.clone(), "ROUTING"))
    }

    /// W · x of a matrix, from its shards: no more than a part of a row is ever put together. Rows are summed in
    /// `f64`.
    pub fn apply(&self, scope: u16, x: &[f32]) -> Result<Vec<f32>, Error> {
        let refused = |reason: String| Error::Refused { file: self.path().into(), reason };
        let found = self.scopes.iter().position(|s| s.id == scope);
        let found = found.and_then(|at| Some((at, self.scopes.get(at)?)));
        let (at, scope) = found.ok_or_else(|| refused(format!("there is no scope {scope}")))?;
        if x.len() as u64 != scope.cols {
            let (name, cols, len) = (&scope.name, scope.cols, x.len());
            return Err(refused(format!("{name:?} has {cols} columns; x has {len} values")));
        }
        self.with_parts(at, |parts| product(parts, scope, x))
    }

    /// Values of a matrix, row by row from value `from` on, into `dst`.
    fn fill(parts: &[Part], from: u64, dst: &mut [f32]) -> Result<(), Fault> {
        dst.fill(0.0);
        parts.iter().try_for_each(|part| part.add(from, dst))
    }

    /// Gives the parts of a matrix, in the order of the sum.
    fn with_parts<T>(
        &self,
        at: usize,
        use_them: impl FnOnce(&[Part]) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let scope = self.scopes.get(at).ok_or_else(|| self.no_tensor(at))?;
        let (bank, bytes) = self.bank()?;
        let mut payloads = Vec::new();
        let places = bank.places.get(&scope.id).copied().unwrap_or_default();
        for kind in Kind::ORDER {
            let number = places.get(usize::from(kind.number())).copied().flatten();
            if let Some((number, shard)) = number.and_then(|n| Some((n, bank.shards.get(n)?))) {
                let payload = self.payload(number, shard, &bank.shards, bytes);
                payloads.push((kind, payload.map_err(|f| self.fault(f, &scope.name))?));
            }
        }
        let quantized = payloads.iter().any(|(kind, _)| *kind == Kind::R);
        let books = match quantized {
            true => self.books()?,
            false => None,
        };
        let shared = |id: u16| books.and_then(|(books, bytes)| books.all.get(&id)?.get(bytes));
        let parts = payloads.iter().map(|(kind, bytes)| Part::read(*kind, bytes, scope, shared));
        let parts = parts.collect::<Result<Vec<_>, Fault>>();
        parts.and_then(|parts| use_them(&parts)).map_err(|f| self.fault(f, &scope.name))
    }

    /// The bytes of a shard.
    fn payload<'a>(
        &self,
        number: usize,
        shard: &Shard,
        shards: &[Shard],
        bank: &'a [u8],
    ) -> Result<Payload<'a>, Fault> {
        let stored = shard.range().and_then(|range| bank.get(range));
        let stored = stored.ok_or_else(|| corrupt("a shard goes past the end of the bank"))?;
        if shard.packing == Packing::Raw {
            return Ok(Payload::Here(stored));
        }
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(n, _)| *n == number) {
            return Ok(Payload::Unpacked(bytes.clone()));
        }
        // Those of another matrix are given back first.
        kept.retain(|(n, _)| shards.get(*n).is_some_and(|s| s.scope == shard.scope));
        let bytes = unpack::unpack(shard.packing, stored, u64::from(shard.size))?;
        if bytes.len() as u64 != u64::from(shard.size) {
            return Err(corrupt(format!("a shard of {} bytes unpacks to {}", shard.size, bytes.len())));
        }
        let bytes = Arc::new(bytes);
        kept.push((number, bytes.clone()));
        Ok(Payload::Unpacked(bytes))
    }

    fn bank(&self) -> Result<(&Bank, &[u8]), Error> {
        let Some(section) = self.contents.bank else {
            return Err(self.fault(corrupt("there is no such section"), "SHARD_BANK"));
        };
        let stored = self.stored(section)?;
        let loaded = self.bank.get_or_init(|| {
            let limit = self.scopes.iter().fold(0, |n: u64, s| n.saturating_add(most_shards(s)));
            let held = load(section, stored, self.sums[1].as_deref(), limit)?;
            let (shards, places) = shard::bank(held.as_deref().unwrap_or(stored), &self.scopes)?;
            Ok(Bank { held, shards, places })
        });
        let bank = loaded.as_ref().map_err(|f| self.fault(f.clone(), "SHARD_BANK"))?;
        Ok((bank, bank.held.as_deref().unwrap_or(stored)))
    }

    fn books(&self) -> Result<Option<(&Books, &[u8])>, Error> {
        let Some(section) = self.contents.codebooks else { return Ok(None) };
        let stored = self.stored(section)?;
        let loaded = self.books.get_or_init(|| {
            // A matrix has one codebook at most.
            let each = |s: &Scope| most_codebook(s.rows.saturating_mul(s.cols)).saturating_add(14);
            let limit = self.scopes.iter().fold(2, |n: u64, s| n.saturating_add(each(s)));
            let held = load(section, stored, self.sums[0].as_deref(), limit)?;
            let all = shard::codebooks(held.as_deref().unwrap_or(stored))?;
            Ok(Books { held, all })
        });
        let books = loaded.as_ref().map_err(|f| self.fault(f.clone(), "CODEBOOKS"))?;
        Ok(Some((books, books.held.as_deref().unwrap_or(stored))))
    }

    fn stored(&self, section: Section) -> Result<&[u8], Error> {
        self.source.slice(section.offset, section.len)
    }

    fn path(&self) -> &Path {
        self.source.path()
    }

    fn fault(&self, fault: Fault, name: &str) -> Error {
        fault.of(name).in_file(self.path())
    }

    fn no_tensor(&self, at: usize) -> Error {
        let reason = format!("there is no tensor number {at}; there are {}", self.tensors.len());
        Error::Refused { file: self.path().into(), reason }
    }

    fn info(&self, tensor: usize) -> Result<&TensorInfo, Error> {
        self.tensors.get(tensor).ok_or_else(|| self.no_tensor(tensor))
    }
}

/// A shard's bytes.
enum Payload<'a> {
    Here(&'a [u8]),
    Unpacked(Arc<Vec<u8>>),
}

impl std::ops::Deref for Payload<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Payload::Here(bytes) => bytes,
            Payload::Unpacked(bytes) => bytes,
        }
    }
}

/// The most bytes that the shards of a matrix take: two dense ones, codes and a codebook, and outliers everywhere;
/// each with its header, and what packing adds to bytes that it cannot make smaller.
fn most_shards(scope: &Scope) -> u64 {
    let n = scope.rows.saturating_mul(scope.cols);
    let values = n.saturating_mul(2 + 2 + 1 + 12).saturating_add(most_codebook(n)).saturating_add(65_535);
    values.saturating_add(values / 128).saturating_add(4096)
}

/// The most bytes of a codebook for `n` values: codes are bytes, and vectors have 128 values in existing files; longer
/// ones are taken up to the matrix itself, so that a small one justifies little.
fn most_codebook(n: u64) -> u64 {
    n.clamp(4096, 65_535).saturating_mul(4 * 256)
}

/// Unpacks a section and compares its checksums. `None`: its bytes are the file's own.
fn load(section: Section, stored: &[u8], sums: Option<&[u64]>, limit: u64) -> Result<Held, Fault> {
    let counted = sums.map_or(u64::MAX, |sums| (sums.len() as u64).saturating_mul(CHUNK as u64));
    let held = match section.packing {
        Packing::Raw => None,
        packing => Some(unpack::unpack(packing, stored, limit.min(counted))?),
    };
    if let Some(sums) = sums {
        unpack::check(sums, held.as_deref().unwrap_or(stored))?;
    }
    Ok(held)
}

/// Row by row: outliers are added to the sums afterwards, as each of them belongs to one row alone.
fn product(parts: &[Part], scope: &Scope, x: &[f32]) -> Result<Vec<f32>, Fault> {
    let (outliers, dense): (Vec<_>, Vec<_>) = parts.iter().partition(|p| matches!(p, Part::Sparse(_)));
    let mut sums = Vec::new();
    let mut run = vec![0f32; RUN.min(x.len())];
    for row in 0..scope.rows {
        let mut sum = 0f64;
        let mut from = row.saturating_mul(scope.cols);
        for x in x.chunks(RUN) {
            let values = run.get_mut(..x.len()).unwrap_or_default();
            values.fill(0.0);
            dense.iter().try_for_each(|part| part.add(from, values))?;
            sum += values.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
            from = from.saturating_add(x.len() as u64);
        }
        sums.push(sum);
    }
    for part in outliers {
        let Part::Sparse(part) = part else { continue };
        part.each(|row, col, value| {
            let (row, col) = (usize::try_from(row).ok(), usize::try_from(col).ok());
            let x = col.and_then(|col| x.get(col)).copied().unwrap_or(0.0);
            if let Some(sum) = row.and_then(|row| sums.get_mut(row)) {
                *sum += f64::from(value) * f64::from(x);
            }
        })?;
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is meant")]
    Ok(sums.into_iter().map(|sum| sum as f32).collect())
}

impl Checkpoint for Cawsf {
    fn container(&self) -> &'static str {
        CAWSF.name
    }
    fn files(&self) -> &[PathBuf] {
        &self.paths
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        let nbytes = self.info(tensor)?.nbytes;
        // All sizes were compared with the file's when it was opened.
        let mut bytes = Vec::new();
        let len = usize::try_from(nbytes).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
        let len = len.ok_or_else(|| {
            let reason = format!("no memory for {nbytes} bytes");
            Error::Limit { file: self.path().into(), tensor: None, reason }
        })?;
        bytes.resize(len, 0);
        self.read(tensor, 0, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, mut dst: &mut [u8]) -> Result<(), Error> {
        let info = self.info(tensor)?;
        if offset.checked_add(dst.len() as u64).is_none_or(|end| end > info.nbytes) {
            let (name, nbytes, len) = (&info.name, info.nbytes, dst.len());
            let reason = format!("{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for");
            return Err(Error::Refused { file: self.path().into(), reason });
        }
        self.with_parts(tensor, |parts| {
            let (mut from, mut skip) = (offset / 4, usize::try_from(offset % 4).unwrap_or(0));
            let mut block = vec![0f32; BLOCK.min((dst.len() / 4).saturating_add(2))];
            while !dst.is_empty() {
                let most = dst.len().saturating_add(skip).div_ceil(4).min(block.len());
                let values = block.get_mut(..most).unwrap_or_default();
                Cawsf::fill(parts, from, values)?;
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).skip(skip);
                let n = dst.len().min(most.saturating_mul(4).saturating_sub(skip));
                let (here, rest) = std::mem::take(&mut dst).split_at_mut(n);
                here.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
                (dst, skip) = (rest, 0);
                from = from.saturating_add(most as u64);
            }
            Ok(())
        })
    }
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        // They were compared as each section was loaded; a section that nothing needs is loaded for this.
        self.bank()?;
        self.books()?;
        if self.contents.routing.is_some() {
            self.routing()?;
        }
        let count = self.sums.iter().flatten().map(Vec::len).fold(0, usize::saturating_add);
        Ok(if count == 0 { Checksums::None } else { Checksums::Valid(count) })
    }
}
