//! What a model keeps of the tokens it has seen.

use crate::Error;
use crate::spec::ModelSpec;
use fonio_codec::{DType, list};
use fonio_kernel::{Kept, Kernels, KvShape, KvView};

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
    shape: KvShape,
    bytes: Vec<u8>,
}

impl Store {
    fn new(dtype: DType, heads: usize, head_dim: usize) -> Result<Store, Error> {
        let shape = KvShape::new(dtype, heads, head_dim).ok_or_else(|| {
            Error::Input(format!("a cache of {dtype} can't hold heads of {head_dim} values"))
        })?;
        Ok(Store { shape, bytes: Vec::new() })
    }

    /// The same for keys that are no values too.
    fn turned(self) -> Store {
        Store { shape: self.shape.turned(), ..self }
    }

    fn put(&mut self, kernels: &Kernels, start: usize, x: &[f32]) -> Result<(), Error> {
        self.grow(start + x.len() / (self.shape.heads() * self.shape.head_dim()))?;
        kernels
            .put(&self.shape, &mut self.bytes, start, x)
            .map_err(|e| Error::Input(format!("cache: {e}; the model's values have left the range")))
    }

    /// Makes room for so many positions.
    fn grow(&mut self, positions: usize) -> Result<(), Error> {
        let len = self.shape.bytes(positions);
        if len > self.bytes.len() {
            let more = len - self.bytes.len();
            self.bytes
                .try_reserve(more)
                .map_err(|_| Error::Input(format!("no memory for {more} more bytes of cache")))?;
            self.bytes.resize(len, 0);
        }
        Ok(())
    }

    /// Position and head of each head of so many positions.
    fn places(&self, positions: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.shape.heads();
        (0..positions).flat_map(move |position| (0..heads).map(move |head| (position, head)))
    }

    /// Bytes of so many positions.
    fn saved_bytes(&self, positions: usize) -> usize {
        positions * self.shape.heads() * self.shape.head_bytes()
    }

    /// The first values of every head.
    fn view(&self, head_dim: usize) -> KvView<'_> {
        KvView { shape: self.shape, bytes: &self.bytes, head_dim }
    }
}

/// Keys and values of attention.
pub(crate) struct KvCache {
    keys: Store,
    /// `None` if values are the beginning of the keys.
    values: Option<Store>,
    value_dim: usize,
}

impl KvCache {
    pub(crate) fn new(
        types: CacheTypes,
        heads: usize,
        head_dim: usize,
        value_dim: usize,
    ) -> Result<KvCache, Error> {
        let keys = Store::new(types.keys, heads, head_dim)?.turned();
        Ok(KvCache { keys, values: Some(Store::new(types.values, heads, value_dim)?), value_dim })
    }

    /// One key for all heads, whose first `value_dim` values are the value.
    pub(crate) fn latent(types: CacheTypes, dim: usize, value_dim: usize) -> Result<KvCache, Error> {
        if !value_dim.is_multiple_of(types.keys.block_len()) {
            let dtype = types.keys;
            return Err(Error::Input(format!("a cache of {dtype} can't hold values of {value_dim}")));
        }
        Ok(KvCache { keys: Store::new(types.keys, 1, dim)?, values: None, value_dim })
    }

    /// Puts keys and values of consecutive positions from `start` on.
    pub(crate) fn put(&mut self, kernels: &Kernels, start: usize, k: &[f32], v: &[f32]) -> Result<(), Error> {
        self.keys.put(kernels, start, k)?;
        self.values.as_mut().map_or(Ok(()), |values| values.put(kernels, start, v))
    }

    pub(crate) fn views(&self) -> (KvView<'_>, KvView<'_>) {
        let values = self.values.as_ref().unwrap_or(&self.keys);
        (self.keys.view(self.keys.shape.head_dim()), values.view(self.value_dim))
    }

    fn stores_mut(&mut self) -> impl Iterator<Item = &mut Store> {
        std::iter::once(&mut self.keys).chain(self.values.as_mut())
    }

    fn stores(&self) -> impl Iterator<Item = &Store> {
        std::iter::once(&self.keys).chain(self.values.as_ref())
    }
}

/// What one block keeps.
pub(crate) enum State {
    /// Nothing.
    None,
    /// Keys and values of every position.
    Kv(KvCache),
    /// The same number of values however many tokens there were; zeros before the first.
    Recurrent(Recurrent),
}

/// A state that a run replaces.
pub(crate) struct Recurrent {
    now: Vec<f32>,
    /// What becomes of it when all layers have run.
    next: Vec<f32>,
}

impl State {
    /// A recurrent state of no tokens.
    pub(crate) fn zeros(len: usize) -> Result<State, Error> {
        let zeros = || {
            let mut values: Vec<f32> = Vec::new();
            values
                .try_reserve_exact(len)
                .map_err(|_| Error::Input(format!("no memory for a state of {len} values")))?;
            values.resize(len, 0.0);
            Ok::<_, Error>(values)
        };
        Ok(State::Recurrent(Recurrent { now: zeros()?, next: zeros()? }))
    }

    pub(crate) fn kv(&mut self) -> Result<&mut KvCache, Error> {
        match self {
            State::Kv(kv) => Ok(kv),
            _ => Err(Error::Input("the cache is not this model's".into())),
        }
    }

    /// The recurrent state of `len` values; all of what comes after is to be written.
    pub(crate) fn recurrent(&mut self, len: usize) -> Result<Kept<'_>, Error> {
        match self {
            State::Recurrent(state) if state.now.len() == len => Ok(Kept::new(&state.now, &mut state.next)),
            _ => Err(Error::Input("the cache is not this model's".into())),
        }
    }

    fn nbytes(&self) -> usize {
        match self {
            State::None => 0,
            State::Kv(kv) => kv.stores().map(|s| s.bytes.len()).sum(),
            State::Recurrent(state) => (state.now.len() + state.next.len()) * 4,
        }
    }

    /// Bytes that it takes to save `len` positions.
    fn saved_bytes(&self, len: usize) -> usize {
        match self {
            State::None => 0,
            State::Kv(kv) => kv.stores().map(|s| s.saved_bytes(len)).sum(),
            State::Recurrent(state) => state.now.len() * 4,
        }
    }

    fn save(&self, len: usize, out: &mut Vec<u8>) {
        match self {
            State::None => {}
            State::Kv(kv) => {
                for store in kv.stores() {
                    let mut bytes = vec![0; store.shape.head_bytes()];
                    for (position, head) in store.places(len) {
                        store.shape.get(&store.bytes, position, head, &mut bytes);
                        out.extend_from_slice(&bytes);
                    }
                }
            }
            State::Recurrent(state) => out.extend(state.now.iter().flat_map(|x| x.to_le_bytes())),
        }
    }

    /// Takes what [`State::save`] wrote from the beginning of `bytes`, which holds enough.
    fn restore(&mut self, len: usize, bytes: &mut &[u8]) -> Result<(), Error> {
        match self {
            State::None => {}
            State::Kv(kv) => {
                for store in kv.stores_mut() {
                    let (now, later) = bytes.split_at(store.saved_bytes(len));
                    store.grow(len)?;
                    let heads = now.chunks_exact(store.shape.head_bytes());
                    for ((position, head), bytes) in store.places(len).zip(heads) {
                        store.shape.set(&mut store.bytes, position, head, bytes);
                    }
                    *bytes = later;
                }
            }
            State::Recurrent(state) => {
                let (now, later) = bytes.split_at(state.now.len() * 4);
                for (x, bytes) in state.now.iter_mut().zip(now.as_chunks().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
                *bytes = later;
            }
        }
        Ok(())
    }
}

/// What one layer keeps.
pub(crate) struct LayerState {
    pub mixer: State,
    pub ffn: State,
}

/// A place in a sequence that its cache can be taken back to, recurrent states too.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    len: usize,
    /// The recurrent states of all blocks, one behind the other.
    recurrent: Vec<f32>,
}

impl Mark {
    /// Positions that were in use.
    pub fn position(&self) -> usize {
        self.len
    }
}

/// The cache of one sequence.
pub struct Cache {
    pub(crate) layers: Vec<LayerState>,
    len: usize,
    capacity: usize,
}

impl Cache {
    /// An empty cache for at most `capacity` positions. Memory grows with the positions that are used.
    pub fn new(spec: &ModelSpec, types: CacheTypes, capacity: usize) -> Result<Cache, Error> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            let ffn = layer.ffn.as_ref().map_or(Ok(State::None), |ffn| ffn.state(spec.dim))?;
            layers.push(LayerState { mixer: layer.mixer.state(types, spec.dim)?, ffn });
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
        self.states().map(State::nbytes).sum()
    }

    /// Bytes that it has with `len` positions.
    pub fn bytes_for(&self, len: usize) -> usize {
        let bytes = |state: &State| match state {
            State::Kv(kv) => kv.stores().map(|s| s.shape.bytes(len)).sum(),
            _ => state.nbytes(),
        };
        self.states().map(bytes).sum()
    }

    fn states(&self) -> impl Iterator<Item = &State> {
        self.layers.iter().flat_map(|layer| [&layer.mixer, &layer.ffn])
    }

    fn states_mut(&mut self) -> impl Iterator<Item = &mut State> {
        self.layers.iter_mut().flat_map(|layer| [&mut layer.mixer, &mut layer.ffn])
    }

    /// Forgets positions from `len` on and says how many are left: `len`, or 0 if the model has recurrent states,
    /// which have no way back.
    pub fn truncate(&mut self, len: usize) -> usize {
        if len < self.len {
            let mut recurrent = false;
            for state in self.states_mut() {
                if let State::Recurrent(state) = state {
                    state.now.fill(0.0);
                    recurrent = true;
                }
            }
            self.len = if recurrent { 0 } else { len };
        }
        self.len
    }

    /// Whether it has states that cannot be cut, only be replaced by those of a [`Mark`].
    pub fn is_recurrent(&self) -> bool {
        self.states().any(|state| matches!(state, State::Recurrent(_)))
    }

    /// Notes the place that the sequence is at. Only recurrent states are copied: what attention keeps can be cut.
    pub fn mark(&self, mark: &mut Mark) {
        mark.len = self.len;
        mark.recurrent.clear();
        for state in self.states() {
            if let State::Recurrent(state) = state {
                mark.recurrent.extend_from_slice(&state.now);
            }
        }
    }

    /// Goes back to a place that was noted of this very cache, since when the sequence has only grown.
    pub fn rewind(&mut self, mark: &Mark) -> Result<(), Error> {
        let recurrent = |state: &State| match state {
            State::Recurrent(state) => state.now.len(),
            _ => 0,
        };
        let values: usize = self.states().map(recurrent).sum();
        if mark.len > self.len || mark.recurrent.len() != values {
            return Err(Error::Input("the place to go back to is not one of this sequence".into()));
        }
        let mut values = &mark.recurrent[..];
        for state in self.states_mut() {
            if let State::Recurrent(state) = state {
                let (now, later) = values.split_at(state.now.len());
                state.now.copy_from_slice(now);
                values = later;
            }
        }
        self.len = mark.len;
        Ok(())
    }

    /// Takes what a run of `n` tokens has left.
    pub(crate) fn advance(&mut self, n: usize) {
        for state in self.states_mut() {
            if let State::Recurrent(Recurrent { now, next }) = state {
                std::mem::swap(now, next);
            }
        }
        self.len += n;
    }

    /// The positions in use as bytes; of the same size for the same model, cache types and number of positions.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.states().map(|s| s.saved_bytes(self.len)).sum());
        self.states().for_each(|state| state.save(self.len, &mut out));
        out
    }

    /// Becomes what [`Cache::save`] wrote of `len` positions of the same model and cache types.
    pub fn restore(&mut self, len: usize, bytes: &[u8]) -> Result<(), Error> {
        if len > self.capacity {
            return Err(Error::Input(format!("{len} positions do not fit the context of {}", self.capacity)));
        }
        let want: usize = self.states().map(|s| s.saved_bytes(len)).sum();
        if bytes.len() != want {
            let got = bytes.len();
            return Err(Error::Input(format!("a state of {len} positions has {want} bytes, not {got}")));
        }
        let mut bytes = bytes;
        for state in self.states_mut() {
            state.restore(len, &mut bytes)?;
        }
        self.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_simd::Isa;

    #[test]
    fn a_run_that_does_not_end_leaves_no_trace() {
        let layers = vec![LayerState { mixer: State::zeros(2).unwrap(), ffn: State::None }];
        let mut cache = Cache { layers, len: 0, capacity: 8 };
        let kernels = Kernels::new(1, Isa::scalar());
        let empty = cache.save();
        let run = |cache: &mut Cache, x: &[f32]| {
            kernels.shift(cache.layers[0].mixer.recurrent(2).unwrap(), x);
        };
        run(&mut cache, &[1.0, 2.0]);
        assert_eq!(cache.save(), empty);
        run(&mut cache, &[3.0, 4.0]);
        cache.advance(1);
        let one = cache.save();
        run(&mut cache, &[5.0, 6.0]);
        assert_eq!((cache.save(), cache.len()), (one.clone(), 1));
        assert!(one != empty && cache.truncate(0) == 0);
        assert_eq!(cache.save(), empty);
        cache.restore(1, &one).unwrap();
        assert_eq!(cache.save(), one);
        assert!(cache.layers[0].mixer.recurrent(3).is_err() && cache.layers[0].ffn.recurrent(0).is_err());
        let mut mark = Mark::default();
        assert!(cache.rewind(&mark).is_err(), "a mark of nothing has no states");
        cache.mark(&mut mark);
        run(&mut cache, &[7.0, 8.0]);
        cache.advance(1);
        assert_ne!(cache.save(), one);
        cache.rewind(&mark).unwrap();
        assert_eq!((cache.save(), cache.len(), mark.position()), (one, 1, 1));
        cache.truncate(0);
        assert!(cache.rewind(&mark).is_err(), "what was cut does not come back");
    }
}
