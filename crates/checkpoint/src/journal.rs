//! What lets a conversion go on that was killed: a journal beside the parts of its output.
//!
//! The parts are `.NAME.part`, the journal is `.NAME.part.journal` with the first file's name; whoever writes the output
//! holds a lock on it. It is text, a line for each thing that happened, each line with the XXH3-64 of what it says:
//!
//! ```text
//! fonio-journal 1 PLAN          the XXH3-64 of everything that settles the output's bytes
//! part NAME                     a file of the output, for each
//! at GIVEN FILE LEN SUM STATE   so many bytes were given; this file has LEN bytes, and this is their XXH3-64
//! naming                        all parts are complete and are given their names
//! ```
//!
//! A line is written after what it says is on the disk. The next process reads the parts again up to the last line whose
//! sum is right, cuts off what is behind, and goes on from there; a line that is torn ends the journal.

use crate::output::{AtomicFile, check_free, commit_all, part_path, refused};
use crate::{Error, Resume};
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::Hasher;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// A journal is some hundred bytes for each 64 MiB; what is larger is none.
const MAX_JOURNAL: u64 = 256 << 20;
/// Bytes of a part that are read together.
const STEP: usize = 1 << 20;

/// A line that says how far things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes that the writer was given.
    pub given: u64,
    /// Which file of the set.
    pub file: usize,
    /// Its length.
    pub len: u64,
    /// XXH3-64 of its bytes from its base on.
    pub sum: u64,
    /// What the writer wants to know besides; no spaces.
    pub state: String,
    /// Where the journal's line ends.
    end: u64,
}

/// What a journal says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    plan: Option<u64>,
    parts: Vec<String>,
    marks: Vec<Mark>,
    naming: bool,
}

/// Where a writer goes on.
pub(crate) enum Begin {
    /// From the start.
    Anew,
    /// After the last of these marks.
    After(Vec<Mark>),
    /// All is written, with these marks; only names are missing.
    Naming(Vec<Mark>),
}

/// An open journal. Dropped before [`Journal::commit`], it takes the parts away, unless they shall be gone on with.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    targets: Vec<PathBuf>,
    step: u64,
    keep: bool,
    last: u64,
    note: Option<&'static str>,
    naming: bool,
    done: bool,
}

impl Journal {
    /// Opens or begins the journal of an output of these files, and says where its writer begins.
    pub(crate) fn open(
        targets: Vec<PathBuf>,
        plan: u64,
        options: &Resume,
    ) -> Result<(Journal, Begin), Error> {
        let first = targets.first().ok_or_else(|| refused(Path::new(""), "an output without files"))?;
        let mut path = part_path(first)?.into_os_string();
        path.push(".journal");
        let path = PathBuf::from(path);
        let mut file = lock(&path, first)?;
        let mut text = Vec::new();
        let read = (&mut file).take(MAX_JOURNAL).read_to_end(&mut text);
        read.map_err(|source| Error::Io { file: path.clone(), source })?;
        let lines = parse(&text);
        let (step, keep) = (options.step.max(1), options.take_up);
        let mut journal =
            Journal { path, file, targets, step, keep, last: 0, note: None, naming: false, done: false };
        let same = lines.plan == Some(plan);
        if options.take_up && same && lines.naming && journal.named_or_there() {
            journal.naming = true;
            return Ok((journal, Begin::Naming(lines.marks)));
        }
        if options.take_up && same && !lines.naming && !lines.marks.is_empty() {
            return Ok((journal, Begin::After(lines.marks)));
        }
        if options.take_up && !text.is_empty() && !same {
            journal.note =
                Some("what an earlier conversion left is of another source, plan or program; begun anew");
        }
        journal.remove_parts(&lines.parts);
        journal.begin(plan)?;
        Ok((journal, Begin::Anew))
    }

    /// What the user should know of how this began.
    pub(crate) fn note(&self) -> Option<&'static str> {
        self.note
    }

    /// Forgets all marks: what is there turned out to be no beginning of this output.
    pub(crate) fn restart(&mut self, plan: u64) -> Result<(), Error> {
        self.note = Some("what an earlier conversion left is damaged; begun anew");
        let targets = std::mem::take(&mut self.targets);
        targets
            .iter()
            .filter_map(|target| part_path(target).ok())
            .for_each(|part| drop(std::fs::remove_file(part)));
        self.targets = targets;
        self.begin(plan)
    }

    fn begin(&mut self, plan: u64) -> Result<(), Error> {
        self.truncate(0)?;
        let mut text = line(&format!("fonio-journal 1 {plan:016x}"));
        for target in &self.targets {
            let part = part_path(target)?;
            let name = part.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            text.push_str(&line(&format!("part {name}")));
        }
        self.last = 0;
        self.write(&text)
    }

    /// Takes away the parts of an earlier output: names that a journal cannot have from us are left alone.
    fn remove_parts(&self, names: &[String]) {
        for name in names {
            let plain = Path::new(name).file_name().is_some_and(|n| n == name.as_str());
            if plain && name.starts_with('.') && name.ends_with(".part") {
                // What cannot be removed is replaced or stays; neither is the output.
                let _ = std::fs::remove_file(self.path.with_file_name(name));
            }
        }
    }

    /// Whether each file is there, under its own name or as a part.
    fn named_or_there(&self) -> bool {
        let there = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
        self.targets.iter().all(|target| there(target) || part_path(target).is_ok_and(|part| there(&part)))
    }

    /// Refuses if a file is there that must not be replaced, unless its part waits to be.
    pub(crate) fn check_free(&self, force: bool) -> Result<(), Error> {
        let mut waiting = self.targets.iter().filter(|t| part_path(t).is_ok_and(|part| part.is_file()));
        waiting.try_for_each(|target| check_free(target, force))
    }

    /// The parts of an output that only needs names.
    pub(crate) fn complete(&self, force: bool) -> Result<Vec<AtomicFile>, Error> {
        let waiting = self.targets.iter().filter(|t| part_path(t).is_ok_and(|part| part.is_file()));
        waiting.map(|target| AtomicFile::part(target, force, false)).collect()
    }

    /// Reads the parts up to the last mark that is right. Gives the marks up to there, and the state of the sum of the
    /// last one's file.
    pub(crate) fn verify(
        &mut self,
        mut marks: Vec<Mark>,
        base: u64,
    ) -> Result<(Vec<Mark>, XxHash3_64), Error> {
        let (mut good, mut best) = (0usize, XxHash3_64::new());
        // The file that is read: its number, where in it, and the sum up to there.
        let mut open: Option<(usize, File, u64, XxHash3_64)> = None;
        for mark in &marks {
            if open.as_ref().is_none_or(|(file, ..)| *file != mark.file) {
                let next = open.as_ref().map_or(0, |(file, ..)| file.saturating_add(1));
                let target = self.targets.get(mark.file).filter(|_| mark.file == next);
                let part = target.and_then(|t| part_path(t).ok()).and_then(|part| File::open(part).ok());
                let Some(mut part) = part else { break };
                if part.seek(SeekFrom::Start(base)).is_err() {
                    break;
                }
                open = Some((mark.file, part, base, XxHash3_64::new()));
            }
            let Some((_, part, at, hasher)) = &mut open else { break };
            let Some(more) = mark.len.checked_sub(*at) else { break };
            if !hash(part, more, hasher) || hasher.finish() != mark.sum {
                break;
            }
            *at = mark.len;
            best = hasher.clone();
            good = good.saturating_add(1);
        }
        marks.truncate(good);
        if let Some(last) = marks.last() {
            self.truncate(last.end)?;
            self.last = last.given;
        }
        Ok((marks, best))
    }

    /// Whether enough was given since the last mark.
    pub(crate) fn is_due(&self, given: u64) -> bool {
        given.saturating_sub(self.last) >= self.step
    }

    /// Adds a mark. What it says must be on the disk.
    pub(crate) fn mark(
        &mut self,
        given: u64,
        file: usize,
        len: u64,
        sum: u64,
        state: &str,
    ) -> Result<(), Error> {
        self.last = given;
        let text = format!("at {given} {file} {len} {sum:016x} {state}");
        self.write(&line(&text))
    }

    /// Gives all parts, which are complete, their names, and ends.
    pub(crate) fn commit(mut self, mut files: Vec<AtomicFile>) -> Result<Vec<PathBuf>, Error> {
        files.iter_mut().try_for_each(AtomicFile::seal)?;
        self.write(&line("naming"))?;
        commit_all(files)?;
        self.done = true;
        // A journal that stays says nothing wrong: the next process finds all files named.
        let _ = std::fs::remove_file(&self.path);
        Ok(self.targets.clone())
    }

    /// Whether the output was complete already and only needs names.
    pub(crate) fn is_naming(&self) -> bool {
        self.naming
    }

    /// Whether parts stay when the conversion fails.
    pub(crate) fn keeps(&self) -> bool {
        self.keep
    }

    fn truncate(&mut self, len: u64) -> Result<(), Error> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::Start(len)));
        cut.map(drop).map_err(|e| self.io(e))
    }

    fn write(&mut self, text: &str) -> Result<(), Error> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| self.io(e))
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { file: self.path.clone(), source }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.done && !self.keep {
            // Nobody is left to tell if even this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens the journal and holds it. A file that was removed between opening and locking is not the one that counts.
fn lock(path: &Path, target: &Path) -> Result<File, Error> {
    let io = |source| Error::Io { file: target.into(), source };
    for _ in 0..1000 {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused(target, "another process is writing it"));
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        if is_at(&file, path) {
            return Ok(file);
        }
    }
    Err(refused(target, "its journal is removed again and again"))
}

/// Whether a path still means this file.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        file.metadata().ok().map(id).is_some_and(|a| std::fs::metadata(path).ok().map(id) == Some(a))
    }
    // Elsewhere a file that is open cannot be removed.
    #[cfg(not(unix))]
    {
        file.metadata().is_ok() && path.exists()
    }
}

fn line(text: &str) -> String {
    format!("{text} {:016x}\n", XxHash3_64::oneshot(text.as_bytes()))
}

/// All lines up to the first that is torn or means nothing.
fn parse(bytes: &[u8]) -> Lines {
    let mut lines = Lines::default();
    let mut at = 0u64;
    for raw in bytes.split_inclusive(|b| *b == b'\n') {
        at = at.saturating_add(raw.len() as u64);
        if parse_line(raw, at, &mut lines).is_none() {
            break;
        }
    }
    lines
}

fn parse_line(raw: &[u8], end: u64, lines: &mut Lines) -> Option<()> {
    let (text, sum) = std::str::from_utf8(raw).ok()?.strip_suffix('\n')?.rsplit_once(' ')?;
    if u64::from_str_radix(sum, 16).ok()? != XxHash3_64::oneshot(text.as_bytes()) {
        return None;
    }
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match word {
        "fonio-journal" => {
            let plan = rest.strip_prefix("1 ")?;
            lines.plan = Some(u64::from_str_radix(plan, 16).ok()?);
        }
        "part" => lines.parts.push(rest.to_owned()),
        "naming" => lines.naming = true,
        "at" => {
            let mut fields = rest.splitn(5, ' ');
            let (given, file, len) = (fields.next()?, fields.next()?, fields.next()?);
            let (sum, state) = (fields.next()?, fields.next()?);
            lines.marks.push(Mark {
                given: given.parse().ok()?,
                file: file.parse().ok()?,
                len: len.parse().ok()?,
                sum: u64::from_str_radix(sum, 16).ok()?,
                state: state.to_owned(),
                end,
            });
        }
        _ => return None,
    }
    Some(())
}

/// Reads on, whether so many bytes are there.
fn hash(file: &mut File, mut len: u64, hasher: &mut XxHash3_64) -> bool {
    let mut step = vec![0; STEP];
    while len > 0 {
        let want = usize::try_from(len).unwrap_or(STEP).min(STEP);
        match file.read(step.get_mut(..want).unwrap_or_default()) {
            Ok(0) => return false,
            Ok(n) => {
                hasher.write(step.get(..n).unwrap_or_default());
                len = len.saturating_sub(n as u64);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// A file of the output, with the sum of its bytes from `base` on.
pub(crate) struct Part {
    pub file: AtomicFile,
    pub len: u64,
    hasher: Option<XxHash3_64>,
    base: u64,
}

impl Part {
    /// Begins a file: under a name that the next process finds if there is a journal.
    pub(crate) fn create(path: &Path, force: bool, journaled: bool, base: u64) -> Result<Part, Error> {
        check_free(path, force)?;
        let file = match journaled {
            true => AtomicFile::part(path, force, true)?,
            false => AtomicFile::create(path, force)?,
        };
        Ok(Part { file, len: 0, hasher: journaled.then(XxHash3_64::new), base })
    }

    /// Goes on with a file at this length, which is what `hasher` has seen from the base on.
    pub(crate) fn reopen(
        path: &Path,
        force: bool,
        len: u64,
        base: u64,
        hasher: XxHash3_64,
    ) -> Result<Part, Error> {
        let io = |source| Error::Io { file: path.into(), source };
        let part = part_path(path)?;
        OpenOptions::new().write(true).open(&part).and_then(|f| f.set_len(len)).map_err(io)?;
        Ok(Part { file: AtomicFile::part(path, force, false)?, len, hasher: Some(hasher), base })
    }

    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            let skip = usize::try_from(self.base.saturating_sub(self.len)).unwrap_or(usize::MAX);
            hasher.write(bytes.get(skip..).unwrap_or_default());
        }
        self.len = self.len.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Adds zeros.
    pub(crate) fn pad(&mut self, mut count: u64) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let zeros = ZEROS.get(..usize::try_from(count).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
            self.write(zeros)?;
            count = count.saturating_sub(zeros.len() as u64);
        }
        Ok(())
    }

    /// Brings it to the disk and says so in the journal.
    pub(crate) fn mark(
        &mut self,
        journal: &mut Journal,
        given: u64,
        file: usize,
        state: &str,
    ) -> Result<(), Error> {
        self.file.sync()?;
        let sum = self.hasher.as_ref().map_or(0, Hasher::finish);
        journal.mark(given, file, self.len, sum, state)
    }
}
