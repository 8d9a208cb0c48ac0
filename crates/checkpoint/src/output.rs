//! Output that is there whole or not at all.
//!
//! A file is written under a temporary name beside its own (`.NAME.PID-N.part`), flushed to the disk, renamed, and
//! its folder flushed. A set of files has all its temporaries complete before the first is renamed, and the file
//! that names the others (an index) comes last. Whatever goes wrong before, dropping the output removes the
//! temporaries. Only a killed process leaves them; they never have the output's name.
//!
//! Outputs that take long can be gone on with: their temporaries have names that the next process finds
//! (`.NAME.part`), and a journal beside them: see [`crate::journal`].

use crate::Error;
use crate::sequential::Sequential;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest name that a temporary's own is made of; names have mostly 255 bytes, and what is added must fit too.
const MAX_NAME: usize = 200;

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

pub(crate) fn refused(file: &Path, reason: impl Into<String>) -> Error {
    Error::Refused { file: file.into(), reason: reason.into() }
}

/// Refuses to write where something is already: a file unless `force`, anything else always.
pub(crate) fn check_free(path: &Path, force: bool) -> Result<(), Error> {
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
    out: Option<Sequential>,
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
            match OpenOptions::new().read(true).write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let temporary = Temporary(Some(temporary));
                    let mut new = AtomicFile { target: path.into(), force, temporary, out: None };
                    new.out = Some(Sequential::new(file).map_err(|e| new.io(e))?);
                    return Ok(new);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { file: path.into(), source }),
            }
        }
        Err(refused(path, "no free temporary name beside it"))
    }

    /// Begins a file, or opens what there is of it at its end, under the name that [`part_path`] gives.
    pub(crate) fn part(path: &Path, force: bool, anew: bool) -> Result<AtomicFile, Error> {
        let io = |source| Error::Io { file: path.into(), source };
        let temporary = part_path(path)?;
        let opened = OpenOptions::new().read(true).write(true).create(anew).truncate(anew).open(&temporary);
        let out = Some(opened.and_then(Sequential::new).map_err(io)?);
        Ok(AtomicFile { target: path.into(), force, temporary: Temporary(Some(temporary)), out })
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { file: self.target.clone(), source }
    }

    /// Leaves the temporary in place when this is dropped.
    pub(crate) fn keep(&mut self) {
        self.temporary.0 = None;
    }

    /// Brings what was written so far to the disk.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        let result = match &mut self.out {
            Some(out) => out.sync(),
            None => Ok(()),
        };
        result.map_err(|e| self.io(e))
    }

    /// Cuts the file off.
    pub(crate) fn cut(&mut self, len: u64) -> Result<(), Error> {
        let result = match &mut self.out {
            Some(out) => out.set_len(len),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        result.map_err(|e| self.io(e))
    }

    /// Writes over the first bytes.
    pub(crate) fn overwrite_front(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.out {
            Some(out) => out.overwrite(bytes, 0),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        result.map_err(|e| self.io(e))
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.out {
            Some(out) => out.write(bytes, self.temporary.0.as_deref()),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        result.map_err(|e| self.io(e))
    }

    /// Brings all bytes to the disk. Nothing can be added after it.
    pub(crate) fn seal(&mut self) -> Result<(), Error> {
        let Some(out) = self.out.take() else { return Ok(()) };
        out.finish().map_err(|e| self.io(e))
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

/// The name of a temporary that the next process finds: `.NAME.part` beside the file.
pub(crate) fn part_path(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().ok_or_else(|| refused(path, "not a file name"))?;
    if name.len() <= MAX_NAME
        && let Some(name) = name.to_str()
    {
        return Ok(path.with_file_name(format!(".{name}.part")));
    }
    let sum = twox_hash::XxHash3_64::oneshot(name.as_encoded_bytes());
    let short: String = name.to_string_lossy().chars().take(50).collect();
    Ok(path.with_file_name(format!(".{short}.{sum:016x}.part")))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;

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
