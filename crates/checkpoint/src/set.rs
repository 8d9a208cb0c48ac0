//! Files whose layout is settled before their data come: the [`Writer`] of containers whose bytes are written as they
//! are given.

use crate::journal::{Begin, Journal, Mark, Part};
use crate::output::{AtomicFile, check_free, commit_all, refused};
use crate::{Error, Resumed, WriteOptions, Writer};
use std::hash::Hasher;
use std::path::PathBuf;
use twox_hash::XxHash3_64;

/// A tensor's place in an output file.
pub(crate) struct Piece {
    /// The tensor, for messages.
    pub(crate) name: String,
    /// Bytes that [`Writer::append`] brings.
    pub(crate) nbytes: u64,
    /// Zeros that follow them.
    pub(crate) padding: u64,
}

/// A file whose layout is settled: its first bytes and what follows.
pub(crate) struct FilePlan {
    pub(crate) path: PathBuf,
    pub(crate) header: Vec<u8>,
    pub(crate) pieces: Vec<Piece>,
}

impl FilePlan {
    fn given(&self) -> u64 {
        self.pieces.iter().fold(0, |n, piece| n.saturating_add(piece.nbytes))
    }
}

/// What settles an output's bytes, as a number: the program, what is made of what, and what the writer says of itself.
pub(crate) fn fingerprint<'a>(options: &WriteOptions, parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = XxHash3_64::new();
    let mut add = |bytes: &[u8]| {
        hasher.write(&(bytes.len() as u64).to_le_bytes());
        hasher.write(bytes);
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(options.resume.as_ref().map_or(&[], |resume| resume.identity.as_slice()));
    for (path, bytes) in &options.beside {
        add(path.file_name().unwrap_or_default().as_encoded_bytes());
        add(bytes);
    }
    parts.for_each(add);
    hasher.finish()
}

/// Small files that appear with an output, complete but for their names.
pub(crate) fn beside(options: &WriteOptions, journaled: bool) -> Result<Vec<AtomicFile>, Error> {
    let mut files = Vec::new();
    for (path, bytes) in &options.beside {
        let mut part = Part::create(path, options.force, journaled, 0)?;
        part.write(bytes)?;
        files.push(part.file);
    }
    Ok(files)
}

/// Writes planned files one after the other and names them all at the end: the [`Writer`] of every container.
pub(crate) struct SetWriter {
    plans: std::vec::IntoIter<FilePlan>,
    options: WriteOptions,
    journal: Option<Journal>,
    current: Option<Part>,
    /// Which file of the set that is.
    no: usize,
    pieces: std::vec::IntoIter<Piece>,
    piece: Option<Piece>,
    done: Vec<AtomicFile>,
    path: PathBuf,
    given: u64,
    resumed: u64,
}

impl SetWriter {
    /// Begins the first file, so that a folder that cannot be written to is known at once, or goes on where an earlier
    /// process was.
    pub(crate) fn new(plans: Vec<FilePlan>, options: &WriteOptions) -> Result<SetWriter, Error> {
        let targets: Vec<PathBuf> = plans
            .iter()
            .map(|p| &p.path)
            .chain(options.beside.iter().map(|(path, _)| path))
            .cloned()
            .collect();
        let path = plans.first().map(|plan| plan.path.clone()).unwrap_or_default();
        let fingerprint = fingerprint(options, plans.iter().flat_map(described));
        let opened =
            options.resume.as_ref().map(|resume| Journal::open(targets.clone(), fingerprint, resume));
        let (journal, begin) = match opened.transpose()? {
            Some((journal, begin)) => (Some(journal), begin),
            None => (None, Begin::Anew),
        };
        let mut writer = SetWriter {
            plans: plans.into_iter(),
            options: options.clone(),
            journal,
            current: None,
            no: 0,
            pieces: Vec::new().into_iter(),
            piece: None,
            done: Vec::new(),
            path,
            given: 0,
            resumed: 0,
        };
        if let (Begin::Naming(_), Some(journal)) = (&begin, &writer.journal) {
            journal.check_free(options.force)?;
            writer.done = journal.complete(options.force)?;
            writer.given = writer.plans.as_slice().iter().fold(0, |n, plan| n.saturating_add(plan.given()));
            writer.resumed = writer.given;
            writer.plans = Vec::new().into_iter();
            return Ok(writer);
        }
        targets.iter().try_for_each(|path| check_free(path, options.force))?;
        if let Begin::After(marks) = begin
            && writer.go_on(marks, fingerprint)?
        {
            return Ok(writer);
        }
        writer.next_file()?;
        Ok(writer)
    }

    /// Takes up an earlier process's parts after its last good mark, unless there is none.
    fn go_on(&mut self, marks: Vec<Mark>, fingerprint: u64) -> Result<bool, Error> {
        let Some(journal) = &mut self.journal else { return Ok(false) };
        let (marks, hasher) = journal.verify(marks, 0)?;
        let Some(mark) = marks.last().filter(|mark| place(self.plans.as_slice(), mark).is_some()) else {
            journal.restart(fingerprint)?;
            return Ok(false);
        };
        let mut left = mark.given;
        for no in 0..=mark.file {
            let Some(plan) = self.plans.next() else { return Ok(false) };
            if no < mark.file {
                left = left.saturating_sub(plan.given());
                self.done.push(AtomicFile::part(&plan.path, self.options.force, false)?);
                continue;
            }
            self.current = Some(Part::reopen(&plan.path, self.options.force, mark.len, 0, hasher.clone())?);
            (self.no, self.path) = (no, plan.path);
            self.pieces = plan.pieces.into_iter();
            self.piece = self.pieces.find_map(|piece| skipped(piece, &mut left));
        }
        (self.given, self.resumed) = (mark.given, mark.given);
        if self.piece.is_none() {
            self.next_file()?;
        }
        Ok(true)
    }

    fn next_file(&mut self) -> Result<(), Error> {
        if let Some(mut part) = self.current.take() {
            if let Some(journal) = &mut self.journal {
                part.mark(journal, self.given, self.no, "-")?;
            }
            part.file.seal()?;
            self.done.push(part.file);
            self.no = self.no.saturating_add(1);
        }
        let Some(plan) = self.plans.next() else { return Ok(()) };
        let mut part = Part::create(&plan.path, self.options.force, self.journal.is_some(), 0)?;
        part.write(&plan.header)?;
        self.path = plan.path;
        self.pieces = plan.pieces.into_iter();
        self.current = Some(part);
        self.next_piece()
    }

    /// Goes on to the next piece that still needs bytes, or to the end of everything.
    fn next_piece(&mut self) -> Result<(), Error> {
        while let Some(part) = &mut self.current {
            if self.piece.as_ref().is_some_and(|piece| piece.nbytes > 0) {
                return Ok(());
            }
            if let Some(piece) = self.piece.take() {
                part.pad(piece.padding)?;
            }
            self.piece = self.pieces.next();
            if self.piece.is_none() {
                return self.next_file();
            }
        }
        Ok(())
    }

    fn mark_if_due(&mut self) -> Result<(), Error> {
        match (&mut self.journal, &mut self.current) {
            (Some(journal), Some(part)) if journal.is_due(self.given) => {
                part.mark(journal, self.given, self.no, "-")
            }
            _ => Ok(()),
        }
    }
}

/// What settles a file: its name, and its first bytes, which describe the others.
fn described(plan: &FilePlan) -> impl Iterator<Item = &[u8]> {
    let name = plan.path.file_name().unwrap_or_default();
    [name.as_encoded_bytes(), plan.header.as_slice()].into_iter()
}

/// The piece less what was given of it, or none if that was all; `left` is what was given from here on.
fn skipped(mut piece: Piece, left: &mut u64) -> Option<Piece> {
    let taken = piece.nbytes.min(*left);
    *left = left.saturating_sub(taken);
    piece.nbytes = piece.nbytes.saturating_sub(taken);
    (piece.nbytes > 0).then_some(piece)
}

/// Whether a mark is where these plans are after so many bytes; how long the file is there.
fn place(plans: &[FilePlan], mark: &Mark) -> Option<u64> {
    let before = plans.get(..mark.file)?.iter().fold(0u64, |n, plan| n.saturating_add(plan.given()));
    let plan = plans.get(mark.file)?;
    let mut left = mark.given.checked_sub(before)?;
    let mut len = plan.header.len() as u64;
    for piece in &plan.pieces {
        let taken = piece.nbytes.min(left);
        left = left.saturating_sub(taken);
        len = len.checked_add(taken)?;
        if taken < piece.nbytes {
            break;
        }
        len = len.checked_add(piece.padding)?;
    }
    (left == 0 && len == mark.len).then_some(len)
}

impl Writer for SetWriter {
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (Some(part), Some(piece)) = (&mut self.current, &mut self.piece) else {
                return Err(refused(&self.path, format!("{} bytes more than were planned", bytes.len())));
            };
            let size = usize::try_from(piece.nbytes).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at_checked(size).unwrap_or((bytes, &[]));
            part.write(now)?;
            self.given = self.given.saturating_add(now.len() as u64);
            piece.nbytes = piece.nbytes.saturating_sub(now.len() as u64);
            bytes = later;
            self.next_piece()?;
        }
        self.mark_if_due()
    }

    fn resumed(&self) -> Resumed {
        Resumed { bytes: self.resumed, note: self.journal.as_ref().and_then(Journal::note) }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Error> {
        if let Some(piece) = &self.piece {
            let reason = format!("{:?} lacks its last {} bytes", piece.name, piece.nbytes);
            return Err(refused(&self.path, reason));
        }
        let mut files = std::mem::take(&mut self.done);
        match self.journal.take() {
            Some(journal) => {
                // Those of an output that only needed names are among its parts.
                if !journal.is_naming() {
                    files.append(&mut beside(&self.options, true)?);
                }
                journal.commit(files)
            }
            None => {
                files.append(&mut beside(&self.options, false)?);
                commit_all(files)
            }
        }
    }
}

impl Drop for SetWriter {
    fn drop(&mut self) {
        if self.journal.as_ref().is_some_and(Journal::keeps) {
            self.done.iter_mut().for_each(AtomicFile::keep);
            self.current.iter_mut().for_each(|part| part.file.keep());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;

    fn plan(path: PathBuf, header: &[u8], pieces: &[(u64, u64)]) -> FilePlan {
        let piece = |&(nbytes, padding)| Piece { name: "t".into(), nbytes, padding };
        FilePlan { path, header: header.into(), pieces: pieces.iter().map(piece).collect() }
    }

    fn names(dir: &Dir) -> Vec<String> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn two_files(dir: &Dir, force: bool) -> Result<SetWriter, Error> {
        let a = plan(dir.path().join("a"), b"A", &[(3, 1), (0, 2), (2, 0)]);
        let b = plan(dir.path().join("b"), b"BB", &[(0, 0), (4, 5000)]);
        let empty = plan(dir.path().join("c"), b"C", &[]);
        let beside = vec![(dir.path().join("index"), b"{}".to_vec())];
        SetWriter::new(vec![a, b, empty], &WriteOptions { force, beside, ..Default::default() })
    }

    #[test]
    fn whole_set_at_any_cut() {
        for cut in 1..=9 {
            let dir = Dir::new();
            let mut writer = Box::new(two_files(&dir, false).unwrap());
            for part in b"abcdefghi".chunks(cut) {
                writer.append(part).unwrap();
            }
            assert!(
                names(&dir).iter().all(|n| n.ends_with(".part")),
                "nothing is named early: {:?}",
                names(&dir)
            );
            let files = writer.finish().unwrap();
            assert_eq!(files, ["a", "b", "c", "index"].map(|n| dir.path().join(n)));
            assert_eq!(std::fs::read(&files[0]).unwrap(), b"Aabc\0\0\0de");
            let b = std::fs::read(&files[1]).unwrap();
            assert_eq!(b[..6], *b"BBfghi");
            assert_eq!(b[6..], [0; 5000]);
            assert_eq!(std::fs::read(&files[2]).unwrap(), b"C");
            assert_eq!(names(&dir), ["a", "b", "c", "index"]);
        }
    }

    #[test]
    fn nothing_is_left_of_an_unfinished_output() {
        let dir = Dir::new();
        let mut writer = two_files(&dir, false).unwrap();
        writer.append(b"abcdefg").unwrap();
        assert!(!names(&dir).is_empty());
        drop(writer);
        assert_eq!(names(&dir), [""; 0]);
        let mut writer = Box::new(two_files(&dir, false).unwrap());
        writer.append(b"abcdefgh").unwrap();
        assert!(matches!(writer.finish(), Err(Error::Refused { .. })), "a byte is missing");
        assert_eq!(names(&dir), [""; 0]);
        let mut writer = two_files(&dir, false).unwrap();
        assert!(matches!(writer.append(b"abcdefghij"), Err(Error::Refused { .. })), "a byte too many");
    }

    #[test]
    fn existing_files_are_kept_unless_forced() {
        let dir = Dir::new();
        for name in ["a", "b", "c", "index"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "old").unwrap();
            assert!(matches!(two_files(&dir, false), Err(Error::Refused { file, .. }) if file == path));
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::write(dir.path().join("b"), "old").unwrap();
        let mut writer = Box::new(two_files(&dir, true).unwrap());
        writer.append(b"abcdefghi").unwrap();
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"old", "old until it is complete");
        writer.finish().unwrap();
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap().len(), 5006);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_kept_and_the_set_is_taken_back() {
        let dir = Dir::new();
        let mut writer = Box::new(two_files(&dir, false).unwrap());
        writer.append(b"abcdefghi").unwrap();
        std::fs::write(dir.path().join("b"), "someone else's").unwrap();
        assert!(matches!(writer.finish(), Err(Error::Refused { .. })));
        assert_eq!(names(&dir), ["b"]);
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"someone else's");
    }
}
