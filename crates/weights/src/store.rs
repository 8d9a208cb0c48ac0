//! Parts that are read from files: which are in memory, which are on their way, and which make room.
//!
//! Threads read what is asked for, most urgent first, into a fixed number of frames: some for parts that every token
//! reads one after another, some for experts. A frame is taken from a part that was used and is not leased now; among
//! experts from the one that was used longest ago.

use crate::Part;
use crate::READERS;
use crate::plan::Plan;
use crate::read::{Buffer, Files, PAGE};
use fonio_checkpoint::{Checkpoint, Error};
use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use twox_hash::XxHash3_64;

/// A contiguous piece of a part's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of a file: which, from where, how many.
    File(usize, u64, u64),
    /// An extent of the container.
    Extent(usize),
    /// Bytes that the container makes when it is asked: tensor, from where, how many.
    Made(usize, u64, u64),
}

/// A piece's bytes in memory.
#[derive(Default)]
struct Loaded {
    raw: Buffer,
    skew: usize,
    /// Instead of `raw`, if the piece was compressed.
    unpacked: Vec<u8>,
    compressed: bool,
}

/// The bytes of a part.
#[derive(Default)]
pub(crate) struct Frame(Vec<Loaded>);

impl Frame {
    /// From byte `offset` of a piece to its end.
    pub(crate) fn bytes(&self, piece: usize, offset: u64) -> Option<&[u8]> {
        let loaded = self.0.get(piece)?;
        let bytes =
            if loaded.compressed { &loaded.unpacked } else { loaded.raw.bytes().get(loaded.skew..)? };
        bytes.get(usize::try_from(offset).ok()?..)
    }
}

/// What a part consists of.
pub(crate) struct Layout {
    pub part: Part,
    pub pieces: Vec<Piece>,
}

enum State {
    Absent,
    Queued,
    /// On its way; whether it was read ahead for a moment that has passed.
    Reading {
        late: bool,
    },
    /// In memory; when it was used last, if it was.
    Ready(Arc<Frame>, Option<u64>),
    /// In memory for good.
    Held(Arc<Frame>),
    Failed(Error),
}

/// Figures of what was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes read from files.
    pub bytes: u64,
    /// Time in which the reader read.
    pub reading: Duration,
    /// Time in which computing waited for parts.
    pub waiting: Duration,
    /// Experts that were in memory when they were needed.
    pub hits: u64,
    /// Experts that were not, or were still being read.
    pub misses: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Sequence,
    Expert,
}

struct Inner {
    states: Vec<State>,
    queue: VecDeque<usize>,
    /// How many threads wait for each part.
    awaited: Vec<u32>,
    /// Frames that nobody uses, and how many more may be made, for each class.
    free: [(Vec<Frame>, usize); 2],
    clock: u64,
    stop: bool,
    waiting: Duration,
    hits: u64,
    misses: u64,
}

pub(crate) struct Store {
    checkpoint: Arc<dyn Checkpoint>,
    files: Files,
    layouts: Vec<Layout>,
    numbers: HashMap<Part, usize>,
    /// Parts that are read one after another, for each token again.
    sequence: Vec<usize>,
    inner: Mutex<Inner>,
    changed: Condvar,
    bytes: AtomicU64,
    nanos: AtomicU64,
}

impl Store {
    /// Reads what is held.
    pub(crate) fn new(
        checkpoint: Arc<dyn Checkpoint>,
        files: Files,
        layouts: Vec<Layout>,
        plan: &Plan,
    ) -> Result<Store, Error> {
        let numbers: HashMap<Part, usize> = layouts.iter().enumerate().map(|(i, l)| (l.part, i)).collect();
        let sequence = plan.streamed.iter().filter_map(|p| numbers.get(&p.part).copied()).collect();
        let inner = Inner {
            states: layouts.iter().map(|_| State::Absent).collect(),
            queue: VecDeque::new(),
            awaited: vec![0; layouts.len()],
            free: [(Vec::new(), plan.frames.0), (Vec::new(), plan.expert_frames.0)],
            clock: 0,
            stop: false,
            waiting: Duration::ZERO,
            hits: 0,
            misses: 0,
        };
        let store = Store {
            checkpoint,
            files,
            layouts,
            numbers,
            sequence,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            bytes: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        };
        let mut scratch = Buffer::default();
        for part in &plan.held {
            let Some(&number) = store.numbers.get(&part.part) else { continue };
            let mut frame = Frame::default();
            store.read(number, &mut frame, &mut scratch)?;
            store.lock().states[number] = State::Held(Arc::new(frame));
        }
        for (class, parts, n) in [
            (Class::Sequence, &plan.streamed, plan.frames.0),
            (Class::Expert, &plan.experts, plan.expert_frames.0),
        ] {
            let largest = parts.iter().max_by_key(|p| p.nbytes).and_then(|p| store.numbers.get(&p.part));
            let Some(&largest) = largest else { continue };
            let frames = (0..n).map(|_| store.frame_for(largest)).collect::<Result<_, _>>()?;
            store.lock().free[class as usize] = (frames, 0);
        }
        Ok(store)
    }

    /// A frame as large as a part needs: its memory is made before anything waits for it.
    fn frame_for(&self, number: usize) -> Result<Frame, Error> {
        let mut frame = Frame::default();
        let extents = self.checkpoint.extents();
        for piece in &self.layouts[number].pieces {
            let mut loaded = Loaded::default();
            let len = match *piece {
                Piece::File(_, _, len) => len.saturating_add(PAGE as u64),
                Piece::Made(_, _, len) => len,
                Piece::Extent(i) => extents.get(i).filter(|e| !e.compressed).map_or(0, |e| e.nbytes),
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).checked_next_multiple_of(PAGE);
            loaded.raw.room(len.unwrap_or(usize::MAX)).map_err(|source| Error::Io {
                file: self.checkpoint.files().first().cloned().unwrap_or_default(),
                source,
            })?;
            frame.0.push(loaded);
        }
        Ok(frame)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn class(&self, number: usize) -> Class {
        match self.layouts[number].part {
            Part::Expert { .. } => Class::Expert,
            _ => Class::Sequence,
        }
    }

    fn read(&self, number: usize, frame: &mut Frame, scratch: &mut Buffer) -> Result<(), Error> {
        let layout = &self.layouts[number];
        let started = Instant::now();
        frame.0.resize_with(frame.0.len().max(layout.pieces.len()), Loaded::default);
        for (piece, to) in layout.pieces.iter().zip(&mut frame.0) {
            to.compressed = false;
            match *piece {
                Piece::File(file, offset, len) => {
                    let name = layout.part.to_string();
                    to.skew = self.files.read((file, offset, len), &mut to.raw, &name, &mut |_| {})?;
                    self.bytes.fetch_add(len, Ordering::Relaxed);
                }
                Piece::Extent(extent) => self.read_extent(extent, to, scratch)?,
                Piece::Made(tensor, offset, len) => {
                    let io = |source| Error::Io {
                        file: self.checkpoint.files().first().cloned().unwrap_or_default(),
                        source,
                    };
                    let dst = to.raw.room(usize::try_from(len).unwrap_or(usize::MAX)).map_err(io)?;
                    self.checkpoint.read(tensor, offset, dst)?;
                    to.skew = 0;
                    self.bytes.fetch_add(len, Ordering::Relaxed);
                }
            }
        }
        self.nanos.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn read_extent(&self, number: usize, to: &mut Loaded, scratch: &mut Buffer) -> Result<(), Error> {
        let Some(extent) = self.checkpoint.extents().get(number) else {
            let file = self.checkpoint.files().first().cloned().unwrap_or_default();
            return Err(Error::Refused { file, reason: format!("there is no extent {number}") });
        };
        let place = (extent.file, extent.offset, extent.stored);
        let buffer = if extent.compressed { &mut *scratch } else { &mut to.raw };
        let (mut hasher, sum) = (XxHash3_64::new(), self.checkpoint.checksum(number));
        let skew = self.files.read(place, buffer, &extent.name, &mut |bytes| {
            if sum.is_some() {
                hasher.write(bytes);
            }
        })?;
        self.bytes.fetch_add(extent.stored, Ordering::Relaxed);
        if let Some(want) = sum.filter(|&want| want != hasher.finish()) {
            return Err(Error::Corrupt {
                file: self.checkpoint.files().get(extent.file).cloned().unwrap_or_default(),
                tensor: Some(extent.name.clone()),
                offset: Some(extent.offset),
                reason: format!("the checksum is {:016x}, it should be {want:016x}", hasher.finish()),
            });
        }
        if extent.compressed {
            let stored = &buffer.bytes()[skew..skew + extent.stored as usize];
            self.checkpoint.unpack(number, stored, &mut to.unpacked)?;
        }
        (to.skew, to.compressed) = (skew, extent.compressed);
        Ok(())
    }

    /// What a reading thread does until it is told to stop.
    pub(crate) fn serve(&self) {
        let mut scratch = Buffer::default();
        let mut inner = self.lock();
        loop {
            if inner.stop {
                return;
            }
            let Some((number, mut frame)) = self.next(&mut inner) else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            inner.states[number] = State::Reading { late: false };
            drop(inner);
            let result = self.read(number, &mut frame, &mut scratch);
            inner = self.lock();
            let late = matches!(inner.states[number], State::Reading { late: true });
            inner.states[number] = match result {
                Ok(()) => State::Ready(Arc::new(frame), late.then_some(inner.clock)),
                Err(e) => {
                    inner.free[self.class(number) as usize].0.push(frame);
                    State::Failed(e)
                }
            };
            self.changed.notify_all();
        }
    }

    /// The first of the queue that there is a frame for, and the frame.
    fn next(&self, inner: &mut Inner) -> Option<(usize, Frame)> {
        for at in 0..inner.queue.len() {
            let number = inner.queue[at];
            // For what somebody waits for even a part goes that was read ahead and not used yet.
            let urgent = inner.awaited[number] > 0;
            if let Some(frame) = self.frame(inner, self.class(number), urgent) {
                inner.queue.remove(at);
                return Some((number, frame));
            }
        }
        None
    }

    fn frame(&self, inner: &mut Inner, class: Class, urgent: bool) -> Option<Frame> {
        let (free, more) = &mut inner.free[class as usize];
        if let Some(frame) = free.pop() {
            return Some(frame);
        }
        if *more > 0 {
            *more -= 1;
            return Some(Frame::default());
        }
        let candidates = inner.states.iter().enumerate().filter_map(|(number, state)| match state {
            State::Ready(frame, used) if Arc::strong_count(frame) == 1 && self.class(number) == class => {
                // Used ones go first, the longest unused one before the others.
                used.is_some().then_some((0, *used, number)).or(urgent.then_some((1, None, number)))
            }
            _ => None,
        });
        let (_, _, number) = candidates.min()?;
        match std::mem::replace(&mut inner.states[number], State::Absent) {
            State::Ready(frame, _) => Arc::into_inner(frame),
            _ => None,
        }
    }

    /// Puts parts that will be needed soon behind what is asked for already; those that are needed now go to the
    /// front. What is in memory counts as used.
    pub(crate) fn want(&self, parts: &[Part], now: bool) {
        let mut inner = self.lock();
        let numbers: Vec<usize> = parts.iter().filter_map(|p| self.numbers.get(p).copied()).collect();
        if now {
            self.forget(&mut inner, &numbers);
        }
        for &number in if now { numbers.iter().rev().collect::<Vec<_>>() } else { numbers.iter().collect() } {
            inner.clock += 1;
            let clock = inner.clock;
            if now {
                match inner.states[number] {
                    State::Ready(..) | State::Held(_) => inner.hits += 1,
                    _ => inner.misses += 1,
                }
            }
            match &mut inner.states[number] {
                State::Ready(_, used) if used.is_some() || now => *used = Some(clock),
                State::Absent => {
                    inner.states[number] = State::Queued;
                    if now { inner.queue.push_front(number) } else { inner.queue.push_back(number) }
                }
                State::Queued if now => {
                    inner.queue.retain(|&n| n != number);
                    inner.queue.push_front(number);
                }
                State::Reading { late } if now => *late = false,
                _ => {}
            }
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// What was read ahead for the layer whose experts are now known, and is none of them, makes room like any other; or
    /// is not read at all. It would keep its place until somebody waits, and nothing more could be read ahead.
    fn forget(&self, inner: &mut Inner, known: &[usize]) {
        let layer = |number: usize| match self.layouts[number].part {
            Part::Expert { layer, .. } => Some(layer),
            _ => None,
        };
        let Some(passed) = known.first().and_then(|&number| layer(number)) else { return };
        inner.clock += 1;
        let clock = inner.clock;
        for number in (0..self.layouts.len()).filter(|&n| layer(n) == Some(passed) && !known.contains(&n)) {
            match &mut inner.states[number] {
                state @ State::Queued if inner.awaited[number] == 0 => {
                    *state = State::Absent;
                    inner.queue.retain(|&n| n != number);
                }
                State::Ready(_, used @ None) => *used = Some(clock),
                State::Reading { late } => *late = inner.awaited[number] == 0,
                _ => {}
            }
        }
    }

    /// Whether a part is in memory.
    pub(crate) fn has(&self, part: Part) -> bool {
        let Some(&number) = self.numbers.get(&part) else { return true };
        matches!(self.lock().states[number], State::Ready(..) | State::Held(_))
    }

    /// A part's bytes if they are in memory now; `Err` if they are not.
    pub(crate) fn ready(&self, part: Part) -> Result<Option<Arc<Frame>>, ()> {
        let Some(&number) = self.numbers.get(&part) else { return Ok(None) };
        let mut inner = self.lock();
        inner.clock += 1;
        let clock = inner.clock;
        let frame = match &mut inner.states[number] {
            State::Held(frame) => return Ok(Some(frame.clone())),
            State::Ready(frame, used) => {
                *used = Some(clock);
                frame.clone()
            }
            _ => return Err(()),
        };
        Ok(Some(frame))
    }

    /// A part's bytes, when they have arrived; `None` if it has none to be read.
    pub(crate) fn lease(&self, part: Part) -> Result<Option<Arc<Frame>>, Error> {
        let Some(&number) = self.numbers.get(&part) else { return Ok(None) };
        let mut inner = self.lock();
        let (started, mut asked) = (Instant::now(), false);
        loop {
            inner.clock += 1;
            let clock = inner.clock;
            let state = &mut inner.states[number];
            match state {
                State::Held(frame) => return Ok(Some(frame.clone())),
                State::Ready(frame, used) => {
                    *used = Some(clock);
                    let frame = frame.clone();
                    inner.waiting += started.elapsed();
                    self.read_ahead(&mut inner, number);
                    drop(inner);
                    self.changed.notify_all();
                    return Ok(Some(frame));
                }
                State::Failed(_) => {
                    let State::Failed(error) = std::mem::replace(state, State::Absent) else { continue };
                    return Err(error);
                }
                State::Reading { .. } => {}
                // Once is enough: two that wait must not push each other back and forth.
                State::Queued if asked => {}
                State::Absent | State::Queued => {
                    *state = State::Queued;
                    inner.queue.retain(|&n| n != number);
                    inner.queue.push_front(number);
                    asked = true;
                    self.changed.notify_all();
                }
            }
            inner.awaited[number] += 1;
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.awaited[number] -= 1;
        }
    }

    /// Asks for what comes after a part of the sequence; after the last one the first, for the next token.
    fn read_ahead(&self, inner: &mut Inner, number: usize) {
        let Some(at) = self.sequence.iter().position(|&n| n == number) else { return };
        // As many as are read at once. There is a place for the second when this part was computed with.
        for ahead in 1..=READERS {
            let next = self.sequence[(at + ahead) % self.sequence.len()];
            if matches!(inner.states[next], State::Absent) {
                inner.states[next] = State::Queued;
                inner.queue.push_back(next);
            }
        }
    }

    /// Tells the reading threads that a lease has ended.
    pub(crate) fn released(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = self.lock();
        Stats {
            bytes: self.bytes.load(Ordering::Relaxed),
            reading: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
            waiting: inner.waiting,
            hits: inner.hits,
            misses: inner.misses,
        }
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.files.are_direct()
    }
}
