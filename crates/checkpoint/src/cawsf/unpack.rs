//! Compressed bytes: zstd frames (RFC 8878) and LZ4 frames, unpacked as a stream so that a limit holds, and the
//! checksums of what comes out.

use crate::cursor::Fault;
use ruzstd::decoding::StreamingDecoder;
use std::io::Read;

/// Bytes that are unpacked together.
const STEP: usize = 1 << 16;
/// A zstd decoder keeps a window of earlier bytes; RFC 8878 asks decoders for at least this much.
const WINDOW: u64 = 8 << 20;
/// What a checksum covers.
pub(super) const CHUNK: usize = 1 << 20;

/// How bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    Raw,
    /// A zstd frame.
    Zstd,
    /// An LZ4 frame.
    Lz4,
}

/// The most that so many stored bytes may stand for. LZ4 cannot exceed 255 times its input, so no file whose dense
/// shards are packed with it comes near.
pub(super) fn justified(stored: u64) -> u64 {
    stored.saturating_mul(256).saturating_add(1 << 20)
}

/// Unpacks. More than `limit` bytes, or more than the stored ones justify, are a fault found before they are kept.
pub(super) fn unpack(packing: Packing, stored: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
    let limit = limit.min(justified(stored.len() as u64));
    match packing {
        Packing::Raw => drain(stored, limit),
        Packing::Zstd => zstd(stored, limit),
        Packing::Lz4 => {
            let mut decoder = lz4_flex::frame::FrameDecoder::new(stored);
            let out = drain(&mut decoder, limit)?;
            if decoder.into_inner().is_empty() {
                return Ok(out);
            }
            Err(corrupt("bytes follow the LZ4 frame"))
        }
    }
}

fn zstd(mut stored: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
    let broken = |e: &dyn std::fmt::Display| corrupt(format!("zstd: {e}"));
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(&mut stored, WINDOW.max(limit)).map_err(|e| broken(&e))?;
    let out = drain(&mut decoder, limit)?;
    let (given, found) =
        (decoder.decoder.get_checksum_from_data(), decoder.decoder.get_calculated_checksum());
    if given.is_some() && given != found {
        return Err(corrupt("zstd: the frame's checksum is wrong"));
    }
    drop(decoder);
    if stored.is_empty() { Ok(out) } else { Err(corrupt("bytes follow the zstd frame")) }
}

fn drain(mut from: impl Read, limit: u64) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    let mut step = vec![0; STEP];
    loop {
        let n = match from.read(&mut step) {
            Ok(0) => return Ok(out),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(corrupt(format!("the compressed bytes: {e}"))),
        };
        if (out.len() as u64).saturating_add(n as u64) > limit {
            let reason = format!("unpacked it has more than the {limit} bytes that it can have");
            return Err(Fault::Limit { tensor: None, reason });
        }
        if out.try_reserve(n).is_err() {
            let reason = format!("no memory for {} bytes and more", out.len());
            return Err(Fault::Limit { tensor: None, reason });
        }
        out.extend_from_slice(step.get(..n).unwrap_or_default());
    }
}

/// Compares the XXH3-64 of every chunk.
pub(super) fn check(sums: &[u64], bytes: &[u8]) -> Result<(), Fault> {
    let found = bytes.len().div_ceil(CHUNK);
    if found != sums.len() {
        return Err(corrupt(format!("it has {found} chunks, META has checksums of {}", sums.len())));
    }
    for (at, (chunk, sum)) in bytes.chunks(CHUNK).zip(sums).enumerate() {
        let found = twox_hash::XxHash3_64::oneshot(chunk);
        if found != *sum {
            return Err(corrupt(format!("the checksum of chunk {at} is {found:016x}, META says {sum:016x}")));
        }
    }
    Ok(())
}

pub(super) fn corrupt(reason: impl Into<String>) -> Fault {
    Fault::Corrupt { tensor: None, offset: None, reason: reason.into() }
}
