//! A checkpoint in memory that counts what is read of it.

use fonio_checkpoint::{Checkpoint, Error, Metadata, TensorInfo};
use fonio_codec::{DType, list};
use fonio_model::Error as ModelError;
use fonio_model::keys::Config;
use fonio_model::prequant;
use fonio_simd::Isa;
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default, Clone)]
pub struct Memory {
    files: Vec<PathBuf>,
    metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    pub data: Vec<Vec<u8>>,
    pub read: Arc<AtomicU64>,
}

impl Memory {
    pub fn new() -> Memory {
        Memory { files: vec!["model.safetensors".into()], ..Memory::default() }
    }

    pub fn add(&mut self, name: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> &mut Memory {
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let nbytes = data.len() as u64;
        assert_eq!(dtype.bytes_for(shape.iter().product()), Some(nbytes), "{name}");
        self.tensors.push(TensorInfo { name: name.into(), dtype, shape, file: 0, offset: 0, nbytes });
        self.data.push(data);
        self
    }

    pub fn words(&mut self, name: &str, shape: &[usize], words: &[u32]) -> &mut Memory {
        self.add(name, list::I32, shape, words.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    pub fn ints(&mut self, name: &str, shape: &[usize], ints: &[i32]) -> &mut Memory {
        self.add(name, list::I32, shape, ints.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    pub fn floats(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> &mut Memory {
        let mut bytes = vec![0; values.len() * dtype.block_bytes()];
        dtype.quantize(Isa::scalar(), values, None, &mut bytes).unwrap();
        self.add(name, dtype, shape, bytes)
    }

    pub fn open(&self, config: Value) -> Result<Arc<dyn Checkpoint>, ModelError> {
        prequant::open(Arc::new(self.clone()), &Config::of(Path::new("config.json"), config))
    }
}

impl Checkpoint for Memory {
    fn container(&self) -> &'static str {
        "memory"
    }
    fn files(&self) -> &[PathBuf] {
        &self.files
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|t| t.name == name)
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        Ok(Cow::Borrowed(&self.data[tensor]))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        self.read.fetch_add(dst.len() as u64, Ordering::Relaxed);
        let from =
            usize::try_from(offset).ok().and_then(|at| self.data[tensor].get(at..at.checked_add(dst.len())?));
        let refused = || Error::Refused { file: "memory".into(), reason: "past the end".into() };
        from.map(|from| dst.copy_from_slice(from)).ok_or_else(refused)
    }
}

/// A tensor of the view as `f32`, read at once; and its type.
pub fn values(checkpoint: &dyn Checkpoint, name: &str) -> (DType, Vec<f32>) {
    let at = checkpoint.find(name).unwrap_or_else(|| panic!("{name} is there"));
    let info = &checkpoint.tensors()[at];
    let bytes = checkpoint.bytes(at).unwrap();
    assert_eq!(bytes.len() as u64, info.nbytes);
    let mut values = vec![0f32; info.len() as usize];
    info.dtype.dequantize(Isa::scalar(), &bytes, &mut values).unwrap();
    (info.dtype, values)
}

/// Reads all of a tensor in pieces, whose sizes `next` says, and compares with what `bytes` gives.
pub fn check_pieces(checkpoint: &dyn Checkpoint, name: &str, mut next: impl FnMut() -> usize) {
    let at = checkpoint.find(name).unwrap();
    let whole = checkpoint.bytes(at).unwrap();
    let mut offset = 0;
    while offset < whole.len() {
        let mut piece = vec![0; next().clamp(1, whole.len() - offset)];
        checkpoint.read(at, offset as u64, &mut piece).unwrap();
        assert!(
            piece == whole[offset..offset + piece.len()],
            "{name}: {} bytes from {offset} on",
            piece.len()
        );
        offset += piece.len();
    }
    let mut past = [0; 2];
    assert!(checkpoint.read(at, whole.len() as u64 - 1, &mut past).is_err());
    assert!(checkpoint.read(at, u64::MAX, &mut past).is_err());
}

/// Pseudo-random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
    /// A scale that is exact in half precision.
    pub fn half(&mut self) -> f32 {
        half::f16::from_f32((self.below(2000) as f32 + 1.0) * 1.7e-5).to_f32()
    }
}

/// Equal bits, or both no number.
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what}: value {i} is {a}, not {b}"
        );
    }
}
