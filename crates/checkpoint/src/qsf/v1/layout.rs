//! The index, and what the sections with weights hold.
//!
//! Index, 48 bytes a layer: `u64` offset · `u32` compressed size · `u32` decompressed size · `u8` type · `u8` compression ·
//! `u16` tensors · `u32` CRC-32 of what is stored · `u32` of what it is decompressed · 16 bytes that do not matter here.
//!
//! Tensor, 24 bytes and its data: `u16` number · `u8` type · `u8` layout · `u32` rows · `u32` columns · `u32` bytes · 8 more.
//!
//! Embedding, 32 bytes and its data: `u32` type · `u32` compressed size (0 if it is not) · `u32` vectors · `u32` width ·
//! `u8` compression and 3 more · `u32` CRC-32 of what is stored, at 20 · `u32` chunks · `u32` chunk size.
//!
//! Final section, 16 bytes and its data: `u32` kind of head (0 its own, 1 the embedding, 2 with a bias) · `u32` bytes of the
//! norm · `u32` bytes of the head · `u32` CRC-32 of both; the norm's weight and perhaps bias in half precision; the head.

use super::block::Coding;
use super::header::{self, Header};
use super::section::{Section, Sections};
use super::{Place, tokenizer};
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::opened::checked_nbytes;
use crate::{Error, TensorInfo};
use std::sync::atomic::AtomicBool;

const INDEX_ENTRY: u64 = 48;
const TENSOR_HEADER: u64 = 24;
const EMBEDDING_HEADER: u64 = 32;
const FINAL_HEADER: u64 = 16;

/// What a file holds.
pub(super) struct Layout {
    pub sections: Sections,
    pub tensors: Vec<(TensorInfo, Place)>,
}

/// A part of the file that nothing else may overlap: name, first byte, end.
type Extent = (String, u64, u64);

/// Finds all tensors.
pub(super) fn read(source: Source, header: &Header) -> Result<Layout, Error> {
    let mut build = Build { sections: Sections::new(source), extents: Vec::new(), tensors: Vec::new() };
    let index = u64::from(header.layers).saturating_mul(INDEX_ENTRY);
    build.extent("header".into(), 0, header::SIZE)?;
    build.extent("index".into(), header.index, index)?;
    if header.tokenizer != 0 {
        let len = tokenizer::extent(build.source(), header.tokenizer)?;
        build.extent("tokenizer".into(), header.tokenizer, len)?;
    }
    build.embedding(header)?;
    let entries = build.source().read_vec(header.index, index)?;
    let mut layers = Vec::new();
    let mut cursor = Cursor::new(&entries, index);
    for i in 0..header.layers {
        let layer = entry(&mut cursor, i);
        let layer = layer.map_err(|fault| fault.shifted(header.index).in_file(build.source().path()))?;
        build.extent(layer.section.name.clone(), layer.section.offset, layer.section.stored)?;
        layers.push(layer);
    }
    build.last(header)?;
    // Everything has a place of its own before anything is decompressed.
    build.check_overlaps()?;
    for (i, layer) in layers.into_iter().enumerate() {
        build.layer(i, layer, header.block)?;
    }
    Ok(Layout { sections: build.sections, tensors: build.tensors })
}

/// A layer as the index has it.
struct Layer {
    section: Section,
    tensors: u16,
}

/// Whether a compression is LZ4.
fn is_lz4(compression: u8) -> Result<bool, String> {
    match compression {
        0 => Ok(false),
        1 | 2 => Ok(true),
        3 => Err("compression with zstd; none and LZ4 are".into()),
        n => Err(format!("compression {n}; none and LZ4 are")),
    }
}

fn entry(c: &mut Cursor<'_>, i: u32) -> Result<Layer, Fault> {
    let name = format!("layer {i}");
    let (offset, stored, len) = (c.u64()?, c.u32()?.into(), c.u32()?.into());
    c.u8()?;
    let lz4 = is_lz4(c.u8()?);
    let lz4 = lz4.map_err(|reason| Fault::Unsupported { tensor: Some(name.clone()), reason })?;
    let (tensors, crc, plain_crc) = (c.u16()?, c.u32()?, Some(c.u32()?));
    c.take(20)?;
    let section = Section { name, offset, stored, len, lz4, crc, plain_crc, checked: AtomicBool::new(false) };
    Ok(Layer { section, tensors })
}

/// What is known so far.
struct Build {
    sections: Sections,
    extents: Vec<Extent>,
    tensors: Vec<(TensorInfo, Place)>,
}

impl Build {
    fn source(&self) -> &Source {
        self.sections.source()
    }

    fn corrupt(&self, tensor: &str, offset: u64, reason: impl Into<String>) -> Error {
        let (file, tensor) = (self.source().path().into(), Some(tensor.into()));
        Error::Corrupt { file, tensor, offset: Some(offset), reason: reason.into() }
    }

    fn unsupported(&self, tensor: &str, reason: String) -> Error {
        Error::Unsupported { file: self.source().path().into(), tensor: Some(tensor.into()), reason }
    }

    /// Notes a part of the file, which has to lie in it.
    fn extent(&mut self, name: String, offset: u64, len: u64) -> Result<(), Error> {
        let file = self.source().len();
        match offset.checked_add(len).filter(|&end| end <= file) {
            Some(end) => self.extents.push((name, offset, end)),
            None => {
                let reason = format!("its {len} bytes go past the end of the file, {file}");
                return Err(self.corrupt(&name, offset, reason));
            }
        }
        Ok(())
    }

    fn check_overlaps(&mut self) -> Result<(), Error> {
        let mut extents = std::mem::take(&mut self.extents);
        extents.retain(|(_, from, to)| from < to);
        extents.sort_by_key(|(_, from, _)| *from);
        for pair in extents.windows(2) {
            let [(before, _, end), (name, from, _)] = pair else { continue };
            if from < end {
                return Err(self.corrupt(name, *from, format!("overlaps the {before}, which ends at {end}")));
            }
        }
        Ok(())
    }

    /// The tensors of a layer, one after the other.
    fn layer(&mut self, number: usize, layer: Layer, block: u32) -> Result<(), Error> {
        let (name, base) = (layer.section.name.clone(), layer.section.offset);
        let (len, lz4) = (layer.section.len, layer.section.lz4);
        let section = self.sections.add(layer.section)?;
        let mut at = 0u64;
        for _ in 0..layer.tensors {
            let mut bytes = [0; 24];
            self.sections.peek(section, at, &mut bytes)?;
            let place = if lz4 { base } else { base.saturating_add(at) };
            let (id, quant, layout, rows, cols, size) =
                tensor_header(&bytes).map_err(|fault| fault.of(&name).in_file(self.source().path()))?;
            let (tensor, vector) = tensor_name(id);
            let tensor = format!("layers.{number}.{tensor}");
            if layout != 0 {
                return Err(self.unsupported(&tensor, format!("layout {layout}; row-major is 0")));
            }
            at = at.saturating_add(TENSOR_HEADER);
            let shape = if vector && rows == 1 { vec![cols] } else { vec![rows, cols] };
            let what = What { name: tensor, quant: quant.into(), shape, block };
            let nbytes =
                self.tensor(what, section, at, place.saturating_add(if lz4 { 0 } else { TENSOR_HEADER }))?;
            if nbytes != size {
                let (info, _) = self.tensors.pop().map_or_else(|| (name.clone(), 0), |(i, _)| (i.name, 0));
                return Err(self.corrupt(
                    &info,
                    place,
                    format!("its header says {size} bytes, its type and shape {nbytes}"),
                ));
            }
            at = at.saturating_add(size);
        }
        if at != len {
            return Err(self.corrupt(&name, base, format!("its tensors end after {at} bytes of {len}")));
        }
        Ok(())
    }

    /// Adds a tensor whose data begin at byte `at` of a section; how many bytes they are.
    fn tensor(&mut self, what: What, section: usize, at: u64, offset: u64) -> Result<u64, Error> {
        let What { name, quant, shape, block } = what;
        let coding = Coding::of(quant, block).map_err(|reason| self.unsupported(&name, reason))?;
        if shape.contains(&0) {
            return Err(self.corrupt(&name, offset, format!("shape {shape:?}")));
        }
        let dtype = coding.dtype();
        let nbytes = checked_nbytes(dtype, &shape).map_err(|reason| self.corrupt(&name, offset, reason))?;
        let len = nbytes.checked_div(dtype.block_bytes() as u64).unwrap_or(0);
        let count = || {
            let mut bytes = [0; 4];
            self.sections.peek(section, at, &mut bytes)?;
            Ok::<u32, Error>(u32::from_le_bytes(bytes))
        };
        let stored = coding.bytes_of(len, count)?;
        let info = TensorInfo { name, dtype, shape, file: 0, offset, nbytes };
        self.tensors.push((info, Place { section, at, nbytes: stored, coding }));
        Ok(stored)
    }

    fn embedding(&mut self, header: &Header) -> Result<(), Error> {
        const NAME: &str = "embedding";
        let bytes = self.source().read_vec(header.embedding, EMBEDDING_HEADER);
        let bytes = bytes.map_err(|e| crate::opened::name_tensor(e, NAME))?;
        let head = EmbeddingHeader::read(&bytes)
            .map_err(|fault| fault.of(NAME).shifted(header.embedding).in_file(self.source().path()))?;
        let lz4 = is_lz4(head.compression).map_err(|reason| self.unsupported(NAME, reason))?;
        // The converter writes how many chunks there are even if there is one.
        let several = head.chunks > 1;
        if several && lz4 {
            return Err(self.unsupported(NAME, format!("{} chunks that are compressed", head.chunks)));
        }
        let table = if several { u64::from(head.chunks).saturating_mul(8) } else { 0 };
        let begin = header.embedding.saturating_add(EMBEDDING_HEADER).saturating_add(table);
        let coding = Coding::of(head.quant, header.block).map_err(|reason| self.unsupported(NAME, reason))?;
        let values = u64::from(head.vectors).saturating_mul(head.width.into());
        let count = || {
            let bytes = self.source().read_vec(begin, 4)?;
            Ok::<u32, Error>(bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b)))
        };
        // The count of outliers of a compressed embedding is known when it is decompressed.
        let (stored, len) = match (lz4, coding.has_outliers()) {
            (false, _) => (coding.bytes_of(values, count)?, None),
            (true, false) => (head.stored, Some(coding.block_bytes_of(values))),
            (true, true) => (head.stored, Some(self.outlier_len(begin, head.stored, coding, values)?)),
        };
        let whole = EMBEDDING_HEADER.saturating_add(table).saturating_add(stored);
        self.extent(NAME.into(), header.embedding, whole)?;
        let (name, checked) = (NAME.into(), AtomicBool::new(false));
        let len = len.unwrap_or(stored);
        let section =
            Section { name, offset: begin, stored, len, lz4, crc: head.crc, plain_crc: None, checked };
        let section = self.sections.add(section)?;
        let shape = vec![head.vectors.into(), head.width.into()];
        let what = What { name: "embedding.weight".into(), quant: head.quant, shape, block: header.block };
        let nbytes = self.tensor(what, section, 0, begin)?;
        if nbytes != len {
            return Err(self.corrupt(
                NAME,
                begin,
                format!("it has {len} bytes, its type and shape say {nbytes}"),
            ));
        }
        Ok(())
    }

    /// The decompressed size of an embedding with outliers, which nothing but its first four bytes tells: they are
    /// decompressed by themselves.
    fn outlier_len(&self, begin: u64, stored: u64, coding: Coding, values: u64) -> Result<u64, Error> {
        // Lengths of literals may take many bytes before the first one comes.
        const PREFIX: u64 = 1 << 24;
        let bytes = self.source().read_vec(begin, stored.min(PREFIX))?;
        let count = first_four(&bytes).map(u32::from_le_bytes);
        let count = count.ok_or_else(|| {
            self.corrupt("embedding", begin, "its LZ4 block does not hold the count of outliers")
        })?;
        coding.bytes_of(values, || Ok(count))
    }

    fn last(&mut self, header: &Header) -> Result<(), Error> {
        const NAME: &str = "final section";
        let bytes = self.source().read_vec(header.last, FINAL_HEADER);
        let bytes = bytes.map_err(|e| crate::opened::name_tensor(e, NAME))?;
        let mut c = Cursor::new(&bytes, FINAL_HEADER);
        let mut field = || c.u32().map_err(|fault| fault.of(NAME).in_file(self.sections.source().path()));
        let (kind, norm, head, crc) = (field()?, u64::from(field()?), u64::from(field()?), field()?);
        let stored = norm.saturating_add(head);
        self.extent(NAME.into(), header.last, stored.saturating_add(FINAL_HEADER))?;
        let offset = header.last.saturating_add(FINAL_HEADER);
        let (name, checked) = (NAME.into(), AtomicBool::new(false));
        let section =
            Section { name, offset, stored, len: stored, lz4: false, crc, plain_crc: None, checked };
        let section = self.sections.add(section)?;
        let (width, vocab) = (u64::from(header.width), u64::from(header.vocab));
        let vector = width.saturating_mul(2);
        let half = |name: &str, shape| What { name: name.into(), quant: 7, shape, block: header.block };
        if norm != vector && norm != vector.saturating_mul(2) {
            return Err(self.corrupt(
                NAME,
                header.last,
                format!("a norm of {norm} bytes for a width of {width}"),
            ));
        }
        self.tensor(half("final_norm.weight", vec![width]), section, 0, offset)?;
        if norm != vector {
            self.tensor(
                half("final_norm.bias", vec![width]),
                section,
                vector,
                offset.saturating_add(vector),
            )?;
        }
        let at = offset.saturating_add(norm);
        let matrix = What {
            name: "head.weight".into(),
            quant: header.quant.into(),
            shape: vec![vocab, width],
            block: header.block,
        };
        let used = match kind {
            0 => self.tensor(matrix, section, norm, at)?,
            1 => 0,
            2 => {
                let weights = self.tensor(matrix, section, norm, at)?;
                let (from, at) = (norm.saturating_add(weights), at.saturating_add(weights));
                let bias = self.tensor(half("head.bias", vec![vocab]), section, from, at)?;
                weights.saturating_add(bias)
            }
            n => return Err(self.unsupported(NAME, format!("head of kind {n}"))),
        };
        if used != head {
            let reason = format!("a head of {head} bytes; its type and shape say {used}");
            return Err(self.corrupt(NAME, header.last, reason));
        }
        Ok(())
    }
}

/// The first four bytes that a raw LZ4 block holds: sequences of literals and matches, of at least four bytes each.
fn first_four(block: &[u8]) -> Option<[u8; 4]> {
    let mut out = Vec::new();
    let mut input = block.iter().copied();
    while out.len() < 4 {
        let token = input.next()?;
        let mut literals = usize::from(token >> 4);
        let mut more = if literals == 15 { 255 } else { 0 };
        while more == 255 {
            more = input.next()?;
            literals = literals.saturating_add(more.into());
        }
        for _ in 0..literals.min(4) {
            out.push(input.next()?);
        }
        if out.len() >= 4 {
            break;
        }
        let distance = u16::from_le_bytes([input.next()?, input.next()?]);
        for _ in 0..4 {
            let from = out.len().checked_sub(distance.into())?;
            out.push(*out.get(from)?);
        }
        // Any further length of the match does not change the first four bytes.
    }
    out.first_chunk().copied()
}

/// What a tensor is, as its header says.
struct What {
    name: String,
    quant: u32,
    shape: Vec<u64>,
    block: u32,
}

struct EmbeddingHeader {
    quant: u32,
    stored: u64,
    vectors: u32,
    width: u32,
    compression: u8,
    crc: u32,
    chunks: u32,
}

impl EmbeddingHeader {
    fn read(bytes: &[u8]) -> Result<EmbeddingHeader, Fault> {
        let mut c = Cursor::new(bytes, EMBEDDING_HEADER);
        let (quant, stored, vectors, width) = (c.u32()?, c.u32()?.into(), c.u32()?, c.u32()?);
        let compression = c.u8()?;
        c.take(3)?;
        Ok(EmbeddingHeader { quant, stored, vectors, width, compression, crc: c.u32()?, chunks: c.u32()? })
    }
}

type TensorHeader = (u16, u8, u8, u64, u64, u64);

fn tensor_header(bytes: &[u8]) -> Result<TensorHeader, Fault> {
    let mut c = Cursor::new(bytes, TENSOR_HEADER);
    Ok((c.u16()?, c.u8()?, c.u8()?, c.u32()?.into(), c.u32()?.into(), c.u32()?.into()))
}

/// The name of a tensor number, and whether it is a vector.
fn tensor_name(id: u16) -> (String, bool) {
    const NAMES: [&str; 23] = [
        "q.weight",
        "k.weight",
        "v.weight",
        "o.weight",
        "gate.weight",
        "up.weight",
        "down.weight",
        "attn_norm.weight",
        "attn_norm.bias",
        "ffn_norm.weight",
        "ffn_norm.bias",
        "q.bias",
        "k.bias",
        "v.bias",
        "o.bias",
        "gate.bias",
        "up.bias",
        "down.bias",
        "qkv.weight",
        "qkv.bias",
        "position.weight",
        "router.weight",
        "router.bias",
    ];
    /// As many as there are names.
    const FIRST_EXPERT: u16 = 23;
    const PARTS: [&str; 6] = ["gate.weight", "gate.bias", "up.weight", "up.bias", "down.weight", "down.bias"];
    let name = match id.checked_sub(FIRST_EXPERT) {
        None => NAMES.get(usize::from(id)).copied().unwrap_or_default().to_owned(),
        Some(n) => {
            let part = PARTS.get(usize::from(n % 6)).copied().unwrap_or_default();
            format!("experts.{}.{part}", n / 6)
        }
    };
    let vector = name.contains("norm.") || name.ends_with(".bias");
    (name, vector)
}
