//! From a pickle's values to tensors with names: see the folder's `mod.rs` for the rules.

use super::pickle::{Parsed, Tensor, V, charge};
use super::strided::View;
use crate::cursor::Fault;
use crate::opened::checked_nbytes;
use crate::{Metadata, TensorInfo, Value};
use std::collections::HashSet;

/// Dictionaries of dictionaries; real ones have three levels.
const MAX_DEPTH: usize = 16;
const MAX_DIMS: usize = 64;
/// Keys under which training programs put the model's tensors.
const WRAPPERS: &[&str] = &["state_dict", "model_state_dict", "model", "module"];

/// A storage's bytes in the file.
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Tensors and the other values, by name.
pub(super) struct State {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<(TensorInfo, Option<View>)>,
}

/// Names everything in the pickle `bytes`; `place` finds storages by their key.
pub(super) fn build(
    parsed: &Parsed,
    bytes: &[u8],
    place: impl Fn(&str) -> Option<Place>,
) -> Result<State, Fault> {
    let walker = Walker {
        parsed,
        bytes,
        place,
        ration: parsed.ration,
        seen: HashSet::new(),
        state: State { metadata: Metadata::new(), tensors: Vec::new() },
    };
    walker.walk(unwrap(parsed, bytes))
}

/// Follows wrapping keys as long as there are no tensors beside them.
fn unwrap(parsed: &Parsed, bytes: &[u8]) -> V {
    let mut root = parsed.root;
    for _ in 0..MAX_DEPTH {
        let pairs = parsed.pairs(&root).unwrap_or_default();
        let inner = || {
            WRAPPERS
                .iter()
                .find_map(|key| parsed.lookup(&root, key, bytes).filter(|v| parsed.pairs(v).is_some()))
        };
        let has_tensors = pairs.iter().any(|(_, value)| matches!(value, V::Tensor(_)));
        match inner().filter(|_| !has_tensors) {
            Some(value) => root = value,
            None => break,
        }
    }
    root
}

struct Walker<'a, F> {
    parsed: &'a Parsed,
    bytes: &'a [u8],
    place: F,
    ration: u64,
    /// Dictionaries and lists that were gone through: each is there once, or names could multiply without end.
    seen: HashSet<u32>,
    state: State,
}

/// A dictionary or list that is being gone through, with the length of its name.
struct Level {
    node: V,
    next: usize,
    prefix: usize,
}

impl<F: Fn(&str) -> Option<Place>> Walker<'_, F> {
    fn walk(mut self, root: V) -> Result<State, Fault> {
        let mut name = String::new();
        let mut levels = Vec::new();
        self.enter(root, &mut name, &mut levels, "data")?;
        while let Some(level) = levels.last_mut() {
            name.truncate(level.prefix);
            let index = level.next;
            level.next = index.saturating_add(1);
            let Some((key, value)) = self.child(level.node, index)? else {
                levels.pop();
                continue;
            };
            self.enter(value, &mut name, &mut levels, &key)?;
        }
        Ok(self.state)
    }

    /// The key and value number `index`.
    fn child(&self, node: V, index: usize) -> Result<Option<(String, V)>, Fault> {
        if let Some(items) = self.parsed.items(&node) {
            return Ok(items.get(index).map(|value| (index.to_string(), *value)));
        }
        let Some((key, value)) = self.parsed.pairs(&node).and_then(|pairs| pairs.get(index)) else {
            return Ok(None);
        };
        let key = match key {
            V::Int(n) => n.to_string(),
            _ => match self.parsed.text(key, self.bytes) {
                Some(key) => key.to_owned(),
                None => return Err(unsupported("a key that is neither text nor a number")),
            },
        };
        Ok(Some((key, *value)))
    }

    /// Takes a value that is called `key` inside of what is called `name`; a container is gone through next.
    fn enter(
        &mut self,
        value: V,
        name: &mut String,
        levels: &mut Vec<Level>,
        key: &str,
    ) -> Result<(), Fault> {
        // Memory that the result takes for it; names get longer with each level.
        let cost = name.len().saturating_add(key.len()).saturating_mul(2).saturating_add(160);
        charge(&mut self.ration, cost as u64)?;
        let at_root = levels.is_empty();
        if !at_root && !name.is_empty() {
            name.push('.');
        }
        let container = matches!(value, V::Node(_));
        if !(at_root && container) {
            name.push_str(key);
        }
        let mut set = |value: Value| match self.state.metadata.insert(name.clone(), value) {
            None => Ok(()),
            Some(_) => Err(twice().of(name)),
        };
        match value {
            V::Tensor(at) => return self.tensor(at, name),
            V::Bool(v) => set(v.into())?,
            V::Int(v) => set(v.into())?,
            V::Float(v) => set(v.into())?,
            V::Text { .. } => set(self.parsed.text(&value, self.bytes).unwrap_or_default().into())?,
            V::Node(at) => {
                if levels.len() >= MAX_DEPTH {
                    let reason = format!("dictionaries deeper than {MAX_DEPTH}");
                    return Err(Fault::Limit { tensor: Some(name.clone()), reason });
                }
                if !self.seen.insert(at) {
                    return Err(unsupported("a dictionary or list that is there twice").of(name));
                }
                levels.push(Level { node: value, next: 0, prefix: name.len() });
            }
            V::None | V::Magic | V::Other | V::Global(_) | V::Storage(_) => {}
        }
        Ok(())
    }

    fn tensor(&mut self, at: u32, name: &str) -> Result<(), Fault> {
        let found = usize::try_from(at).ok().and_then(|at| self.parsed.tensors.get(at));
        let tensor = found.ok_or_else(|| corrupt("no such tensor").of(name))?;
        charge(&mut self.ration, (tensor.dims.len() as u64).saturating_mul(24))?;
        let found = self.check(tensor, name).map_err(|fault| fault.of(name))?;
        self.state.tensors.push(found);
        Ok(())
    }

    /// Everything about a tensor lies inside of its storage, and the storage inside of the file.
    fn check(&self, tensor: &Tensor, name: &str) -> Result<(TensorInfo, Option<View>), Fault> {
        let storage = usize::try_from(tensor.storage).ok().and_then(|at| self.parsed.storages.get(at));
        let storage = storage.ok_or_else(|| corrupt("no such storage"))?;
        let key = self.parsed.text(&storage.key, self.bytes).unwrap_or_default();
        let place =
            (self.place)(key).ok_or_else(|| corrupt(format!("its storage {key:?} is not in the file")))?;
        if storage.len.checked_mul(storage.item()) != Some(place.len) {
            let (len, dtype) = (storage.len, storage.dtype);
            return Err(corrupt(format!(
                "its storage should have {len} values of {dtype} and has {} bytes",
                place.len
            )));
        }
        if tensor.dims.len() > MAX_DIMS {
            let reason = format!("{} dimensions; {MAX_DIMS} are allowed", tensor.dims.len());
            return Err(Fault::Limit { tensor: None, reason });
        }
        let shape: Vec<u64> = tensor.dims.iter().map(|&(len, _)| len).collect();
        let nbytes = checked_nbytes(storage.dtype, &shape).map_err(corrupt)?;
        let info = |offset| TensorInfo {
            name: name.into(),
            dtype: storage.dtype,
            shape: shape.clone(),
            file: 0,
            offset,
            nbytes,
        };
        if nbytes == 0 {
            return Ok((info(place.offset), None));
        }
        let last = tensor.dims.iter().try_fold(tensor.first, |at, &(len, stride)| {
            at.checked_add(len.saturating_sub(1).checked_mul(stride)?)
        });
        if last.is_none_or(|last| last >= storage.len) {
            let reason = format!(
                "shape, strides and offset {:?} + {} leave its storage of {}",
                tensor.dims, tensor.first, storage.len
            );
            return Err(corrupt(reason));
        }
        if nbytes > place.len {
            let reason = format!("it repeats the values of its storage: {nbytes} bytes of {}", place.len);
            return Err(Fault::Limit { tensor: None, reason });
        }
        if View::is_row_major(&tensor.dims) {
            let skipped = tensor.first.saturating_mul(storage.item());
            return Ok((info(place.offset.saturating_add(skipped)), None));
        }
        let view = View { item: storage.item(), first: tensor.first, dims: tensor.dims.clone() };
        Ok((info(place.offset), Some(view)))
    }
}

fn corrupt(reason: impl Into<String>) -> Fault {
    Fault::Corrupt { tensor: None, offset: None, reason: reason.into() }
}

fn twice() -> Fault {
    corrupt("the key is there twice")
}

fn unsupported(reason: &str) -> Fault {
    Fault::Unsupported { tensor: None, reason: reason.into() }
}
