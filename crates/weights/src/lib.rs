//! Residency of weights: which bytes are in memory, and when.
//!
//! A model asks for its tensors once ([`Weights::bind`]) and for a [`Lease`] of a [`Part`] each time it computes with
//! it. What happens in between is the policy's business: mapped files are paged by the operating system, resident
//! ones are read whole at the start.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use fonio_checkpoint::{Checkpoint, Error, TensorInfo};
use std::borrow::Cow;
use std::sync::Arc;

/// What is leased together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Everything of a layer that is used for every token.
    Layer(usize),
    /// The token embedding.
    Embedding,
    /// What turns the last layer's output into logits.
    Head,
}

/// How tensors are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In the file's memory map.
    #[default]
    Mapped,
    /// In memory of our own, read at the start.
    Resident,
}

/// A bound tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightId(usize);

struct Slot {
    tensor: usize,
    /// Bytes that the container does not have in place, or that the policy wants in memory.
    held: Option<Box<[u8]>>,
}

/// The tensors of a model, under one policy.
pub struct Weights {
    checkpoint: Arc<dyn Checkpoint>,
    policy: Policy,
    slots: Vec<Slot>,
}

impl Weights {
    /// No tensors yet.
    pub fn new(checkpoint: Arc<dyn Checkpoint>, policy: Policy) -> Weights {
        Weights { checkpoint, policy, slots: Vec::new() }
    }

    /// The container that the tensors are in.
    pub fn checkpoint(&self) -> &Arc<dyn Checkpoint> {
        &self.checkpoint
    }

    /// What the container says of a tensor.
    pub fn info(&self, id: WeightId) -> Option<&TensorInfo> {
        self.checkpoint.tensors().get(self.slots.get(id.0)?.tensor)
    }

    /// Makes a tensor of the container part of the model.
    pub fn bind(&mut self, tensor: usize) -> Result<WeightId, Error> {
        if let Some(known) = self.slots.iter().position(|slot| slot.tensor == tensor) {
            return Ok(WeightId(known));
        }
        let held = match (self.checkpoint.bytes(tensor)?, self.policy) {
            (Cow::Borrowed(_), Policy::Mapped) => None,
            (Cow::Borrowed(bytes), Policy::Resident) => Some(bytes.into()),
            (Cow::Owned(bytes), _) => Some(bytes.into_boxed_slice()),
        };
        self.slots.push(Slot { tensor, held });
        Ok(WeightId(self.slots.len() - 1))
    }

    /// Bytes of memory that are ours, beyond the memory map.
    pub fn held_bytes(&self) -> usize {
        self.slots.iter().filter_map(|slot| slot.held.as_ref()).map(|held| held.len()).sum()
    }

    /// Makes a part's tensors readable until the lease is dropped.
    pub fn lease(&self, part: Part) -> Result<Lease<'_>, Error> {
        Ok(Lease { weights: self, part })
    }
}

/// The right to read one part's tensors.
pub struct Lease<'a> {
    weights: &'a Weights,
    part: Part,
}

impl Lease<'_> {
    /// Which part this is.
    pub fn part(&self) -> Part {
        self.part
    }

    /// What the container says of a tensor.
    pub fn info(&self, id: WeightId) -> Option<&TensorInfo> {
        self.weights.info(id)
    }

    /// The packed bytes of a tensor.
    pub fn bytes(&self, id: WeightId) -> Result<&[u8], Error> {
        let unbound = || Error::Refused {
            file: self.weights.checkpoint.files().first().cloned().unwrap_or_default(),
            reason: format!("tensor {} of {:?} was not bound", id.0, self.part),
        };
        let slot = self.weights.slots.get(id.0).ok_or_else(unbound)?;
        match &slot.held {
            Some(held) => Ok(held),
            None => match self.weights.checkpoint.bytes(slot.tensor)? {
                Cow::Borrowed(bytes) => Ok(bytes),
                Cow::Owned(_) => Err(unbound()),
            },
        }
    }
}
