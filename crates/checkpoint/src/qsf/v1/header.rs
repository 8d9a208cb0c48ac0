//! The header, 256 bytes, and its fields as metadata.
//!
//! | offset | type | fields |
//! |---|---|---|
//! | 0 | 4 × u32 | magic, version, header size, architecture |
//! | 16 | 8 × u32 | layers, width, heads, key heads, vocabulary, context, feed-forward width, head width |
//! | 48 | 4 × u8 | type of weights, activation, norm, positions |
//! | 52 | 2 × f32, u32 | rotary base, epsilon, values in a block (0 = 64) |
//! | 64 | 4 × u64 | offsets of index, embedding, final section, tokenizer |
//! | 96 | 3 × u64 | offsets of sections that version 1 never has |
//! | 120 | 5 × u32 | tokens bos, eos, pad, unk (all ones = none); parameters in millions |
//! | 140 | 4 × u8 | biases, feed-forward kind, attention kind, tying |
//! | 144 | u32, f32, u32, u32 | rotary scaling and its factor, window, tied embeddings |
//! | 160 | u64, u32, u8 | size of the file, CRC-32 of bytes 0 to 168, byte order = 1 |
//! | 173 | 4 × u8, u32 | experts, experts used, whether their weights are normalized, –, expert width |

use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::{Error, Metadata};

/// Its length.
pub(super) const SIZE: u64 = 256;
/// How many of its bytes are under its checksum.
const SUMMED: usize = 168;
const NONE: u32 = u32::MAX;

/// The fields that say what else is in the file; the others are metadata only.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub layers: u32,
    pub width: u32,
    pub vocab: u32,
    pub quant: u8,
    pub block: u32,
    pub index: u64,
    pub embedding: u64,
    pub last: u64,
    pub tokenizer: u64,
    metadata: Metadata,
}

impl Header {
    /// All fields under `qsf.`
    pub(super) fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }
}

/// Reads and checks it.
pub(super) fn read(source: &Source) -> Result<Header, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    if source.len() < SIZE {
        let reason = format!("{} bytes are too few for a header", source.len());
        return Err(in_file(Fault::Corrupt { tensor: None, offset: Some(0), reason }));
    }
    let bytes = source.read_vec(0, SIZE)?;
    let header = parse(&mut Cursor::new(&bytes, SIZE), source.len()).map_err(in_file)?;
    Ok(header)
}

fn fault(offset: u64, reason: String) -> Fault {
    Fault::Corrupt { tensor: None, offset: Some(offset), reason: format!("header: {reason}") }
}

fn unsupported(reason: String) -> Fault {
    Fault::Unsupported { tensor: None, reason }
}

fn parse(c: &mut Cursor<'_>, file_len: u64) -> Result<Header, Fault> {
    let summed = c.bytes().get(..SUMMED).map(crc32fast::hash);
    let mut h = Header::default();
    if c.take(4)? != b"1FSQ" {
        return Err(fault(0, "it does not begin with QSF's magic number".into()));
    }
    let version = c.u32()?;
    if version != 1 {
        return Err(unsupported(format!("QSF version {version}; 1 and 2 are")));
    }
    h.metadata.insert("qsf.version", version);
    let size = c.u32()?;
    if u64::from(size) != SIZE {
        return Err(fault(8, format!("a size of {size} bytes; version 1 has {SIZE}")));
    }
    h.metadata.insert("qsf.architecture", c.u32()?);
    h.layers = number(c, &mut h.metadata, "num_layers")?;
    h.width = number(c, &mut h.metadata, "hidden_dim")?;
    for name in ["num_heads", "num_kv_heads"] {
        number(c, &mut h.metadata, name)?;
    }
    h.vocab = number(c, &mut h.metadata, "vocab_size")?;
    for name in ["max_seq_len", "intermediate_dim", "head_dim"] {
        number(c, &mut h.metadata, name)?;
    }
    h.quant = byte(c, &mut h.metadata, "quant_type")?;
    for name in ["activation", "norm_type", "pos_enc"] {
        byte(c, &mut h.metadata, name)?;
    }
    float(c, &mut h.metadata, "rope_theta")?;
    float(c, &mut h.metadata, "norm_eps")?;
    h.block = match number(c, &mut h.metadata, "block_size")? {
        0 => 64,
        n @ (32 | 64 | 128 | 256) => n,
        n => return Err(fault(60, format!("blocks of {n} values; 32, 64, 128 and 256 are allowed"))),
    };
    for to in [&mut h.index, &mut h.embedding, &mut h.last, &mut h.tokenizer] {
        *to = c.u64()?;
    }
    for name in ["extended configuration", "calibration", "importance"] {
        if c.u64()? != 0 {
            return Err(unsupported(format!("a section with {name}")));
        }
    }
    tail(c, &mut h)?;
    let stated = c.u64()?;
    if stated != file_len {
        return Err(fault(160, format!("the file should have {stated} bytes, it has {file_len}")));
    }
    let sum = c.u32()?;
    if summed != Some(sum) {
        return Err(fault(
            168,
            format!("the checksum should be {sum:08x}, it is {:08x}", summed.unwrap_or(0)),
        ));
    }
    let order = c.u8()?;
    if order != 1 {
        return Err(unsupported(format!("byte order {order}; little-endian is 1")));
    }
    for name in ["num_experts", "num_active_experts", "norm_topk"] {
        byte(c, &mut h.metadata, name)?;
    }
    c.u8()?;
    number(c, &mut h.metadata, "expert_intermediate_dim")?;
    Ok(h)
}

/// Bytes 120 to 160.
fn tail(c: &mut Cursor<'_>, h: &mut Header) -> Result<(), Fault> {
    for name in ["bos", "eos", "pad", "unk"] {
        let id = c.u32()?;
        if id != NONE {
            h.metadata.insert(format!("qsf.{name}"), id);
        }
    }
    number(c, &mut h.metadata, "parameters_in_millions")?;
    for name in ["has_bias", "ffn_type", "attn_type", "weight_tying"] {
        byte(c, &mut h.metadata, name)?;
    }
    number(c, &mut h.metadata, "rope_scaling_type")?;
    float(c, &mut h.metadata, "rope_scaling_factor")?;
    number(c, &mut h.metadata, "sliding_window")?;
    number(c, &mut h.metadata, "tie_word_embeddings")?;
    Ok(())
}

fn number(c: &mut Cursor<'_>, metadata: &mut Metadata, name: &str) -> Result<u32, Fault> {
    let value = c.u32()?;
    metadata.insert(format!("qsf.{name}"), value);
    Ok(value)
}

fn byte(c: &mut Cursor<'_>, metadata: &mut Metadata, name: &str) -> Result<u8, Fault> {
    let value = c.u8()?;
    metadata.insert(format!("qsf.{name}"), value);
    Ok(value)
}

fn float(c: &mut Cursor<'_>, metadata: &mut Metadata, name: &str) -> Result<f32, Fault> {
    let value = c.f32()?;
    metadata.insert(format!("qsf.{name}"), value);
    Ok(value)
}
