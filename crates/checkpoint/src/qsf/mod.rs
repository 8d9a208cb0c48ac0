//! QSF (Quantized Stream Format): a model in one file, cut into the pieces that running it needs together.
//!
//! Version 1 is what the format's first converter wrote; it is read ([`v1`]). Version 2 is fonio's own, read and
//! written ([`v2`]). Both begin with the same magic number and their version; `docs/formats/qsf.md` is the
//! specification of both.

mod v1;
mod v2;

use crate::map::Source;
use crate::{Checkpoint, Container, Error};
use std::path::Path;

/// The container.
pub(crate) const QSF: Container = Container {
    name: "qsf",
    extensions: &["qsf"],
    sniff: |first| first.starts_with(MAGIC),
    open,
    folder_files: &[],
    create: Some(v2::create),
};

const MAGIC: &[u8] = b"1FSQ";

fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    if path.is_dir() {
        return open(&crate::list::file_in(path, &QSF)?);
    }
    read(Source::open(path)?)
}

/// Reads a file in memory, with all checks.
pub(crate) fn open_memory(bytes: Vec<u8>) -> Result<Box<dyn Checkpoint>, Error> {
    read(Source::memory(Path::new("memory.qsf"), bytes))
}

fn read(source: Source) -> Result<Box<dyn Checkpoint>, Error> {
    let mut version = [0; 4];
    // A file that is too short for a version is for version 1 to refuse, as are versions that do not exist.
    match source.len() >= 8 && source.read_at(4, &mut version).is_ok() && version == [2, 0, 0, 0] {
        true => v2::open(source),
        false => v1::open(source),
    }
}

/// Makes the checksums of a version 2 file in memory right, as far as its fields can be followed.
pub(crate) fn seal_v2(bytes: &mut [u8]) -> Option<()> {
    v2::seal(bytes)
}
