//! A Hugging Face folder, seen as a checkpoint with GGUF's names, metadata and layouts.
//!
//! Every tensor keeps its bytes where that is possible; rows that GGUF orders differently are gathered when they are
//! read, and tensors of one dimension become `F32`, as GGUF has them. So one path binds, converts and verifies both.

use crate::Error;
use crate::arch::{self, Architecture};
use crate::keys::{Config, Draft};
use fonio_checkpoint::{Checkpoint, Checksums, Error as FileError, Metadata, TensorInfo};
use fonio_codec::list;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Hugging Face's name, GGUF's name, and what happens in between. `{}` stands for the same number in both.
pub struct Rule(pub &'static str, pub &'static str, pub Op);

impl Rule {
    /// The key that counts query heads.
    pub const QUERIES: &'static str = "attention.head_count";
    /// The key that counts key heads.
    pub const KEYS: &'static str = "attention.head_count_kv";
}

/// What happens to a tensor's values from Hugging Face's layout to GGUF's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    Same,
    /// 1 is added; the result is `F32`.
    AddOne,
    /// Rows of each head go from halves to neighbouring pairs; the key counts the heads.
    PairRows(&'static str),
}

/// How a tensor of the view is made.
enum Maker {
    /// A tensor of the files, as it is.
    Same(usize),
    /// A tensor of the files, its rows gathered: row `i` is row `pair_row(i, …)` of heads of this many rows.
    PairRows(usize, usize),
    /// Ready little-endian `f32`.
    Ready(Vec<u8>),
    /// A tensor of the files as `F32`, with this added.
    Widen(usize, f32),
}

/// The view.
pub struct HfCheckpoint {
    inner: Box<dyn Checkpoint>,
    architecture: &'static Architecture,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    makers: Vec<Maker>,
    index: HashMap<String, usize>,
}

impl HfCheckpoint {
    /// Opens a folder with config.json and weights.
    pub fn open(folder: &Path) -> Result<HfCheckpoint, Error> {
        let config = Config::read(&folder.join("config.json"))?;
        let model_type =
            config.text_opt("model_type")?.ok_or_else(|| config.wrong("model_type", "is missing"))?;
        let architecture = arch::of_model_type(model_type)
            .ok_or_else(|| config.unsupported("model_type", format!("{model_type:?}")))?;
        if config.get("quantization_config").is_some() {
            return Err(config.unsupported("quantization_config", "weights that are quantized already"));
        }
        let inner = fonio_checkpoint::open(folder)?;
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", architecture.name);
        metadata.insert("general.type", "model");
        if let Some(name) =
            folder.canonicalize().ok().and_then(|p| p.file_name()?.to_str().map(str::to_owned))
        {
            metadata.insert("general.name", name);
        }
        let text = config.text();
        let mut draft = Draft { metadata: &mut metadata, prefix: architecture.name, tensors: Vec::new() };
        (architecture.from_config)(&text, &mut draft)?;
        let derived = draft.tensors;
        let mut view = HfCheckpoint {
            inner,
            architecture,
            metadata,
            tensors: Vec::new(),
            makers: Vec::new(),
            index: HashMap::new(),
        };
        let tied = config.flag_or(
            "tie_word_embeddings",
            text.flag_or("tie_word_embeddings", tied_default(architecture))?,
        )?;
        view.map_tensors(tied)?;
        for (name, values) in derived {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            view.push(name, vec![values.len() as u64], list::F32, bytes.len() as u64, Maker::Ready(bytes))?;
        }
        Ok(view)
    }

    /// The architecture.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The metadata, for what is added to it.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    fn map_tensors(&mut self, tied: bool) -> Result<(), Error> {
        for at in 0..self.inner.tensors().len() {
            let info = self.inner.tensors()[at].clone();
            let name = rename(&info.name, self.architecture.prefixes);
            if self.architecture.ignored.iter().any(|pattern| matches(pattern, &name)) {
                continue;
            }
            let mapped = self
                .architecture
                .rules
                .iter()
                .find_map(|rule| Some((substitute(rule.0, rule.1, &name)?, rule.2)));
            let Some((gguf, op)) = mapped else {
                return Err(Error::Unsupported {
                    file: self.inner.files().get(info.file).cloned().unwrap_or_default(),
                    key: info.name,
                    reason: format!("no such tensor in architecture {:?}", self.architecture.name),
                });
            };
            // A tied head may be stored once more; it is the embedding.
            if tied && gguf == "output.weight" {
                continue;
            }
            let maker = match op {
                Op::AddOne => Maker::Widen(at, 1.0),
                Op::PairRows(key) => Maker::PairRows(at, self.head_rows(key, &info)?),
                Op::Same if info.shape.len() <= 1 && info.dtype != list::F32 => Maker::Widen(at, 0.0),
                Op::Same => Maker::Same(at),
            };
            let (maker, dtype) = match maker {
                // Biases of permuted projections are small: gathered here, as `F32`.
                Maker::PairRows(at, rows) if info.shape.len() <= 1 => {
                    let values = crate::bind::values(self.inner.as_ref(), at)?;
                    let gathered = (0..values.len()).filter_map(|i| values.get(pair_row(i, rows)));
                    (Maker::Ready(gathered.flat_map(|x| x.to_le_bytes()).collect()), list::F32)
                }
                Maker::Widen(..) => (maker, list::F32),
                _ => (maker, info.dtype),
            };
            let nbytes = if dtype == info.dtype { info.nbytes } else { info.len().saturating_mul(4) };
            self.push(gguf, info.shape, dtype, nbytes, maker)?;
        }
        Ok(())
    }

    /// Rows of one head of a projection.
    fn head_rows(&self, key: &str, info: &TensorInfo) -> Result<usize, Error> {
        let rows = info.shape.first().copied().unwrap_or(0);
        let heads = self.metadata.get(&format!("{}.{key}", self.architecture.name)).and_then(|v| v.as_u64());
        match heads {
            Some(heads) if heads > 0 && rows % heads == 0 && (rows / heads).is_multiple_of(2) && rows > 0 => {
                Ok((rows / heads) as usize)
            }
            _ => Err(Error::Config {
                file: self.inner.files().get(info.file).cloned().unwrap_or_default(),
                key: info.name.clone(),
                reason: format!("{rows} rows are not {} whole heads of pairs", heads.unwrap_or(0)),
            }),
        }
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<u64>,
        dtype: fonio_codec::DType,
        nbytes: u64,
        maker: Maker,
    ) -> Result<(), Error> {
        if self.index.insert(name.clone(), self.tensors.len()).is_some() {
            return Err(Error::Config {
                file: self.inner.files().first().cloned().unwrap_or_default(),
                key: name,
                reason: "two tensors of the files have this meaning".into(),
            });
        }
        self.tensors.push(TensorInfo { name, dtype, shape, file: 0, offset: 0, nbytes });
        self.makers.push(maker);
        Ok(())
    }

    fn maker(&self, tensor: usize) -> Result<&Maker, FileError> {
        self.makers.get(tensor).ok_or_else(|| FileError::Refused {
            file: self.inner.files().first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor {tensor}"),
        })
    }

    fn widened(&self, tensor: usize, added: f32) -> Result<Vec<u8>, FileError> {
        let values = crate::bind::values(self.inner.as_ref(), tensor)?;
        Ok(values.iter().flat_map(|x| (x + added).to_le_bytes()).collect())
    }
}

/// Gemma's configurations leave out that the head is the embedding.
fn tied_default(architecture: &Architecture) -> bool {
    architecture.name.starts_with("gemma")
}

/// Row of Hugging Face's halves that is row `i` of GGUF's neighbours, in heads of `rows` rows.
fn pair_row(i: usize, rows: usize) -> usize {
    let (head, within) = (i / rows, i % rows);
    head * rows + within % 2 * (rows / 2) + within / 2
}

fn rename<'a>(name: &'a str, prefixes: &[(&str, &str)]) -> Cow<'a, str> {
    for (from, to) in prefixes {
        if let Some(rest) = name.strip_prefix(from) {
            return Cow::Owned(format!("{to}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

/// Whether a name fits a pattern: `{}` is a number, a final `*` is anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => substitute(pattern, "", name).is_some(),
    }
}

/// Puts the number that `from`'s `{}` has in `name` in the place of `to`'s.
pub(crate) fn substitute(from: &str, to: &str, name: &str) -> Option<String> {
    let Some((before, after)) = from.split_once("{}") else { return (from == name).then(|| to.to_owned()) };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    let canonical = number.parse::<u32>().ok()?.to_string() == number;
    canonical.then(|| to.replacen("{}", number, 1))
}

impl Checkpoint for HfCheckpoint {
    fn container(&self) -> &'static str {
        self.inner.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.inner.files()
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
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        Ok(match self.maker(tensor)? {
            Maker::Same(at) => self.inner.bytes(*at)?,
            Maker::Ready(bytes) => Cow::Borrowed(bytes),
            Maker::Widen(at, added) => Cow::Owned(self.widened(*at, *added)?),
            Maker::PairRows(at, rows) => {
                let bytes = self.inner.bytes(*at)?;
                let row_bytes = row_bytes(&self.tensors[tensor]);
                let n = bytes.len() / row_bytes;
                let mut gathered = Vec::with_capacity(bytes.len());
                for i in 0..n {
                    let from = pair_row(i, *rows) * row_bytes;
                    gathered.extend_from_slice(&bytes[from..from + row_bytes]);
                }
                Cow::Owned(gathered)
            }
        })
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        let copy = |bytes: &[u8], dst: &mut [u8]| {
            let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..at.checked_add(dst.len())?));
            from.map(|from| dst.copy_from_slice(from)).ok_or_else(|| FileError::Refused {
                file: self.inner.files().first().cloned().unwrap_or_default(),
                reason: format!("read past the end of tensor {tensor}"),
            })
        };
        match self.maker(tensor)? {
            Maker::Same(at) => self.inner.read(*at, offset, dst),
            Maker::Ready(bytes) => copy(bytes, dst),
            Maker::Widen(at, added) => copy(&self.widened(*at, *added)?, dst),
            Maker::PairRows(at, rows) => {
                let row_bytes = row_bytes(&self.tensors[tensor]) as u64;
                let (mut offset, mut dst) = (offset, dst);
                while !dst.is_empty() {
                    let (row, within) = (offset / row_bytes, offset % row_bytes);
                    let n = usize::try_from(row_bytes - within).unwrap_or(usize::MAX).min(dst.len());
                    let (now, later) = dst.split_at_mut(n);
                    self.inner.read(*at, pair_row(row as usize, *rows) as u64 * row_bytes + within, now)?;
                    (offset, dst) = (offset + n as u64, later);
                }
                Ok(())
            }
        }
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}

/// Bytes of one row of a tensor with at least one.
fn row_bytes(info: &TensorInfo) -> usize {
    let rows: u64 = info.shape.iter().rev().skip(1).product();
    (info.nbytes / rows.max(1)).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_numbers() {
        let rule = ("model.layers.{}.a.weight", "blk.{}.b.weight");
        assert_eq!(
            substitute(rule.0, rule.1, "model.layers.12.a.weight").as_deref(),
            Some("blk.12.b.weight")
        );
        for bad in [
            "model.layers.012.a.weight",
            "model.layers..a.weight",
            "model.layers.99999999999.a.weight",
            "model.layers.1.a.weightx",
            "model.layers.-1.a.weight",
            "model.layers.+1.a.weight",
        ] {
            assert_eq!(substitute(rule.0, rule.1, bad), None, "{bad}");
        }
        assert!(matches("vision.*", "vision.x.y") && !matches("vision.*", "visio"));
    }

    #[test]
    fn rows_of_halves_become_neighbours() {
        let order: Vec<usize> = (0..8).map(|i| pair_row(i, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
