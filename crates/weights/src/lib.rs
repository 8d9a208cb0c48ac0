//! Residency of weights: which bytes are in memory, and when.
//!
//! A model binds the tensors of each of its [`Part`]s once ([`Weights::bind`]), says how they are kept
//! ([`Weights::start`]), and asks for a [`Lease`] of a part each time it computes with it. What happens in between is the
//! policy's business: mapped files are paged by the operating system, resident parts are read at the start, and streamed
//! ones are read while the part before them is computed with, so that a model may be larger than memory.
//!
//! The result of a computation does not depend on the policy: parts are waited for, never left out.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod plan;
mod read;
mod store;

pub use plan::{Plan, Sized};
pub use read::{Open, ReadAt};
pub use store::Stats;

use fonio_checkpoint::{Checkpoint, Error, Location, TensorInfo};
use read::Files;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use store::{Frame, Layout, Piece, Store};

/// What is leased together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What several parts need: always in memory.
    Shared,
    /// Everything of a layer that is used for every token.
    Layer(usize),
    /// Summands of a layer's weights that are streamed even where the rest of the layer is held; leased with it.
    Rest(usize),
    /// One of a layer's experts.
    Expert {
        /// The layer.
        layer: usize,
        /// Its number in the layer.
        expert: usize,
    },
    /// Some rows of what turns the last layer's output into logits.
    Head(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Shared => f.write_str("shared"),
            Part::Layer(layer) => write!(f, "layer {layer}"),
            Part::Rest(layer) => write!(f, "layer {layer}, rest"),
            Part::Expert { layer, expert } => write!(f, "layer {layer} expert {expert}"),
            Part::Head(slice) => write!(f, "head {slice}"),
        }
    }
}

/// How tensors are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In the file's memory map.
    #[default]
    Mapped,
    /// In memory of our own, read at the start.
    Resident,
    /// Read when they are needed, within so many bytes of memory.
    Streamed {
        /// For held parts and those on their way.
        budget_bytes: u64,
    },
}

/// A bound tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightId(usize);

struct Slot {
    part: Option<Part>,
    tensor: usize,
    range: Range<u64>,
    /// Where it is in its part's frame.
    place: Option<(usize, u64)>,
}

/// The tensors of a model, under one policy.
pub struct Weights {
    checkpoint: Arc<dyn Checkpoint>,
    slots: Vec<Slot>,
    plan: Plan,
    store: Option<Arc<Store>>,
    readers: Vec<JoinHandle<()>>,
}

/// Threads that read: while one checks or unpacks the end of a part, the other begins with the next.
const READERS: usize = 2;
/// Gaps of files that are read with what is around them.
const GAP: u64 = 64 << 10;

impl Weights {
    /// No tensors yet.
    pub fn new(checkpoint: Arc<dyn Checkpoint>) -> Weights {
        Weights { checkpoint, slots: Vec::new(), plan: Plan::default(), store: None, readers: Vec::new() }
    }

    /// The container that the tensors are in.
    pub fn checkpoint(&self) -> &Arc<dyn Checkpoint> {
        &self.checkpoint
    }

    /// What the container says of a tensor or plane.
    pub fn info(&self, id: WeightId) -> Option<&TensorInfo> {
        self.checkpoint.info(self.slots.get(id.0)?.tensor)
    }

    /// Makes some bytes of a tensor belong to a part of the model.
    pub fn bind(&mut self, part: Part, tensor: usize, range: Range<u64>) -> WeightId {
        self.add(Slot { part: Some(part), tensor, range, place: None })
    }

    /// Makes a tensor known that is only read in small pieces: see [`Weights::read`].
    pub fn bind_rows(&mut self, tensor: usize) -> WeightId {
        let nbytes = self.checkpoint.info(tensor).map_or(0, |info| info.nbytes);
        self.add(Slot { part: None, tensor, range: 0..nbytes, place: None })
    }

    fn add(&mut self, slot: Slot) -> WeightId {
        let same = |s: &Slot| (s.part, s.tensor, &s.range) == (slot.part, slot.tensor, &slot.range);
        if let Some(known) = self.slots.iter().rposition(same) {
            return WeightId(known);
        }
        self.slots.push(slot);
        WeightId(self.slots.len() - 1)
    }

    /// Whether bytes lie in a file as they are, so that they can be mapped.
    fn is_mappable(&self, slot: &Slot) -> bool {
        match self.checkpoint.locate(slot.tensor, slot.range.clone()) {
            Some(Location::File { .. }) => true,
            Some(Location::Extent { extent, .. }) => {
                self.checkpoint.extents().get(extent).is_some_and(|e| !e.compressed)
            }
            None => false,
        }
    }

    /// What there is to be held or streamed, in the order in which a token needs it, and the bytes that compressed
    /// extents take until they are unpacked.
    pub fn parts(&self) -> (Vec<Sized>, u64) {
        let (layouts, _) = self.layouts(|_| true);
        (self.sizes(&layouts), self.scratch(&layouts))
    }

    /// The fewest bytes for [`Policy::Streamed`].
    pub fn least_bytes(&self) -> u64 {
        let (parts, scratch) = self.parts();
        Plan::least(&parts, scratch)
    }

    /// What [`Policy::Streamed`] would do, if so many bytes are enough.
    pub fn plan_for(&self, budget_bytes: u64) -> Option<Plan> {
        let (parts, scratch) = self.parts();
        Plan::make(&parts, scratch, budget_bytes)
    }

    fn sizes(&self, layouts: &[Layout]) -> Vec<Sized> {
        let extents = self.checkpoint.extents();
        let nbytes = |piece: &Piece| match *piece {
            Piece::File(_, _, len) | Piece::Made(_, _, len) => plan::paged(len),
            Piece::Extent(i) => plan::paged(extents.get(i).map_or(0, |e| e.nbytes)),
        };
        layouts.iter().map(|l| Sized { part: l.part, nbytes: l.pieces.iter().map(nbytes).sum() }).collect()
    }

    fn scratch(&self, layouts: &[Layout]) -> u64 {
        let extents = self.checkpoint.extents();
        let stored = |piece: &Piece| match *piece {
            Piece::Extent(i) => extents.get(i).filter(|e| e.compressed).map(|e| plan::paged(e.stored)),
            _ => None,
        };
        layouts.iter().flat_map(|l| &l.pieces).filter_map(stored).max().unwrap_or(0) * READERS as u64
    }

    /// Begins to keep what was bound under a policy: reads what is held.
    pub fn start(&mut self, policy: Policy) -> Result<(), Error> {
        self.start_with(policy, &read::open)
    }

    /// As [`Weights::start`], with files opened by somebody else.
    pub fn start_with(&mut self, policy: Policy, open: &Open) -> Result<(), Error> {
        self.stop();
        let (layouts, places) = match policy {
            // What cannot be mapped is held.
            Policy::Mapped => self.layouts(|slot| !self.is_mappable(slot)),
            Policy::Resident | Policy::Streamed { .. } => self.layouts(|_| true),
        };
        let (parts, scratch) = (self.sizes(&layouts), self.scratch(&layouts));
        let budget_bytes = match policy {
            Policy::Streamed { budget_bytes } => budget_bytes,
            Policy::Mapped | Policy::Resident => u64::MAX,
        };
        let file = || self.checkpoint.files().first().cloned().unwrap_or_default();
        self.plan = Plan::make(&parts, scratch, budget_bytes).ok_or_else(|| Error::Limit {
            file: file(),
            tensor: None,
            reason: format!(
                "weights need at least {} bytes of memory, {budget_bytes} are there",
                Plan::least(&parts, scratch)
            ),
        })?;
        for (slot, place) in self.slots.iter_mut().zip(places) {
            slot.place = place;
        }
        if layouts.is_empty() {
            return Ok(());
        }
        let files = Files::open(self.checkpoint.files(), open)?;
        let store = Arc::new(Store::new(self.checkpoint.clone(), files, layouts, &self.plan)?);
        if !self.plan.streamed.is_empty() || !self.plan.experts.is_empty() {
            for _ in 0..READERS {
                let reading = store.clone();
                let named = std::thread::Builder::new().name("fonio-read".into());
                let spawned = named.spawn(move || reading.serve());
                self.readers.push(spawned.map_err(|source| Error::Io { file: file(), source })?);
            }
        }
        self.store = Some(store);
        Ok(())
    }

    /// What each part consists of, of the slots that `wanted` says, in the order of binding; and each slot's place.
    fn layouts(&self, wanted: impl Fn(&Slot) -> bool) -> (Vec<Layout>, Vec<Option<(usize, u64)>>) {
        let mut numbers: HashMap<Part, usize> = HashMap::new();
        let mut slots: Vec<(Part, Vec<usize>)> = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            let Some(part) = slot.part.filter(|_| wanted(slot)) else { continue };
            let number = *numbers.entry(part).or_insert_with(|| {
                slots.push((part, Vec::new()));
                slots.len() - 1
            });
            slots[number].1.push(i);
        }
        slots.sort_by_key(|(part, _)| *part);
        let mut places = vec![None; self.slots.len()];
        let layouts = slots
            .into_iter()
            .map(|(part, slots)| Layout { part, pieces: self.pieces(&slots, &mut places) })
            .collect();
        (layouts, places)
    }

    /// Where a slot's bytes are. A slice of a large tensor that is an extent is read by itself, without the checksum.
    fn locate(&self, slot: &Slot) -> Option<Location> {
        let location = self.checkpoint.locate(slot.tensor, slot.range.clone())?;
        if let Location::Extent { extent, offset } = location
            && matches!(slot.part, Some(Part::Head(_)))
            && let Some(extent) = self.checkpoint.extents().get(extent).filter(|e| !e.compressed)
        {
            return Some(Location::File { file: extent.file, offset: extent.offset + offset });
        }
        Some(location)
    }

    /// The pieces that hold some slots: ranges of files that are near each other are one.
    fn pieces(&self, slots: &[usize], places: &mut [Option<(usize, u64)>]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut in_files = Vec::new();
        for &i in slots {
            let slot = &self.slots[i];
            let len = slot.range.end - slot.range.start;
            match self.locate(slot) {
                Some(Location::File { file, offset }) => in_files.push((file, offset, len, i)),
                Some(Location::Extent { extent, offset }) => {
                    let piece = Piece::Extent(extent);
                    let known = pieces.iter().position(|p| *p == piece);
                    let number = known.unwrap_or_else(|| {
                        pieces.push(piece);
                        pieces.len() - 1
                    });
                    places[i] = Some((number, offset));
                }
                None => {
                    places[i] = Some((pieces.len(), 0));
                    pieces.push(Piece::Made(slot.tensor, slot.range.start, len));
                }
            }
        }
        in_files.sort_unstable();
        let mut last: Option<usize> = None;
        for (file, offset, len, i) in in_files {
            if let Some(number) = last
                && let Piece::File(f, start, n) = &mut pieces[number]
                && *f == file
                && offset <= *start + *n + GAP
            {
                *n = (*n).max(offset + len - *start);
                places[i] = Some((number, offset - *start));
                continue;
            }
            last = Some(pieces.len());
            places[i] = Some((pieces.len(), 0));
            pieces.push(Piece::File(file, offset, len));
        }
        pieces
    }

    /// What is held and what is streamed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Figures of what was read so far.
    pub fn stats(&self) -> Stats {
        self.store.as_ref().map(|store| store.stats()).unwrap_or_default()
    }

    /// Whether streamed parts are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_direct())
    }

    /// Makes a part's tensors readable until the lease is dropped; waits until they are.
    pub fn lease(&self, part: Part) -> Result<Lease<'_>, Error> {
        let (mut frame, mut shared, mut rest) = (None, None, None);
        if let Some(store) = &self.store {
            shared = store.lease(Part::Shared)?;
            frame = store.lease(part)?;
            if let Part::Layer(layer) = part {
                rest = store.lease(Part::Rest(layer))?;
            }
        }
        Ok(Lease { weights: self, part, frame, shared, rest })
    }

    /// A lease of a part whose bytes are in memory now. Whoever holds leases of experts and needs more asks in this way:
    /// waiting for one while others are held could be waiting for oneself.
    pub fn lease_if_ready(&self, part: Part) -> Result<Option<Lease<'_>>, Error> {
        let (mut frame, mut shared) = (None, None);
        if let Some(store) = &self.store {
            match store.ready(part) {
                Ok(ready) => frame = ready,
                Err(()) => return Ok(None),
            }
            shared = store.lease(Part::Shared)?;
        }
        Ok(Some(Lease { weights: self, part, frame, shared, rest: None }))
    }

    /// Says that parts will be leased: all of them at once if `now`, else some time later.
    pub fn want(&self, parts: &[Part], now: bool) {
        if let Some(store) = &self.store
            && !self.readers.is_empty()
        {
            store.want(parts, now);
        }
    }

    /// Whether a lease of the part would not wait.
    pub fn has(&self, part: Part) -> bool {
        self.store.as_ref().is_none_or(|store| store.has(part))
    }

    /// Whether experts come and go.
    pub fn streams_experts(&self) -> bool {
        !self.plan.experts.is_empty()
    }

    /// Reads some bytes of a tensor that belongs to no part.
    pub fn read(&self, id: WeightId, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        match self.slots.get(id.0) {
            Some(slot) => self.checkpoint.read(slot.tensor, slot.range.start.saturating_add(offset), dst),
            None => Err(self.unbound(id)),
        }
    }

    fn unbound(&self, id: WeightId) -> Error {
        let file = self.checkpoint.files().first().cloned().unwrap_or_default();
        Error::Refused { file, reason: format!("weight {} is in none of the leased parts", id.0) }
    }

    fn stop(&mut self) {
        if let Some(store) = self.store.take() {
            store.stop();
        }
        for reader in self.readers.drain(..) {
            // Errors of reading were told to those who waited.
            let _ = reader.join();
        }
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The right to read one part's tensors.
pub struct Lease<'a> {
    weights: &'a Weights,
    part: Part,
    frame: Option<Arc<Frame>>,
    shared: Option<Arc<Frame>>,
    rest: Option<Arc<Frame>>,
}

impl<'a> Lease<'a> {
    /// Which part this is.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Where it is from.
    pub fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// The packed bytes of a tensor.
    pub fn bytes(&self, id: WeightId) -> Result<&[u8], Error> {
        let unbound = || self.weights.unbound(id);
        let slot = self.weights.slots.get(id.0).ok_or_else(unbound)?;
        let Some((piece, offset)) = slot.place else {
            return match self.weights.checkpoint.slice(slot.tensor, slot.range.clone())? {
                Cow::Borrowed(bytes) => Ok(bytes),
                Cow::Owned(_) => Err(unbound()),
            };
        };
        let frame = match slot.part {
            Some(Part::Shared) => &self.shared,
            Some(Part::Rest(layer)) if self.part == Part::Layer(layer) => &self.rest,
            part if part == Some(self.part) => &self.frame,
            _ => return Err(unbound()),
        };
        let bytes = frame.as_ref().and_then(|frame| frame.bytes(piece, offset));
        let len = usize::try_from(slot.range.end - slot.range.start).unwrap_or(usize::MAX);
        bytes.and_then(|bytes| bytes.get(..len)).ok_or_else(unbound)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        drop((self.frame.take(), self.rest.take()));
        if let Some(store) = self.weights.store.as_ref().filter(|_| !self.weights.readers.is_empty()) {
            store.released();
        }
    }
}
