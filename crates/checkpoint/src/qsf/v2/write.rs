//! Writing: extents as they fill, and what describes them over the zeros in front at the end.

use super::format::{self, Body, Entry, GroupRow, HEADER, Layout, PAGE, Piece, Placer};
use super::pack::{self, Packing};
use crate::journal::{Begin, Journal, Mark, Part};
use crate::output::{AtomicFile, check_free, commit_all, refused};
use crate::set::{beside, fingerprint};
use crate::sum::rows_cols;
use crate::{Compression, Error, Group, Metadata, Resumed, Rows, TensorPlan, WriteOptions, Writer};
use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// Begins a file. Extents of layers and experts are compressed if that is asked for; tensors on their own never are, so
/// that rows of an embedding can be read where they lie.
pub(in crate::qsf) fn create(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorPlan],
    options: &WriteOptions,
) -> Result<Box<dyn Writer>, Error> {
    let refused = |reason: String| refused(path, reason);
    if options.max_file_bytes.is_some() || options.max_file_tensors.is_some() {
        return Err(refused("a QSF file holds a whole model; it is not split".into()));
    }
    if let Some((key, _)) = metadata.iter().find(|(key, _)| key.is_empty() || key.len() > 65_535) {
        return Err(refused(format!("metadata key {key:?} has {} bytes", key.len())));
    }
    let layout = layout(metadata, tensors).map_err(refused)?;
    let section = layout.encode();
    if section.len() as u64 > format::MAX_SECTION {
        return Err(refused(format!("metadata and index of {} bytes are too large", section.len())));
    }
    let start = format::data_start(section.len() as u64).ok_or_else(|| refused("it is too large".into()))?;
    let steps = steps(&layout, tensors);
    Ok(Box::new(QsfWriter::new(path, layout, &section, start, steps, options)?))
}

/// Groups in the order in which the plan has their first tensors.
fn layout(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<Layout, String> {
    let mut names = HashSet::new();
    let mut known: HashMap<Group, usize> = HashMap::new();
    let mut layout = Layout { metadata: metadata.clone(), ..Layout::default() };
    let mut of_entries = Vec::with_capacity(tensors.len());
    for plan in tensors {
        let name = &plan.name;
        if !names.insert(name.as_str()) {
            return Err(format!("two tensors have the name {name:?}"));
        }
        if name.len() > 65_535 || plan.shape.len() > 8 {
            return Err(format!("{name:?}: its name or its shape {:?} is too long", plan.shape));
        }
        let parts = match plan.group {
            Group::Experts(_) => plan.shape.first().copied().unwrap_or(1).max(1),
            _ => 1,
        };
        let nbytes = format::part_bytes(plan.dtype, &plan.shape, parts);
        let nbytes = nbytes.map_err(|reason| format!("{name:?}: {reason}"))?;
        if !plan.terms.is_empty() {
            of_entries.push((0, 0));
            continue;
        }
        let next = layout.groups.len();
        let at = match plan.group {
            Group::Alone => next,
            group => *known.entry(group).or_insert(next),
        };
        if at == next {
            layout.groups.push(GroupRow { group: plan.group, parts, nbytes: 0 });
        }
        if layout.groups.get(at).is_some_and(|row| row.parts != parts) {
            return Err(format!("{name:?}: there are not as many experts as in others of {:?}", plan.group));
        }
        of_entries.push((at, nbytes));
    }
    let mut placer = Placer::new(layout.groups.len());
    for (plan, (group, nbytes)) in tensors.iter().zip(of_entries) {
        let body = match plan.terms.is_empty() {
            true => {
                let offset = placer.place(group, nbytes);
                Body::Plain { group, offset: offset.ok_or("the size of the data overflows")? }
            }
            false => Body::Sum(plan.terms.clone()),
        };
        let (name, dtype, shape) = (plan.name.clone(), plan.dtype, plan.shape.clone());
        layout.entries.push(Entry { name, dtype, shape, body });
    }
    let mut total = 0u64;
    for (at, row) in layout.groups.iter_mut().enumerate() {
        row.nbytes = placer.nbytes(at);
        let each = row.nbytes.checked_next_multiple_of(PAGE).and_then(|n| n.checked_mul(row.parts));
        total = each
            .and_then(|n| n.checked_add(total))
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or("too large")?;
        for _ in 0..row.parts {
            layout.extents.push(Piece { offset: 0, stored: 0, sum: 0, packing: Packing::Plain });
        }
    }
    format::check_sums(&layout.entries).map_err(|(name, reason)| format!("{name:?}: {reason}"))?;
    Ok(layout)
}

/// A stretch of bytes that [`Writer::append`] brings.
struct Step {
    rows: Rows,
    /// Which extent.
    extent: usize,
    /// Where in it.
    offset: u64,
    nbytes: u64,
}

/// All stretches in file order.
fn steps(layout: &Layout, tensors: &[TensorPlan]) -> Vec<Step> {
    let mut of_groups: Vec<Vec<(usize, u64)>> = vec![Vec::new(); layout.groups.len()];
    for (tensor, entry) in layout.entries.iter().enumerate() {
        if let Body::Plain { group, offset } = entry.body
            && let Some(of) = of_groups.get_mut(group)
        {
            of.push((tensor, offset));
        }
    }
    let mut steps = Vec::new();
    let mut extent = 0usize;
    for (row, of) in layout.groups.iter().zip(&of_groups) {
        for part in 0..row.parts {
            for &(tensor, offset) in of {
                let Some(plan) = tensors.get(tensor) else { continue };
                let rows = rows_cols(&plan.shape).0.checked_div(row.parts).unwrap_or(0);
                let first = part.saturating_mul(rows);
                let nbytes = format::part_bytes(plan.dtype, &plan.shape, row.parts).unwrap_or(0);
                let rows = Rows { tensor, rows: first..first.saturating_add(rows) };
                steps.push(Step { rows, extent, offset, nbytes });
            }
            extent = extent.saturating_add(1);
        }
    }
    steps
}

/// What is known of an extent that is being written.
struct Open {
    hasher: XxHash3_64,
    /// Its bytes, if it may be compressed.
    held: Vec<u8>,
    /// How many there are.
    len: u64,
}

struct QsfWriter {
    path: PathBuf,
    options: WriteOptions,
    journal: Option<Journal>,
    part: Option<Part>,
    beside: Option<Vec<AtomicFile>>,
    layout: Layout,
    /// Whether each extent may be compressed, and its bytes, unpacked.
    plans: Vec<(bool, u64)>,
    steps: Vec<Step>,
    /// The next stretch, and how much of it was given.
    step: usize,
    taken: u64,
    /// Which extent is written, or the number of extents.
    extent: usize,
    open: Open,
    /// Extents that ended since the last mark.
    ended: String,
    given: u64,
    resumed: u64,
}

impl QsfWriter {
    fn new(
        path: &Path,
        layout: Layout,
        section: &[u8],
        start: u64,
        steps: Vec<Step>,
        options: &WriteOptions,
    ) -> Result<QsfWriter, Error> {
        let targets: Vec<PathBuf> = std::iter::once(path)
            .chain(options.beside.iter().map(|(path, _)| path.as_path()))
            .map(Into::into)
            .collect();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let compress = [options.compress.map_or(0u8, |c| packing(c).number().to_le_bytes()[0])];
        let fingerprint = fingerprint(options, [name, section, &compress].into_iter());
        let opened =
            options.resume.as_ref().map(|resume| Journal::open(targets.clone(), fingerprint, resume));
        let (journal, begin) = match opened.transpose()? {
            Some((journal, begin)) => (Some(journal), begin),
            None => (None, Begin::Anew),
        };
        let plans = layout.groups.iter().flat_map(|row| {
            let may = options.compress.is_some() && row.group != Group::Alone;
            (0..row.parts).map(move |_| (may, row.nbytes))
        });
        let plans = plans.collect();
        let mut writer = QsfWriter {
            path: path.into(),
            options: options.clone(),
            journal,
            part: None,
            beside: None,
            layout,
            plans,
            steps,
            step: 0,
            taken: 0,
            extent: 0,
            open: Open::new(),
            ended: String::new(),
            given: 0,
            resumed: 0,
        };
        if let (Begin::Naming(_), Some(journal)) = (&begin, &writer.journal) {
            journal.check_free(options.force)?;
            writer.beside = Some(journal.complete(options.force)?);
            writer.given = writer.steps.iter().fold(0, |n, step| n.saturating_add(step.nbytes));
            writer.resumed = writer.given;
            writer.step = writer.steps.len();
            return Ok(writer);
        }
        targets.iter().try_for_each(|path| check_free(path, options.force))?;
        if let Begin::After(marks) = begin
            && writer.go_on(marks, start, fingerprint)?
        {
            return Ok(writer);
        }
        let mut part = Part::create(path, options.force, writer.journal.is_some(), start)?;
        part.pad(start)?;
        writer.part = Some(part);
        writer.begin_extent()?;
        writer.advance()?;
        Ok(writer)
    }

    /// Takes up an earlier process's part after its last good mark, unless there is none.
    fn go_on(&mut self, marks: Vec<Mark>, start: u64, fingerprint: u64) -> Result<bool, Error> {
        let Some(journal) = &mut self.journal else { return Ok(false) };
        let (marks, hasher) = journal.verify(marks, start)?;
        let end = marks.last().map(|mark| (mark.len, mark.given));
        let found = ended(&marks).and_then(|ended| self.place(&ended, start, end?).map(|at| (ended, at)));
        let (Some((len, given)), Some((ended, at))) = (end, found) else {
            if let Some(journal) = &mut self.journal {
                journal.restart(fingerprint)?;
            }
            return Ok(false);
        };
        for (extent, piece) in self.layout.extents.iter_mut().zip(ended) {
            *extent = piece;
        }
        (self.extent, self.step, self.taken) = (at.extent, at.step, at.taken);
        self.part = Some(Part::reopen(&self.path, self.options.force, len, start, hasher)?);
        if let Some(extent) = self.layout.extents.get_mut(at.extent) {
            extent.offset = at.begins;
        }
        // An extent that was being written is read again for its checksum.
        self.open.len = len.saturating_sub(at.begins);
        hash_from(&self.path, at.begins, self.open.len, &mut self.open.hasher)?;
        (self.given, self.resumed) = (given, given);
        self.advance()?;
        Ok(true)
    }

    /// Where a file of these ended extents goes on that has this length after so many bytes given.
    fn place(&self, ended: &[Piece], start: u64, (len, given): (u64, u64)) -> Option<Place> {
        let mut end = start;
        for (at, piece) in ended.iter().enumerate() {
            let (may, nbytes) = self.plans.get(at)?;
            let fits = piece.packing == Packing::Plain && piece.stored == *nbytes
                || *may && piece.packing != Packing::Plain && piece.stored < *nbytes;
            if !fits || piece.offset != end {
                return None;
            }
            end = piece.offset.checked_add(piece.stored)?;
            if at.checked_add(1)? < self.plans.len() {
                end = end.checked_next_multiple_of(PAGE)?;
            }
        }
        let extent = ended.len();
        let (mut left, mut step, mut taken) = (given, 0usize, 0);
        for (at, next) in self.steps.iter().enumerate() {
            (step, taken) = (at, left.min(next.nbytes));
            left = left.saturating_sub(taken);
            if taken < next.nbytes {
                break;
            }
            (step, taken) = (at.saturating_add(1), 0);
        }
        let inside = self.steps.get(step).filter(|next| next.extent == extent);
        let inside = match (inside, self.steps.get(step)) {
            // At the end of the last tensor before this one, whose padding is written with it.
            (Some(next), _) if taken == 0 => self.ended_before(step, next.extent),
            (Some(next), _) => next.offset.checked_add(taken)?,
            (None, None) if extent == self.plans.len() => 0,
            _ => return None,
        };
        let may = self.plans.get(extent).is_some_and(|(may, _)| *may);
        let right = left == 0 && end.checked_add(inside)? == len && !(may && inside > 0);
        right.then_some(Place { extent, step, taken, begins: end })
    }

    /// Where in its extent the last bytes before this stretch ended.
    fn ended_before(&self, step: usize, extent: usize) -> u64 {
        let before = self.steps.get(..step).unwrap_or_default().iter().rev();
        let last = before.take_while(|before| before.extent == extent).find(|before| before.nbytes > 0);
        last.map_or(0, |before| before.offset.saturating_add(before.nbytes))
    }

    fn part(&mut self) -> Result<&mut Part, Error> {
        self.part.as_mut().ok_or_else(|| refused(&self.path, "the file is complete already"))
    }

    /// Begins the extent: at the next page, with its place noted.
    fn begin_extent(&mut self) -> Result<(), Error> {
        if self.extent >= self.plans.len() {
            return Ok(());
        }
        let part = self.part()?;
        let at = part.len.next_multiple_of(PAGE);
        part.pad(at.saturating_sub(part.len))?;
        self.open = Open::new();
        if let Some(extent) = self.layout.extents.get_mut(self.extent) {
            extent.offset = at;
        }
        Ok(())
    }

    /// Goes on to the next stretch that still needs bytes, ending extents on the way.
    fn advance(&mut self) -> Result<(), Error> {
        loop {
            let next = self.steps.get(self.step);
            if next.is_some_and(|step| step.extent == self.extent && self.taken < step.nbytes) {
                return Ok(());
            }
            if next.is_some_and(|step| step.extent == self.extent) {
                self.step = self.step.saturating_add(1);
                self.taken = 0;
            } else if self.extent < self.plans.len() {
                self.end_extent()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Writes what is held of an extent, notes its size and checksum, and begins the next.
    fn end_extent(&mut self) -> Result<(), Error> {
        let Some(&(may, nbytes)) = self.plans.get(self.extent) else { return Ok(()) };
        // Bytes behind the last tensor that has any.
        self.put_zeros(nbytes)?;
        let mut packed = Packing::Plain;
        let mut stored = nbytes;
        let mut sum = self.open.hasher.finish();
        if may {
            let held = std::mem::take(&mut self.open.held);
            let wanted = self.options.compress.map_or(Packing::Plain, packing);
            let bytes = match pack::pack(wanted, &held) {
                Some(bytes) => {
                    packed = wanted;
                    bytes
                }
                None => held,
            };
            (stored, sum) = (bytes.len() as u64, format::xxh3(&bytes));
            self.part()?.write(&bytes)?;
        }
        if let Some(extent) = self.layout.extents.get_mut(self.extent) {
            *extent = Piece { offset: extent.offset, stored, sum, packing: packed };
            let text = format!("{}:{stored}:{sum:016x}:{},", extent.offset, packed.number());
            self.ended.push_str(&text);
        }
        self.extent = self.extent.saturating_add(1);
        self.begin_extent()
    }

    /// Bytes of the open extent.
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let may = self.plans.get(self.extent).is_some_and(|(may, _)| *may);
        match may {
            true => self.open.held.extend_from_slice(bytes),
            false => {
                self.open.hasher.write(bytes);
                self.part()?.write(bytes)?;
            }
        }
        self.open.len = self.open.len.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Zeros up to this byte of the open extent.
    fn put_zeros(&mut self, to: u64) -> Result<(), Error> {
        const ZEROS: [u8; 64] = [0; 64];
        while self.open.len < to {
            let n = usize::try_from(to.saturating_sub(self.open.len)).unwrap_or(usize::MAX);
            self.put(ZEROS.get(..n).unwrap_or(&ZEROS))?;
        }
        Ok(())
    }

    fn mark_if_due(&mut self) -> Result<(), Error> {
        // What is held in memory is not in the file.
        if !self.open.held.is_empty() {
            return Ok(());
        }
        let (Some(journal), Some(part)) = (&mut self.journal, &mut self.part) else { return Ok(()) };
        if journal.is_due(self.given) {
            let state = format!("e{}", self.ended);
            part.mark(journal, self.given, 0, &state)?;
            self.ended.clear();
        }
        Ok(())
    }
}

/// Where a writer goes on.
struct Place {
    extent: usize,
    step: usize,
    taken: u64,
    /// Where the extent begins.
    begins: u64,
}

impl Open {
    fn new() -> Open {
        Open { hasher: XxHash3_64::new(), held: Vec::new(), len: 0 }
    }
}

fn packing(compression: Compression) -> Packing {
    match compression {
        Compression::Lz4 => Packing::Lz4,
        Compression::Zstd => Packing::Zstd,
    }
}

/// The extents that marks say have ended.
fn ended(marks: &[Mark]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for mark in marks {
        for text in mark.state.strip_prefix('e')?.split_terminator(',') {
            let mut fields = text.split(':');
            let (offset, stored, sum, packing) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            pieces.push(Piece {
                offset: offset.parse().ok()?,
                stored: stored.parse().ok()?,
                sum: u64::from_str_radix(sum, 16).ok()?,
                packing: Packing::from_number(packing.parse().ok()?)?,
            });
        }
    }
    Some(pieces)
}

/// Adds bytes of the part to a sum.
fn hash_from(path: &Path, from: u64, len: u64, hasher: &mut XxHash3_64) -> Result<(), Error> {
    let io = |source| Error::Io { file: path.into(), source };
    let mut file = std::fs::File::open(crate::output::part_path(path)?).map_err(io)?;
    file.seek(SeekFrom::Start(from)).map_err(io)?;
    let mut file = file.take(len);
    let mut step = vec![0; 1 << 20];
    loop {
        match file.read(&mut step).map_err(io)? {
            0 => return Ok(()),
            n => hasher.write(step.get(..n).unwrap_or_default()),
        }
    }
}

impl Writer for QsfWriter {
    fn order(&self) -> Option<Vec<Rows>> {
        Some(self.steps.iter().map(|step| step.rows.clone()).collect())
    }

    fn resumed(&self) -> Resumed {
        Resumed { bytes: self.resumed, note: self.journal.as_ref().and_then(Journal::note) }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let Some(&Step { offset, nbytes, .. }) = self.steps.get(self.step) else {
                return Err(refused(&self.path, format!("{} bytes more than were planned", bytes.len())));
            };
            self.put_zeros(offset)?;
            let left = usize::try_from(nbytes.saturating_sub(self.taken)).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at_checked(left).unwrap_or((bytes, &[]));
            self.put(now)?;
            self.taken = self.taken.saturating_add(now.len() as u64);
            self.given = self.given.saturating_add(now.len() as u64);
            bytes = later;
            self.advance()?;
        }
        self.mark_if_due()
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Error> {
        if let Some(step) = self.steps.get(self.step) {
            let name = self.layout.entries.get(step.rows.tensor).map_or("", |entry| entry.name.as_str());
            let reason = format!("{name:?} lacks its last {} bytes", step.nbytes.saturating_sub(self.taken));
            return Err(refused(&self.path, reason));
        }
        // Only names are missing.
        if let (Some(files), Some(journal)) = (self.beside.take(), self.journal.take_if(|j| j.is_naming())) {
            return journal.commit(files);
        }
        if let (Some(journal), Some(part)) = (&mut self.journal, &mut self.part) {
            part.mark(journal, self.given, 0, &format!("e{}", self.ended))?;
        }
        let section = self.layout.encode();
        let mut part = self.part.take().ok_or_else(|| refused(&self.path, "nothing was begun"))?;
        let end = match self.layout.extents.is_empty() {
            // Nothing follows the section, not even zeros.
            true => HEADER.saturating_add(section.len() as u64),
            false => part.len,
        };
        let mut front = format::header(&section, end);
        front.extend_from_slice(&section);
        part.file.overwrite_front(&front)?;
        if self.layout.extents.is_empty() {
            part.file.cut(end)?;
        }
        let mut files = vec![part.file];
        files.append(&mut beside(&self.options, self.journal.is_some())?);
        match self.journal.take() {
            Some(journal) => journal.commit(files),
            None => commit_all(files),
        }
    }
}

impl Drop for QsfWriter {
    fn drop(&mut self) {
        if self.journal.as_ref().is_some_and(Journal::keeps) {
            self.part.iter_mut().for_each(|part| part.file.keep());
            self.beside.iter_mut().flatten().for_each(AtomicFile::keep);
        }
    }
}
