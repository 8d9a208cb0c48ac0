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

/// Opens a CAWSF file in memory, reads every matrix, compares the checksums and routes.
pub fn cawsf(bytes: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let opened = crate::cawsf::open_memory(bytes.to_vec())?;
    walk(&opened);
    // What is only found when sections are loaded makes the file as bad as its header would.
    opened.verify_checksums()?;
    for scope in opened.scopes() {
        let cols = usize::try_from(scope.cols).unwrap_or(0);
        drop(opened.apply(scope.id, &vec![1.0; cols.min(bytes.len().saturating_mul(64))]));
    }
    if let Ok(routing) = opened.routing() {
        assert!(routing.select("a word", 2, Some(1.0)).len() <= 2);
    }
    Ok(Box::new(opened))
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
