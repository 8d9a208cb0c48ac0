//! Compressed extents: an LZ4 frame or a zstd frame (RFC 8878), and nothing behind it.

use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::{Read, Write};

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Lz4,
    Zstd,
}

/// A zstd decoder keeps a window of earlier bytes; RFC 8878 asks decoders for at least this much.
const WINDOW: u64 = 8 << 20;

impl Packing {
    pub(super) fn number(self) -> u32 {
        match self {
            Packing::Plain => 0,
            Packing::Lz4 => 1,
            Packing::Zstd => 2,
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Packing> {
        [Packing::Plain, Packing::Lz4, Packing::Zstd].into_iter().find(|p| p.number() == number)
    }
}

/// The most that so many stored bytes may stand for, so that a small file cannot ask for much memory. LZ4 cannot do
/// more anyway.
pub(super) fn justified(stored: u64) -> u64 {
    stored.saturating_mul(256).saturating_add(1 << 20)
}

/// Compresses, if that makes less of it.
pub(super) fn pack(packing: Packing, plain: &[u8]) -> Option<Vec<u8>> {
    let packed = match packing {
        Packing::Plain => None,
        Packing::Lz4 => lz4(plain),
        Packing::Zstd => Some(compress_to_vec(plain, CompressionLevel::Fastest)),
    };
    let len = plain.len() as u64;
    packed.filter(|packed| packed.len() < plain.len() && len <= justified(packed.len() as u64))
}

fn lz4(plain: &[u8]) -> Option<Vec<u8>> {
    let info = FrameInfo::new()
        .block_size(BlockSize::Max4MB)
        .block_mode(BlockMode::Independent)
        .content_size(Some(plain.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

/// Unpacks into `dst`, which is cleared first, what must be `nbytes` bytes.
pub(super) fn unpack(packing: Packing, stored: &[u8], nbytes: u64, dst: &mut Vec<u8>) -> Result<(), String> {
    dst.clear();
    let size = usize::try_from(nbytes).map_err(|e| e.to_string())?;
    dst.try_reserve_exact(size.saturating_add(1))
        .map_err(|e| format!("no memory for {nbytes} bytes: {e}"))?;
    // A byte more, so that what is too much is seen and a frame's end is looked at.
    let limit = nbytes.saturating_add(1);
    let rest = match packing {
        Packing::Plain => {
            dst.extend_from_slice(stored.get(..size).unwrap_or(stored));
            stored.len().saturating_sub(size)
        }
        Packing::Lz4 => {
            let mut decoder = FrameDecoder::new(stored);
            decoder.by_ref().take(limit).read_to_end(dst).map_err(|e| format!("LZ4: {e}"))?;
            decoder.into_inner().len()
        }
        Packing::Zstd => {
            let mut from = stored;
            let mut decoder = StreamingDecoder::new_with_max_window_size(&mut from, WINDOW.max(nbytes))
                .map_err(|e| format!("zstd: {e}"))?;
            decoder.by_ref().take(limit).read_to_end(dst).map_err(|e| format!("zstd: {e}"))?;
            drop(decoder);
            from.len()
        }
    };
    match dst.len() as u64 {
        n if n != nbytes => Err(format!("unpacked it has {n} bytes or more, not {nbytes}")),
        _ if rest > 0 => Err(format!("{rest} bytes follow the packed ones")),
        _ => Ok(()),
    }
}
