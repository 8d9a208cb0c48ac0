//! Reading: an opened file as a [`Checkpoint`].

use super::format::{self, Body, Entry, GroupRow, HEADER, Layout, PAGE, Piece};
use super::pack::{self, Packing};
use crate::cursor::Fault;
use crate::map::Source;
use crate::opened::{checked_nbytes, name_tensor};
use crate::{Checkpoint, Checksums, Error, Extent, Group, Location, Metadata, TensorInfo, Term, sum};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a tensor that is no sum is.
#[derive(Clone, Copy)]
struct Place {
    /// The first of its extents.
    extent: usize,
    /// Where it begins in each.
    offset: u64,
    /// Its bytes in each.
    part: u64,
    /// Whether its rows are read directly: it is not compressed and in no layer.
    alone: bool,
}

/// A stretch of a tensor's bytes in one extent.
struct Span {
    extent: usize,
    /// Where it begins in the extent, unpacked.
    offset: u64,
    len: u64,
}

/// An opened file.
struct Qsf {
    source: Source,
    paths: Vec<PathBuf>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    planes: Vec<TensorInfo>,
    /// Of tensors, then of planes; none for sums.
    places: Vec<Option<Place>>,
    /// Of tensors.
    terms: Vec<Vec<Term>>,
    index: HashMap<String, usize>,
    extents: Vec<Extent>,
    pieces: Vec<Piece>,
    /// Extents that are not compressed and whose checksum was found right.
    checked: Vec<AtomicBool>,
    /// The compressed extent that was read last.
    last: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
}

/// Opens a file, with all checks of its header and section.
pub(in crate::qsf) fn open(source: Source) -> Result<Box<dyn Checkpoint>, Error> {
    let layout = read_layout(&source)?;
    Ok(Box::new(assemble(source, layout)))
}

fn read_layout(source: &Source) -> Result<Layout, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    let header = source.read_vec(0, HEADER.min(source.len()))?;
    let (size, want) = format::check_header(&header, source.len()).map_err(in_file)?;
    let section = source.read_vec(HEADER, size)?;
    let found = format::xxh3(&section);
    if found != want {
        let reason = format!("metadata and index: the checksum is {found:016x}, it should be {want:016x}");
        return Err(in_file(Fault::Corrupt { tensor: None, offset: Some(HEADER), reason }));
    }
    Layout::decode(&section, source.len()).map_err(|fault| in_file(fault.shifted(HEADER)))
}

/// Where each group's extents begin, and all extents with what they are called.
fn named_extents(groups: &[GroupRow], entries: &[Entry], pieces: &[Piece]) -> (Vec<usize>, Vec<Extent>) {
    let mut alone = vec![None; groups.len()];
    for entry in entries.iter().rev() {
        if let Body::Plain { group, .. } = entry.body
            && let Some(name) = alone.get_mut(group)
        {
            *name = Some(entry.name.as_str());
        }
    }
    let (mut firsts, mut extents, mut pieces_left) = (Vec::new(), Vec::new(), pieces.iter());
    for (at, row) in groups.iter().enumerate() {
        firsts.push(extents.len());
        for (part, piece) in (0..row.parts).zip(pieces_left.by_ref()) {
            let name = match row.group {
                Group::Alone => alone.get(at).copied().flatten().unwrap_or("an empty group").to_owned(),
                Group::Small => "small tensors".to_owned(),
                Group::Layer(n) => format!("layer {n}"),
                Group::Experts(n) => format!("layer {n} expert {part}"),
            };
            extents.push(Extent {
                name,
                file: 0,
                offset: piece.offset,
                stored: piece.stored,
                nbytes: row.nbytes,
                compressed: piece.packing != Packing::Plain,
            });
        }
    }
    (firsts, extents)
}

fn assemble(source: Source, layout: Layout) -> Qsf {
    let Layout { metadata, groups, entries, extents: pieces } = layout;
    let (firsts, extents) = named_extents(&groups, &entries, &pieces);
    let mut used = HashSet::new();
    for entry in &entries {
        if let Body::Sum(terms) = &entry.body {
            used.extend(terms.iter().flat_map(|term| term.planes()));
        }
    }
    // Tensors come first, then planes.
    let count = entries.len().saturating_sub(used.len());
    let (mut tensors_seen, mut planes_seen) = (0usize, count);
    let mut numbers = Vec::with_capacity(entries.len());
    for at in 0..entries.len() {
        let next = if used.contains(&at) { &mut planes_seen } else { &mut tensors_seen };
        numbers.push(*next);
        *next = next.saturating_add(1);
    }
    let number = |at: usize| numbers.get(at).copied().unwrap_or(usize::MAX);
    let (mut tensors, mut planes) = (Vec::with_capacity(count), Vec::new());
    let (mut places, mut plane_places, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    let mut index = HashMap::with_capacity(count);
    for (at, entry) in entries.into_iter().enumerate() {
        let nbytes = checked_nbytes(entry.dtype, &entry.shape).unwrap_or(0);
        let (place, of) = match entry.body {
            Body::Sum(terms) => (None, terms.iter().map(|term| renumbered(*term, number)).collect()),
            Body::Plain { group, offset } => {
                let row = groups.get(group);
                let extent = firsts.get(group).copied().unwrap_or(0);
                let part = nbytes.checked_div(row.map_or(1, |row| row.parts)).unwrap_or(0);
                let alone = row.is_some_and(|row| row.group == Group::Alone);
                (Some(Place { extent, offset, part, alone }), Vec::new())
            }
        };
        let begins = place.and_then(|p| {
            let extent = extents.get(p.extent)?;
            Some(if extent.compressed { extent.offset } else { extent.offset.saturating_add(p.offset) })
        });
        let info = TensorInfo {
            name: entry.name,
            dtype: entry.dtype,
            shape: entry.shape,
            file: 0,
            offset: begins.unwrap_or(0),
            nbytes,
        };
        if used.contains(&at) {
            planes.push(info);
            plane_places.push(place);
        } else {
            index.insert(info.name.clone(), tensors.len());
            tensors.push(info);
            places.push(place);
            terms.push(of);
        }
    }
    places.append(&mut plane_places);
    let paths = vec![source.path().to_path_buf()];
    let checked = extents.iter().map(|_| AtomicBool::new(false)).collect();
    let last = Mutex::default();
    Qsf { source, paths, metadata, tensors, planes, places, terms, index, extents, pieces, checked, last }
}

fn renumbered(term: Term, number: impl Fn(usize) -> usize) -> Term {
    match term {
        Term::Whole { plane } => Term::Whole { plane: number(plane) },
        Term::Product { left, right } => Term::Product { left: number(left), right: number(right) },
        Term::Band { plane, first } => Term::Band { plane: number(plane), first },
        Term::Sparse { starts, columns, values } => {
            Term::Sparse { starts: number(starts), columns: number(columns), values: number(values) }
        }
        Term::Vectors { codes, tables } => Term::Vectors { codes: number(codes), tables: number(tables) },
    }
}

impl Qsf {
    fn refused(&self, reason: String) -> Error {
        Error::Refused { file: self.source.path().into(), reason }
    }

    fn corrupt(&self, extent: &Extent, reason: String) -> Error {
        let (file, offset) = (self.source.path().into(), Some(extent.offset));
        Error::Corrupt { file, tensor: None, offset, reason: format!("{}: {reason}", extent.name) }
    }

    /// A tensor or plane, and where it is if it is no sum.
    fn get(&self, tensor: usize) -> Result<(&TensorInfo, Option<Place>), Error> {
        let found = self.info(tensor).zip(self.places.get(tensor).copied());
        found.ok_or_else(|| self.refused(format!("there is no tensor number {tensor}")))
    }

    fn extent(&self, extent: usize) -> Result<(&Extent, &Piece), Error> {
        let found = self.extents.get(extent).zip(self.pieces.get(extent));
        found.ok_or_else(|| {
            self.refused(format!("there is no extent {extent}; there are {}", self.extents.len()))
        })
    }

    fn check_range(&self, info: &TensorInfo, range: &Range<u64>) -> Result<(), Error> {
        if range.start <= range.end && range.end <= info.nbytes {
            return Ok(());
        }
        let (name, nbytes) = (&info.name, info.nbytes);
        Err(self.refused(format!(
            "{name:?} has {nbytes} bytes; those from {} to {} were asked for",
            range.start, range.end
        )))
    }

    /// The stretches that a range of a tensor's bytes is in.
    fn spans(place: Place, range: Range<u64>) -> impl Iterator<Item = Span> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end || place.part == 0 {
                return None;
            }
            let (no, inside) = (at.checked_div(place.part)?, at.checked_rem(place.part)?);
            let len = place.part.saturating_sub(inside).min(range.end.saturating_sub(at));
            at = at.saturating_add(len);
            let extent = place.extent.checked_add(usize::try_from(no).ok()?)?;
            Some(Span { extent, offset: place.offset.saturating_add(inside), len })
        })
    }

    /// Compares an extent's checksum, a piece at a time and without touching the map.
    fn check_stored(&self, extent: &Extent, want: u64) -> Result<(), Error> {
        const PIECE: u64 = 1 << 20;
        let mut hasher = twox_hash::XxHash3_64::new();
        let mut piece = vec![0; usize::try_from(extent.stored.min(PIECE)).unwrap_or(0)];
        let mut at = 0;
        while at < extent.stored {
            let n = usize::try_from(extent.stored.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let part = piece.get_mut(..n).unwrap_or_default();
            self.source.read_at(extent.offset.saturating_add(at), part)?;
            std::hash::Hasher::write(&mut hasher, part);
            at = at.saturating_add(n as u64);
        }
        self.compare(extent, std::hash::Hasher::finish(&hasher), want)
    }

    fn compare(&self, extent: &Extent, found: u64, want: u64) -> Result<(), Error> {
        match found == want {
            true => Ok(()),
            false => {
                Err(self.corrupt(extent, format!("the checksum is {found:016x}, it should be {want:016x}")))
            }
        }
    }

    /// Sees to it that an extent that is not compressed is right. Threads that ask at once may all look.
    fn ensure(&self, number: usize) -> Result<(), Error> {
        let (extent, piece) = self.extent(number)?;
        let checked = self.checked.get(number);
        if checked.is_some_and(|checked| checked.load(Ordering::Acquire)) {
            return Ok(());
        }
        self.check_stored(extent, piece.sum)?;
        if let Some(checked) = checked {
            checked.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// A compressed extent's content.
    fn plain(&self, number: usize) -> Result<Arc<Vec<u8>>, Error> {
        // Held while it is unpacked, so that threads that want the same extent wait for one copy of it. A thread that
        // panicked elsewhere leaves a whole value or none.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plain)) = last.as_ref().filter(|(at, _)| *at == number) {
            return Ok(plain.clone());
        }
        *last = None;
        let (extent, _) = self.extent(number)?;
        let stored = self.source.read_vec(extent.offset, extent.stored)?;
        let mut plain = Vec::new();
        self.unpack(number, &stored, &mut plain)?;
        let plain = Arc::new(plain);
        *last = Some((number, plain.clone()));
        Ok(plain)
    }

    fn read_span(&self, span: &Span, dst: &mut [u8]) -> Result<(), Error> {
        let (extent, _) = self.extent(span.extent)?;
        if extent.compressed {
            let plain = self.plain(span.extent)?;
            let from = usize::try_from(span.offset).ok().and_then(|at| plain.get(at..)?.get(..dst.len()));
            let from = from.ok_or_else(|| self.corrupt(extent, "a tensor goes past its end".into()))?;
            dst.copy_from_slice(from);
            return Ok(());
        }
        self.ensure(span.extent)?;
        self.source.read_at(extent.offset.saturating_add(span.offset), dst)
    }

    fn read_place(&self, place: Place, range: Range<u64>, dst: &mut [u8]) -> Result<(), Error> {
        let mut left = dst;
        for span in Qsf::spans(place, range) {
            let len = usize::try_from(span.len).unwrap_or(usize::MAX);
            let (now, later) = left.split_at_mut_checked(len).unwrap_or((&mut [], &mut []));
            self.read_span(&span, now)?;
            left = later;
        }
        Ok(())
    }

    /// A zeroed buffer, or an error that says for what there is no memory.
    fn buffer(&self, info: &TensorInfo, len: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let size = usize::try_from(len).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
        let size = size.ok_or_else(|| Error::Limit {
            file: self.source.path().into(),
            tensor: Some(info.name.clone()),
            reason: format!("no memory for {len} bytes"),
        })?;
        bytes.resize(size, 0);
        Ok(bytes)
    }

    /// Whether bytes between the parts that have a checksum are all zeros.
    fn check_gap(&self, from: u64, to: u64) -> Result<(), Error> {
        let bytes = self.source.read_vec(from, to.saturating_sub(from))?;
        match bytes.iter().position(|b| *b != 0) {
            None => Ok(()),
            Some(at) => Err(Error::Corrupt {
                file: self.source.path().into(),
                tensor: None,
                offset: Some(from.saturating_add(at as u64)),
                reason: "bytes between extents are zeros".into(),
            }),
        }
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
        let len = self.get(tensor)?.0.nbytes;
        self.slice(tensor, 0..len)
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let (info, place) = self.get(tensor)?;
        let range = offset..offset.checked_add(dst.len() as u64).unwrap_or(0);
        self.check_range(info, &range)?;
        let read = match place {
            Some(place) => self.read_place(place, range, dst),
            None => sum::read(self, tensor, offset, dst),
        };
        read.map_err(|e| name_tensor(e, &info.name))
    }
    fn planes(&self) -> &[TensorInfo] {
        &self.planes
    }
    fn terms(&self, tensor: usize) -> &[Term] {
        self.terms.get(tensor).map_or(&[], Vec::as_slice)
    }
    fn slice(&self, tensor: usize, range: Range<u64>) -> Result<Cow<'_, [u8]>, Error> {
        let (info, place) = self.get(tensor)?;
        self.check_range(info, &range)?;
        let named = |e| name_tensor(e, &info.name);
        let one = place.and_then(|place| {
            let mut spans = Qsf::spans(place, range.clone());
            let span = spans.next().filter(|_| spans.next().is_none())?;
            Some(span).filter(|span| self.extents.get(span.extent).is_some_and(|e| !e.compressed))
        });
        if let Some(span) = one {
            let (extent, _) = self.extent(span.extent)?;
            self.ensure(span.extent).map_err(named)?;
            let bytes = self.source.slice(extent.offset.saturating_add(span.offset), span.len);
            return bytes.map(Cow::Borrowed).map_err(named);
        }
        if range.is_empty() {
            return Ok(Cow::Borrowed(&[]));
        }
        if place.is_none() && range == (0..info.nbytes) {
            return sum::bytes(self, tensor).map(Cow::Owned).map_err(named);
        }
        let mut bytes = self.buffer(info, range.end.saturating_sub(range.start))?;
        self.read(tensor, range.start, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    /// In the file for a tensor on its own, so that its rows can be gathered; else in an extent, which is to be read as
    /// a whole.
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        let place = self.places.get(tensor).copied().flatten()?;
        self.info(tensor).filter(|info| range.end <= info.nbytes)?;
        let mut spans = Qsf::spans(place, range);
        let Span { extent, offset, .. } = spans.next().filter(|_| spans.next().is_none())?;
        let row = self.extents.get(extent)?;
        Some(match place.alone && !row.compressed {
            true => Location::File { file: 0, offset: row.offset.checked_add(offset)? },
            false => Location::Extent { extent, offset },
        })
    }
    fn extents(&self) -> &[Extent] {
        &self.extents
    }
    fn unpack(&self, extent: usize, stored: &[u8], dst: &mut Vec<u8>) -> Result<(), Error> {
        dst.clear();
        let (extent, piece) = self.extent(extent)?;
        if stored.len() as u64 != extent.stored {
            let reason = format!("{}: {} bytes in place of {}", extent.name, stored.len(), extent.stored);
            return Err(self.refused(reason));
        }
        self.compare(extent, format::xxh3(stored), piece.sum)?;
        if piece.packing == Packing::Plain {
            return Ok(());
        }
        pack::unpack(piece.packing, stored, extent.nbytes, dst).map_err(|reason| self.corrupt(extent, reason))
    }
    fn checksum(&self, extent: usize) -> Option<u64> {
        self.pieces.get(extent).map(|piece| piece.sum)
    }
    /// All: header, section, and every extent.
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        let mut end = match self.extents.first() {
            // The header and the section were found right when the file was opened; zeros follow the section.
            Some(first) => {
                let gap = self.source.read_vec(24, 8)?;
                let size = gap.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                self.check_gap(HEADER.saturating_add(size).min(first.offset), first.offset)?;
                first.offset
            }
            None => 0,
        };
        for (at, (extent, piece)) in self.extents.iter().zip(&self.pieces).enumerate() {
            if extent.offset.saturating_sub(end) < PAGE {
                self.check_gap(end, extent.offset)?;
            }
            match extent.compressed {
                true => drop(self.plain(at)?),
                false => self.check_stored(extent, piece.sum)?,
            }
            end = extent.offset.saturating_add(extent.stored);
        }
        Ok(Checksums::Valid(self.extents.len().saturating_add(2)))
    }
}
