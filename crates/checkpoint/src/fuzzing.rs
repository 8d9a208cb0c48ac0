//! Bodies of the fuzz targets, which tests replay. No part of the public interface.

use crate::{Checkpoint, Error};

/// Opens a GGUF file in memory and reads every tensor.
pub fn gguf(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::gguf::open_memory(bytes.to_vec())?;
    walk(&*opened);
    Ok(opened)
}

/// Opens a safetensors file in memory and reads every tensor.
pub fn safetensors(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::safetensors::open_memory(bytes.to_vec())?;
    walk(&*opened);
    Ok(opened)
}

/// Opens a PyTorch file in memory, reads every tensor and compares the checksums.
pub fn pytorch(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::pytorch::open_memory(bytes.to_vec())?;
    walk(&*opened);
    drop(opened.verify_checksums());
    Ok(opened)
}

/// Opens a QSF file in memory, reads every tensor and compares the checksums.
pub fn qsf(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::qsf::open_memory(bytes.to_vec())?;
    walk(&*opened);
    drop(opened.verify_checksums());
    Ok(opened)
}

/// The same with the file's size and the checksums of header and layers made right first, which would keep nearly every
/// change of a file from what is behind them.
pub fn qsf_sealed(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let mut bytes = bytes.to_vec();
    // A file that is too short for it stays as it is.
    let _ = match bytes.get(4..8) {
        Some([2, 0, 0, 0]) => crate::qsf::seal_v2(&mut bytes),
        _ => seal_qsf(&mut bytes),
    };
    qsf(&bytes)
}

fn seal_qsf(bytes: &mut [u8]) -> Option<()> {
    let len = (bytes.len() as u64).to_le_bytes();
    bytes.get_mut(160..168)?.copy_from_slice(&len);
    let sum = crc32fast::hash(bytes.get(..168)?).to_le_bytes();
    bytes.get_mut(168..172)?.copy_from_slice(&sum);
    let number = |bytes: &[u8], at: u64, n: usize| {
        let at = usize::try_from(at).ok()?;
        let field = bytes.get(at..)?.get(..n)?;
        Some(field.iter().rev().fold(0u64, |sum, byte| sum.wrapping_shl(8) | u64::from(*byte)))
    };
    let (layers, index) = (number(bytes, 16, 4)?, number(bytes, 64, 8)?);
    for i in 0..layers.min(64) {
        let entry = index.checked_add(i.checked_mul(48)?)?;
        let (from, len) = (number(bytes, entry, 8)?, number(bytes, entry.checked_add(8)?, 4)?);
        let stored = bytes.get(usize::try_from(from).ok()?..)?.get(..usize::try_from(len).ok()?)?;
        let sum = crc32fast::hash(stored).to_le_bytes();
        bytes.get_mut(usize::try_from(entry.checked_add(20)?).ok()?..)?.get_mut(..4)?.copy_from_slice(&sum);
    }
    Some(())
}

/// Runs a pickle as if it were in an archive with four storages of 64 bytes.
pub fn pickle(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::pytorch::open_pickle_memory(bytes)?;
    walk(&*opened);
    Ok(opened)
}

/// Opens a CAWSF file in memory, reads every matrix, compares the checksums, multiplies and routes.
pub fn cawsf(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    use crate::cawsf::File;
    let file = crate::cawsf::open_memory(bytes.to_vec())?;
    walk(file.checkpoint());
    // What is only found when sections are loaded makes the file as bad as its header would.
    file.checkpoint().verify_checksums()?;
    let ones = |n: u64| vec![1.0; usize::try_from(n).unwrap_or(0).min(bytes.len().saturating_mul(64))];
    match file {
        File::V1(opened) => {
            for scope in opened.scopes() {
                drop(opened.apply(scope.id, &ones(scope.cols)));
            }
            if let Ok(routing) = opened.routing() {
                assert!(routing.select("a word", 2, Some(1.0)).len() <= 2);
            }
            Ok(opened)
        }
        File::V2(opened) => {
            for at in 0..opened.tensors().len() {
                let stack = opened.matrices(at);
                for matrix in if stack.is_empty() { at..at.saturating_add(1) } else { stack } {
                    drop(opened.apply(matrix, &ones(opened.info(matrix).map_or(0, |info| info.row_len()))));
                }
            }
            let mut unpacked = Vec::new();
            for (at, extent) in opened.extents().iter().enumerate() {
                let from = usize::try_from(extent.offset).unwrap_or(usize::MAX);
                let stored = bytes.get(from..).and_then(|b| b.get(..usize::try_from(extent.stored).ok()?));
                if opened.unpack(at, stored.unwrap_or_default(), &mut unpacked).is_ok() && extent.compressed {
                    assert_eq!(unpacked.len() as u64, extent.nbytes);
                }
            }
            let base = opened.tensors().len();
            for (at, plane) in opened.planes().iter().enumerate() {
                let at = base.saturating_add(at);
                let read = opened.bytes(at).map(|b| b.len() as u64);
                assert!(read.is_err() || read.is_ok_and(|n| n == plane.nbytes));
            }
            if let Some(routing) = opened.routing() {
                assert!(routing.select(&routing.feature(std::iter::empty()), 2, Some(1.0)).len() <= 2);
            }
            Ok(opened)
        }
    }
}

/// The same with all checksums and the file's length made right first, which would keep nearly every change of a file of
/// version 2 from what is behind them.
pub fn cawsf_sealed(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let mut bytes = bytes.to_vec();
    // A file that is too short for it stays as it is.
    let _ = seal_cawsf(&mut bytes);
    cawsf(&bytes)
}

fn seal_cawsf(bytes: &mut [u8]) -> Option<()> {
    let number = |bytes: &[u8], at: usize, n: usize| {
        let field = bytes.get(at..)?.get(..n)?;
        usize::try_from(field.iter().rev().fold(0u64, |sum, byte| sum.wrapping_shl(8) | u64::from(*byte)))
            .ok()
    };
    let sum = |bytes: &[u8], from: usize, len: usize| {
        Some(twox_hash::XxHash3_64::oneshot(bytes.get(from..)?.get(..len)?).to_le_bytes())
    };
    // Version 1 has no trailer.
    let len = Some(bytes.len()).filter(|_| bytes.get(8) == Some(&2))?;
    let trailer = len.checked_sub(144)?;
    // INDEX as it is: its shards are its last entries.
    let (index, size) =
        (number(bytes, trailer.checked_add(40)?, 8)?, number(bytes, trailer.checked_add(48)?, 8)?);
    let end = index.checked_add(size)?;
    let mut at = end;
    for _ in 0..64 {
        at = at.checked_sub(64).filter(|at| *at >= index)?;
        let (from, stored) = (number(bytes, at.checked_add(8)?, 8)?, number(bytes, at.checked_add(16)?, 8)?);
        let Some(found) = sum(bytes, from, stored) else { break };
        // The count before the first shard is where they end.
        let before = number(bytes, at.checked_sub(4)?, 4)?;
        bytes.get_mut(at.checked_add(32)?..)?.get_mut(..8)?.copy_from_slice(&found);
        if before.checked_mul(64) == end.checked_sub(at) {
            break;
        }
    }
    for place in [0usize, 40, 80] {
        let at = trailer.checked_add(place)?;
        let (from, stored) = (number(bytes, at, 8)?, number(bytes, at.checked_add(8)?, 8)?);
        if let Some(found) = sum(bytes, from, stored) {
            bytes.get_mut(at.checked_add(24)?..)?.get_mut(..8)?.copy_from_slice(&found);
        }
    }
    bytes.get_mut(trailer.checked_add(120)?..)?.get_mut(..8)?.copy_from_slice(&(len as u64).to_le_bytes());
    let found = sum(bytes, trailer, 128)?;
    bytes.get_mut(trailer.checked_add(128)?..)?.get_mut(..8)?.copy_from_slice(&found);
    Some(())
}

/// Touches everything that an opened container offers.
fn walk(opened: &dyn Checkpoint) {
    for (at, info) in opened.tensors().iter().enumerate() {
        assert_eq!(opened.find(&info.name), Some(at));
        assert!(info.is_empty() <= (info.nbytes == 0));
        let bytes = opened.bytes(at).map(|bytes| bytes.into_owned());
        let Ok(bytes) = bytes else { continue };
        assert_eq!(bytes.len() as u64, info.nbytes);
        let mut read = vec![0; bytes.len().min(4096)];
        let from = info.nbytes.saturating_sub(read.len() as u64);
        assert!(opened.read(at, from, &mut read).is_ok() && bytes.ends_with(&read));
        assert!(opened.read(at, from.saturating_add(1), &mut read).is_err() || read.is_empty());
    }
    assert_eq!(opened.metadata().iter().len(), opened.metadata().len());
}
