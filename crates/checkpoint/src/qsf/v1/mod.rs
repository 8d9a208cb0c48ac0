//! QSF (Quantized Stream Format), version 1: a header, an index of layers, and sections with their checksums.
//!
//! Little-endian and packed, in this order, each section at a multiple of 64 bytes:
//!
//! ```text
//! header, 256 bytes   sizes, kinds, offsets of what follows; CRC-32 of its first 168 bytes ([`header`])
//! index               48 bytes for each layer: where it is, how it is compressed, its CRC-32s
//! embedding           header of 32 bytes, blocks
//! tokenizer           header of 32 bytes, vocabulary, its CRC-32, merges, added tokens ([`tokenizer`])
//! layers              for each tensor a header of 24 bytes and its data, without padding ([`layout`])
//! final               header of 16 bytes, the last norm, the head
//! ```
//!
//! A layer or the embedding may be one raw LZ4 block; its size is bounded by what LZ4 can hold before anything is
//! allocated. What blocks mean is in [`block`]. They run over a tensor's values from its first to its last and cross
//! rows where a row is no whole number of them, and outliers replace single values: so quantized tensors are seen as
//! `F32`, made when they are read, and half precision as `F16`, borrowed from the file where it is not compressed.
//!
//! Checksums are enforced: the header's, the vocabulary's and those of compressed layers when the file is opened, those
//! of other sections when they are read first.
//!
//! Names are those of the format's tensor numbers (`layers.0.q.weight`, `layers.0.experts.3.up.weight`); the header's
//! fields become metadata under `qsf.`.
//!
//! Source: the files that the format's first converter wrote; there is no other specification of version 1.

mod block;
mod header;
mod layout;
mod section;
mod tokenizer;

use crate::map::Source;
use crate::opened::name_tensor;
use crate::{Checkpoint, Checksums, Error, Metadata, TensorInfo};
use block::{Coding, Outliers};
use section::Sections;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// How many lists of outliers are kept: enough for threads that read the matrices of one attention.
const KEPT_OUTLIERS: usize = 4;

/// Reads what comes before the data, with all checks.
pub(super) fn open(source: Source) -> Result<Box<dyn Checkpoint>, Error> {
    Ok(Box::new(read(source)?))
}

/// Where a tensor's data are, and what they are.
struct Place {
    section: usize,
    /// Byte in the section, decompressed.
    at: u64,
    nbytes: u64,
    coding: Coding,
}

fn read(source: Source) -> Result<Qsf, Error> {
    let header = header::read(&source)?;
    let mut metadata = header.metadata();
    tokenizer::read(&source, &header, &mut metadata)?;
    let found = layout::read(source, &header)?;
    let mut index = HashMap::with_capacity(found.tensors.len());
    let paths = vec![found.sections.source().path().to_path_buf()];
    let (mut tensors, mut places) = (Vec::new(), Vec::new());
    for (info, place) in found.tensors {
        if index.insert(info.name.clone(), tensors.len()).is_some() {
            let (file, offset) = (found.sections.source().path().to_path_buf(), Some(info.offset));
            let reason = "there are two tensors of this number".into();
            return Err(Error::Corrupt { file, tensor: Some(info.name), offset, reason });
        }
        tensors.push(info);
        places.push(place);
    }
    let outliers = Mutex::default();
    Ok(Qsf { sections: found.sections, paths, metadata, tensors, places, index, outliers })
}

/// An opened file.
struct Qsf {
    sections: Sections,
    paths: Vec<PathBuf>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    places: Vec<Place>,
    index: HashMap<String, usize>,
    /// Those of the tensors that were read last.
    outliers: Mutex<VecDeque<(usize, Arc<Outliers>)>>,
}

impl Qsf {
    fn get(&self, tensor: usize) -> Result<(&TensorInfo, &Place), Error> {
        let found = self.tensors.get(tensor).zip(self.places.get(tensor));
        found.ok_or_else(|| {
            self.refused(format!("there is no tensor number {tensor}; there are {}", self.tensors.len()))
        })
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { file: self.sections.source().path().into(), reason }
    }

    fn corrupt(&self, info: &TensorInfo, reason: String) -> Error {
        let file = self.sections.source().path().into();
        Error::Corrupt { file, tensor: Some(info.name.clone()), offset: Some(info.offset), reason }
    }

    /// The outliers of a tensor, sorted.
    fn outliers(&self, tensor: usize) -> Result<Arc<Outliers>, Error> {
        // A thread that panicked elsewhere leaves whole lists here.
        let lock = || self.outliers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = lock().iter().find(|(at, _)| *at == tensor) {
            return Ok(found.clone());
        }
        let (info, place) = self.get(tensor)?;
        let head = place.nbytes.saturating_sub(place.coding.block_bytes_of(info.len()));
        let bytes = self.sections.slice(place.section, place.at, head)?;
        let made = Outliers::read(&bytes, info.len()).map_err(|reason| self.corrupt(info, reason))?;
        let made = Arc::new(made);
        let mut kept = lock();
        kept.push_back((tensor, made.clone()));
        if kept.len() > KEPT_OUTLIERS {
            kept.pop_front();
        }
        Ok(made)
    }

    /// Makes the values from byte `offset` of the tensor's `F32` on.
    fn make(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let (info, place) = self.get(tensor)?;
        let end = offset.saturating_add(dst.len() as u64);
        let all = place.coding.block_bytes_of(info.len());
        let span = place.coding.span(offset / 4, end.div_ceil(4));
        let base = place.at.saturating_add(place.nbytes.saturating_sub(all));
        let blocks = self.sections.slice(place.section, base.saturating_add(span.byte), span.bytes)?;
        let mut values = place.coding.unpack(&blocks);
        if place.coding.has_outliers() {
            self.outliers(tensor)?.replace(span.first, &mut values);
        }
        let skip = usize::try_from(offset.saturating_sub(span.first.saturating_mul(4))).unwrap_or(usize::MAX);
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).skip(skip);
        dst.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn check_range(&self, info: &TensorInfo, offset: u64, len: usize) -> Result<(), Error> {
        if offset.checked_add(len as u64).is_some_and(|end| end <= info.nbytes) {
            return Ok(());
        }
        let (name, nbytes) = (&info.name, info.nbytes);
        Err(self.refused(format!("{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for")))
    }
}

impl Checkpoint for Qsf {
    fn container(&self) -> &'static str {
        "qsf"
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
        let (info, place) = self.get(tensor)?;
        let named = |e| name_tensor(e, &info.name);
        if place.coding.is_half() {
            return self.sections.slice(place.section, place.at, place.nbytes).map_err(named);
        }
        let mut bytes = Vec::new();
        let len = usize::try_from(info.nbytes).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
        let len = len.ok_or_else(|| Error::Limit {
            file: self.sections.source().path().into(),
            tensor: Some(info.name.clone()),
            reason: format!("no memory for {} bytes", info.nbytes),
        })?;
        bytes.resize(len, 0);
        // Pieces, so that there is not a second copy of the whole.
        const PIECE: usize = 1 << 20;
        for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
            self.make(tensor, (i as u64).saturating_mul(PIECE as u64), piece).map_err(named)?;
        }
        Ok(Cow::Owned(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let (info, place) = self.get(tensor)?;
        self.check_range(info, offset, dst.len())?;
        let read = match place.coding.is_half() {
            true => self.sections.read(place.section, place.at.saturating_add(offset), dst),
            false => self.make(tensor, offset, dst),
        };
        read.map_err(|e| name_tensor(e, &info.name))
    }
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        let n = self.sections.verify()?;
        // The header's and the vocabulary's were compared when the file was opened.
        let vocabulary = usize::from(self.metadata.get("qsf.tokenizer.tokens").is_some());
        Ok(Checksums::Valid(n.saturating_add(1).saturating_add(vocabulary)))
    }
}
