//! Output that is there whole or not at all.
//!
//! A file is written under a temporary name beside its own (`.NAME.PID-N.part`), flushed to the disk, renamed, and
//! its folder flushed. A set of files has all its temporaries complete before the first is renamed, and the file
//! that names the others (an index) comes last. Whatever goes wrong before, dropping the output removes the
//! temporaries. Only a killed process leaves them; they never have the output's name.

use crate::{Error, Writer};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const BUFFER: usize = 1 << 20;

/// Whether both are there and are one file, also by way of links.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        id(a).is_some_and(|a| Some(a) == id(b))
    }
    #[cfg(not(unix))]
    {
        let full = |path: &Path| std::fs::canonicalize(path).ok();
        full(a).is_some_and(|a| Some(a) == full(b))
    }
}

/// Refuses an output that is one of the files that are read for it.
pub fn refuse_source(output: &Path, sources: &[PathBuf]) -> Result<(), Error> {
    match sources.iter().any(|source| same_file(output, source)) {
        true => Err(refused(output, "the output is also the source")),
        false => Ok(()),
    }
}

fn refused(file: &Path, reason: impl Into<String>) -> Error {
    Error::Refused { file: file.into(), reason: reason.into() }
}

/// Refuses to write where something is already: a file unless `force`, anything else always.
fn check_free(path: &Path, force: bool) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { file: path.into(), source }),
        // A link is replaced like a file; what it points to stays.
        Ok(meta) if !meta.is_file() && !meta.is_symlink() => {
            Err(refused(path, "there, and not a regular file"))
        }
        Ok(_) if !force => Err(refused(path, "already there; it is replaced only if that is forced")),
        Ok(_) => Ok(()),
    }
}

/// A file that gets its name when it is complete. Dropped before [`AtomicFile::commit`], it leaves nothing behind.
pub struct AtomicFile {
    target: PathBuf,
    force: bool,
    temporary: Temporary,
    out: Option<BufWriter<File>>,
}

/// Removes the file on drop.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Nobody is left to tell if even this fails.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl AtomicFile {
    /// Begins a file. One that is already there is refused unless `force`.
    pub fn create(path: &Path, force: bool) -> Result<AtomicFile, Error> {
        check_free(path, force)?;
        let name = path.file_name().ok_or_else(|| refused(path, "not a file name"))?;
        // Names have mostly 255 bytes; what is added must fit too.
        let name: String = name.to_string_lossy().chars().take(50).collect();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..1000 {
            let unique =
                format!(".{name}.{}-{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let temporary = path.with_file_name(unique);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let out = Some(BufWriter::with_capacity(BUFFER, file));
                    let temporary = Temporary(Some(temporary));
                    return Ok(AtomicFile { target: path.into(), force, temporary, out });
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { file: path.into(), source }),
            }
        }
        Err(refused(path, "no free temporary name beside it"))
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { file: self.target.clone(), source }
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.out {
            Some(out) => out.write_all(bytes),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        result.map_err(|e| self.io(e))
    }

    /// Brings all bytes to the disk. Nothing can be added after it.
    fn seal(&mut self) -> Result<(), Error> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let synced = out.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|f| f.sync_all());
        synced.map_err(|e| self.io(e))
    }

    /// Renames; tells whether something of that name was replaced. The folder is flushed by the caller.
    fn place(&mut self) -> Result<bool, Error> {
        self.seal()?;
        check_free(&self.target, self.force)?;
        let replaces = std::fs::symlink_metadata(&self.target).is_ok();
        if let Some(temporary) = &self.temporary.0 {
            std::fs::rename(temporary, &self.target).map_err(|e| self.io(e))?;
        }
        self.temporary.0 = None;
        Ok(replaces)
    }

    /// Gives the file its name, durably.
    pub fn commit(self) -> Result<PathBuf, Error> {
        let target = self.target.clone();
        commit_all(vec![self])?;
        Ok(target)
    }
}

/// Gives all files their names, in order. If one cannot be named, those named before it are removed again, except
/// where they replaced something.
pub fn commit_all(mut files: Vec<AtomicFile>) -> Result<Vec<PathBuf>, Error> {
    files.iter_mut().try_for_each(AtomicFile::seal)?;
    let mut placed: Vec<(PathBuf, bool)> = Vec::new();
    for file in &mut files {
        match file.place() {
            Ok(replaced) => placed.push((file.target.clone(), replaced)),
            Err(error) => {
                for (path, _) in placed.iter().filter(|(_, replaced)| !replaced) {
                    let _ = std::fs::remove_file(path);
                }
                return Err(error);
            }
        }
    }
    let paths: Vec<PathBuf> = placed.into_iter().map(|(path, _)| path).collect();
    let mut folders: Vec<&Path> = paths.iter().filter_map(|path| path.parent()).collect();
    folders.dedup();
    folders.into_iter().try_for_each(sync_folder)?;
    Ok(paths)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<(), Error> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match File::open(folder).and_then(|f| f.sync_all()) {
        // Some network file systems cannot flush folders; they write them through.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result.map_err(|source| Error::Io { file: folder.into(), source }),
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<(), Error> {
    Ok(())
}

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

/// Writes planned files one after the other and names them all at the end: the [`Writer`] of every container.
pub(crate) struct SetWriter {
    plans: std::vec::IntoIter<FilePlan>,
    /// File that names the others, with its text.
    index: Option<(PathBuf, Vec<u8>)>,
    force: bool,
    current: Option<AtomicFile>,
    pieces: std::vec::IntoIter<Piece>,
    piece: Option<Piece>,
    done: Vec<AtomicFile>,
    path: PathBuf,
}

impl SetWriter {
    /// Begins the first file, so that a folder that cannot be written to is known at once.
    pub(crate) fn new(
        plans: Vec<FilePlan>,
        index: Option<(PathBuf, Vec<u8>)>,
        force: bool,
    ) -> Result<SetWriter, Error> {
        for path in plans.iter().map(|plan| &plan.path).chain(index.iter().map(|(path, _)| path)) {
            check_free(path, force)?;
        }
        let path = plans.first().map(|plan| plan.path.clone()).unwrap_or_default();
        let pieces = Vec::new().into_iter();
        let plans = plans.into_iter();
        let mut writer =
            SetWriter { plans, index, force, current: None, pieces, piece: None, done: Vec::new(), path };
        writer.next_file()?;
        Ok(writer)
    }

    fn next_file(&mut self) -> Result<(), Error> {
        if let Some(mut file) = self.current.take() {
            file.seal()?;
            self.done.push(file);
        }
        let Some(plan) = self.plans.next() else { return Ok(()) };
        let mut file = AtomicFile::create(&plan.path, self.force)?;
        file.write(&plan.header)?;
        self.path = plan.path;
        self.pieces = plan.pieces.into_iter();
        self.current = Some(file);
        self.next_piece()
    }

    /// Goes on to the next piece that still needs bytes, or to the end of everything.
    fn next_piece(&mut self) -> Result<(), Error> {
        while let Some(file) = &mut self.current {
            if self.piece.as_ref().is_some_and(|piece| piece.nbytes > 0) {
                return Ok(());
            }
            if let Some(piece) = self.piece.take() {
                pad(file, piece.padding)?;
            }
            self.piece = self.pieces.next();
            if self.piece.is_none() {
                return self.next_file();
            }
        }
        Ok(())
    }
}

fn pad(file: &mut AtomicFile, mut count: u64) -> Result<(), Error> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let zeros = ZEROS.get(..usize::try_from(count).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
        file.write(zeros)?;
        count = count.saturating_sub(zeros.len() as u64);
    }
    Ok(())
}

impl Writer for SetWriter {
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (Some(file), Some(piece)) = (&mut self.current, &mut self.piece) else {
                return Err(refused(&self.path, format!("{} bytes more than were planned", bytes.len())));
            };
            let size = usize::try_from(piece.nbytes).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at_checked(size).unwrap_or((bytes, &[]));
            file.write(now)?;
            piece.nbytes = piece.nbytes.saturating_sub(now.len() as u64);
            bytes = later;
            self.next_piece()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Error> {
        if let Some(piece) = &self.piece {
            let reason = format!("{:?} lacks its last {} bytes", piece.name, piece.nbytes);
            return Err(refused(&self.path, reason));
        }
        let mut files = std::mem::take(&mut self.done);
        if let Some((path, text)) = self.index.take() {
            let mut file = AtomicFile::create(&path, self.force)?;
            file.write(&text)?;
            files.push(file);
        }
        commit_all(files)
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
        SetWriter::new(vec![a, b, empty], Some((dir.path().join("index"), b"{}".to_vec())), force)
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
        assert!(matches!(AtomicFile::create(dir.path(), true), Err(Error::Refused { .. })), "a folder");
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

    #[test]
    fn the_same_file_under_other_names() {
        let dir = Dir::new();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "a").unwrap();
        assert!(same_file(&a, &dir.path().join(".").join("a")));
        assert!(!same_file(&a, &b) && !same_file(&b, &b));
        assert!(refuse_source(&b, std::slice::from_ref(&a)).is_ok());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&a, &b).unwrap();
            assert!(same_file(&a, &b));
        }
        std::fs::hard_link(&a, dir.path().join("c")).unwrap();
        assert!(same_file(&a, &dir.path().join("c")));
        let refused = refuse_source(&dir.path().join("c"), &[b, a]);
        assert!(matches!(refused, Err(Error::Refused { .. })));
    }
}
