//! What a model keeps of the tokens it has seen.

use crate::Error;
use crate::spec::{MixerSpec, ModelSpec};
use fonio_codec::{DType, list};
use fonio_kernel::{Kernels, KvView};

/// Types of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheTypes {
    /// Of keys.
    pub keys: DType,
    /// Of values.
    pub values: DType,
}

impl Default for CacheTypes {
    fn default() -> Self {
        CacheTypes { keys: list::F16, values: list::F16 }
    }
}

/// Packed positions of one layer's keys or values.
struct Store {
    dtype: DType,
    heads: usize,
    head_dim: usize,
    position_bytes: usize,
    bytes: Vec<u8>,
}

impl Store {
    fn new(dtype: DType, heads: usize, head_dim: usize) -> Result<Store, Error> {
        let bytes = dtype.can_quantize().then(|| dtype.bytes_for(head_dim as u64)).flatten();
        let Some(head_bytes) = bytes.and_then(|n| usize::try_from(n).ok()) else {
            return Err(Error::Input(format!("a cache of {dtype} can't hold heads of {head_dim} values")));
        };
        Ok(Store { dtype, heads, head_dim, position_bytes: head_bytes * heads, bytes: Vec::new() })
    }

    fn put(&mut self, kernels: &Kernels, start: usize, x: &[f32]) -> Result<(), Error> {
        let from = start * self.position_bytes;
        let positions = x.len() / (self.heads * self.head_dim);
        let end = from + positions * self.position_bytes;
        if end > self.bytes.len() {
            let more = end - self.bytes.len();
            self.bytes
                .try_reserve(more)
                .map_err(|_| Error::Input(format!("no memory for {more} more bytes of cache")))?;
            self.bytes.resize(end, 0);
        }
        let packed = self.dtype.quantize(kernels.isa(), x, None, &mut self.bytes[from..end]);
        packed.map_err(|e| Error::Input(format!("cache: {e}; the model's values have left the range")))
    }

    fn view(&self) -> KvView<'_> {
        KvView { dtype: self.dtype, bytes: &self.bytes, heads: self.heads, head_dim: self.head_dim }
    }
}

pub(crate) struct KvCache {
    keys: Store,
    values: Store,
}

impl KvCache {
    /// Puts keys and values of consecutive positions from `start` on.
    pub(crate) fn put(&mut self, kernels: &Kernels, start: usize, k: &[f32], v: &[f32]) -> Result<(), Error> {
        self.keys.put(kernels, start, k)?;
        self.values.put(kernels, start, v)
    }

    pub(crate) fn views(&self) -> (KvView<'_>, KvView<'_>) {
        (self.keys.view(), self.values.view())
    }
}

/// One layer's part of a cache.
pub(crate) enum LayerCache {
    Kv(KvCache),
}

/// The cache of one sequence.
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

impl Cache {
    /// An empty cache for at most `capacity` positions. Memory grows with the positions that are used.
    pub fn new(spec: &ModelSpec, types: CacheTypes, capacity: usize) -> Result<Cache, Error> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            let MixerSpec::Attention(a) = &layer.mixer;
            layers.push(LayerCache::Kv(KvCache {
                keys: Store::new(types.keys, a.n_kv_heads, a.head_dim)?,
                values: Store::new(types.values, a.n_kv_heads, a.value_dim)?,
            }));
        }
        Ok(Cache { layers, len: 0, capacity })
    }

    /// Positions in use.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that there is place for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        let sizes = self.layers.iter().map(|LayerCache::Kv(kv)| kv.keys.bytes.len() + kv.values.bytes.len());
        sizes.sum()
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
