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
