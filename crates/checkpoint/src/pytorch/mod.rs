//! PyTorch's own files, `.bin`, `.pt`, `.pth`: a pickle that describes tensors, and their storages.
//!
//! A pickle is a program. Here none of it is ever run: [`pickle`] knows the opcodes and the few names that rebuild a
//! dictionary of tensors, and gives an error that names whatever else it meets. Read only; sparse and quantized
//! tensors, TorchScript archives and whole pickled modules are *unsupported*.
//!
//! Three layouts (there is no specification; `torch/serialization.py` is the reference):
//!
//! * ZIP, since PyTorch 1.6 ([`archive`]): `NAME/data.pkl`, `NAME/data/KEY` for each storage, `NAME/byteorder`.
//!   Entries are stored as they are, so contiguous tensors are borrowed from the file.
//! * Legacy ([`legacy`]): five pickles (a magic number, a protocol number, the system, the object, the storages' keys),
//!   then each storage as a 64-bit count of values and the values.
//! * Sharded: `pytorch_model.bin.index.json` as in safetensors.
//!
//! A tensor is a view into a storage: offset, shape and strides, all of which must stay inside. One that does not lie
//! in row-major order is gathered into memory of its own; its [`TensorInfo::offset`] is where its storage begins.
//! [`Checkpoint::read`] keeps the last such tensor, so reading it piece by piece costs one pass.
//!
//! Names: the object is a dictionary of tensors. Where it has none itself, but one of the customary keys
//! `state_dict`, `model_state_dict`, `model` or `module` with a dictionary in it, that one is taken, and what is beside
//! it (an optimizer's state, say) is left out. Dictionaries and lists inside are flattened: `a.b.0`. Numbers and texts
//! become metadata under such names.

mod archive;
mod legacy;
mod pickle;
mod state;
mod strided;

use crate::cursor::Cursor;
use crate::map::Source;
use crate::opened::{Opened, name_tensor};
use crate::sharded::FileSet;
use crate::{Checkpoint, Checksums, Container, Error, Location, Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use strided::View;

/// The container.
pub(crate) const PYTORCH: Container = Container {
    name: "pytorch",
    extensions: &["pt", "pth", "bin"],
    sniff,
    open,
    folder_files: &["pytorch_model.bin", "pytorch_model.bin.index.json"],
    create: None,
};

fn sniff(first: &[u8]) -> bool {
    let has = |text: &[u8]| first.windows(text.len()).any(|w| w == text);
    let zip = first.starts_with(b"PK\x03\x04")
        && (has(b"/data.pkl") || has(b"/.format_version") || has(b"/version"));
    let index = first.starts_with(b"{") && has(b"\"weight_map\"") && has(b".bin\"");
    zip || legacy::sniff(first) || index
}

/// What one file has.
struct Contents {
    metadata: Metadata,
    tensors: Vec<(TensorInfo, Option<View>)>,
    checksums: Vec<archive::Checksum>,
}

/// Opens a file, a sharded model by its index or any of its files, or the model in a folder.
fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    if path.is_dir() {
        return open(&crate::list::file_in(path, &PYTORCH)?);
    }
    let set = FileSet::find(path)?;
    let sources = set.files.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(assemble(sources, Some(&set))?))
}

/// Reads a file in memory, with all checks.
pub(crate) fn open_memory(bytes: Vec<u8>) -> Result<Box<dyn Checkpoint>, Error> {
    let source = Source::memory(Path::new("memory.pt"), bytes);
    Ok(Box::new(assemble(vec![source], None)?))
}

/// Reads a pickle by itself; the storages `0` to `3` are 64 bytes each, which come before it.
pub(crate) fn open_pickle_memory(pickle: &[u8]) -> Result<Box<dyn Checkpoint>, Error> {
    let path = Path::new("memory.pkl");
    let mut cursor = Cursor::new(pickle, pickle.len() as u64);
    let place = |key: &str| {
        let number: u64 = key.parse().ok().filter(|n| *n < 4)?;
        Some(state::Place { offset: number.saturating_mul(64), len: 64 })
    };
    let built = pickle::run(&mut cursor).and_then(|parsed| state::build(&parsed, pickle, place));
    let state = built.map_err(|fault| fault.in_file(path))?;
    let source = Source::memory(path, [&[7; 256], pickle].concat());
    let contents = Contents { metadata: state.metadata, tensors: state.tensors, checksums: Vec::new() };
    Ok(Box::new(gather(vec![source], vec![contents], None)?))
}

fn read_file(source: &Source) -> Result<Contents, Error> {
    let mut first = [0; 4];
    let len = usize::try_from(source.len()).unwrap_or(4).min(4);
    source.read_at(0, first.get_mut(..len).unwrap_or_default())?;
    if first.starts_with(b"PK") { archive::read(source) } else { legacy::read(source) }
}

fn assemble(sources: Vec<Source>, set: Option<&FileSet>) -> Result<PyTorch, Error> {
    let contents = sources.iter().map(read_file).collect::<Result<Vec<_>, _>>()?;
    gather(sources, contents, set)
}

/// Puts together what the files have.
fn gather(sources: Vec<Source>, contents: Vec<Contents>, set: Option<&FileSet>) -> Result<PyTorch, Error> {
    let mut metadata = Metadata::new();
    let (mut tensors, mut views, mut checksums) = (Vec::new(), HashMap::new(), Vec::new());
    for (file, contents) in contents.into_iter().enumerate() {
        metadata.add_new(contents.metadata);
        for (info, view) in contents.tensors {
            if let Some(view) = view {
                views.insert(tensors.len(), view);
            }
            tensors.push(TensorInfo { file, ..info });
        }
        checksums.extend(contents.checksums.into_iter().map(|sum| (file, sum)));
    }
    if let Some(set) = set {
        set.compare(&tensors)?;
    }
    let opened = Opened::new("pytorch", sources, metadata, tensors)?;
    Ok(PyTorch { opened, views, checksums, last: Mutex::new(None) })
}

/// An opened model.
struct PyTorch {
    opened: Opened,
    /// Of the tensors that are not in row-major order.
    views: HashMap<usize, View>,
    /// Of the ZIP entries, with their file.
    checksums: Vec<(usize, archive::Checksum)>,
    /// The tensor that was gathered last by [`Checkpoint::read`].
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl PyTorch {
    fn gather(&self, tensor: usize, view: &View) -> Result<Vec<u8>, Error> {
        let (info, source) = self.opened.get(tensor)?;
        view.gather(source, info).map_err(|e| name_tensor(e, &info.name))
    }
}

impl Checkpoint for PyTorch {
    fn container(&self) -> &'static str {
        self.opened.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.opened.files()
    }
    fn metadata(&self) -> &Metadata {
        self.opened.metadata()
    }
    fn tensors(&self) -> &[TensorInfo] {
        self.opened.tensors()
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.opened.find(name)
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        match self.views.get(&tensor) {
            None => self.opened.bytes(tensor),
            Some(view) => self.gather(tensor, view).map(Cow::Owned),
        }
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let Some(view) = self.views.get(&tensor) else { return self.opened.read(tensor, offset, dst) };
        let (info, _) = self.opened.get(tensor)?;
        self.opened.check_range(info, offset, dst.len())?;
        // A thread that panicked elsewhere leaves a whole value or none here.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match last.take() {
            Some((at, bytes)) if at == tensor => bytes,
            // The other one's memory is given back before more is taken.
            other => {
                drop(other);
                self.gather(tensor, view)?
            }
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(src) = bytes.get(from..).and_then(|b| b.get(..dst.len())) {
            dst.copy_from_slice(src);
        }
        *last = Some((tensor, bytes));
        Ok(())
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        if self.views.contains_key(&tensor) { None } else { self.opened.locate(tensor, range) }
    }
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        for (file, sum) in &self.checksums {
            sum.verify(self.opened.source(*file)?)?;
        }
        Ok(if self.checksums.is_empty() { Checksums::None } else { Checksums::Valid(self.checksums.len()) })
    }
}
