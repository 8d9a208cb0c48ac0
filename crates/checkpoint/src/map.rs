//! A file that is read by position, and mapped into memory on first need. The crate's only unsafe code is here.
//!
//! A mapped file that another process shortens raises SIGBUS on access beyond its new end, and no Rust code can
//! catch that; one that is overwritten changes under the reader. [`Source::slice`] looks at the file's length, at most
//! once in a millisecond, which turns the usual case into an error, but a race remains. [`Source::read_at`] has no
//! such weakness: a file that became too short is an error there. fonio's own outputs are new files renamed into
//! place, so it never changes a file that is mapped.

use crate::Error;
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a file's length is believed to be what it was: a model's layers are asked for by the hundred in a token.
const BELIEVED: Duration = Duration::from_millis(1);

/// An open regular file, or bytes in memory that stand for one.
pub(crate) struct Source {
    path: PathBuf,
    len: u64,
    backing: Backing,
}

enum Backing {
    File { file: File, map: OnceLock<Mmap>, seen: Seen },
    Memory(Vec<u8>),
}

/// A file's length, and when it was that.
struct Seen {
    opened: Instant,
    /// Nanoseconds after `opened`; the length was seen before it is written here.
    at: AtomicU64,
    len: AtomicU64,
}

impl Seen {
    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The length as it is, or was a moment ago.
    fn len(&self, file: &File) -> std::io::Result<u64> {
        let now = self.now();
        let age = now.saturating_sub(self.at.load(Ordering::Acquire));
        if u128::from(age) < BELIEVED.as_nanos() {
            return Ok(self.len.load(Ordering::Relaxed));
        }
        let len = file.metadata()?.len();
        self.len.store(len, Ordering::Relaxed);
        self.at.store(now, Ordering::Release);
        Ok(len)
    }
}

impl Source {
    /// Opens a regular file: a pipe, device or folder is refused.
    pub(crate) fn open(path: &Path) -> Result<Source, Error> {
        let io = |source| Error::Io { file: path.into(), source };
        let irregular = || Error::Refused { file: path.into(), reason: "not a regular file".into() };
        // Asked before opening as well: opening a pipe that nobody writes to would wait for ever.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(irregular());
        }
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(irregular());
        }
        let seen = Seen { opened: Instant::now(), at: AtomicU64::new(0), len: AtomicU64::new(meta.len()) };
        Ok(Source {
            path: path.into(),
            len: meta.len(),
            backing: Backing::File { file, map: OnceLock::new(), seen },
        })
    }

    /// Takes bytes in memory for a file: tests and fuzzing need no file system.
    pub(crate) fn memory(path: &Path, bytes: Vec<u8>) -> Source {
        Source { path: path.into(), len: bytes.len() as u64, backing: Backing::Memory(bytes) }
    }

    /// Its path, as it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { file: self.path.clone(), source }
    }

    fn too_short(&self, offset: u64) -> Error {
        let reason = format!("the file ends too early; it had {} bytes when it was opened", self.len);
        Error::Corrupt { file: self.path.clone(), tensor: None, offset: Some(offset), reason }
    }

    /// Fills `dst` from byte `offset` on.
    pub(crate) fn read_at(&self, mut offset: u64, mut dst: &mut [u8]) -> Result<(), Error> {
        let file = match &self.backing {
            Backing::File { file, .. } => file,
            Backing::Memory(bytes) => {
                let range = byte_range(offset, dst.len() as u64);
                let src = range.and_then(|r| bytes.get(r)).ok_or_else(|| self.too_short(offset))?;
                dst.copy_from_slice(src);
                return Ok(());
            }
        };
        while !dst.is_empty() {
            match read_some(file, dst, offset) {
                Ok(0) => return Err(self.too_short(offset)),
                Ok(n) => {
                    dst = dst.get_mut(n..).unwrap_or_default();
                    offset = offset.saturating_add(n as u64);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
        }
        Ok(())
    }

    /// Reads `len` bytes into memory of their own. They must lie in the file, so a number read from a hostile file
    /// cannot ask for more memory than the file has bytes.
    pub(crate) fn read_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.too_short(self.len));
        }
        let mut bytes = Vec::new();
        self.append(&mut bytes, offset, len)?;
        Ok(bytes)
    }

    /// Reads on, where `bytes` are the file's first ones, until there are `len` or all.
    pub(crate) fn read_more(&self, bytes: &mut Vec<u8>, len: u64) -> Result<(), Error> {
        let at = bytes.len() as u64;
        self.append(bytes, at, len.min(self.len).saturating_sub(at))
    }

    fn append(&self, bytes: &mut Vec<u8>, offset: u64, len: u64) -> Result<(), Error> {
        let size = usize::try_from(len).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
        let size = size.ok_or_else(|| {
            let reason = format!("no memory for {len} bytes");
            Error::Limit { file: self.path.clone(), tensor: None, reason }
        })?;
        let before = bytes.len();
        bytes.resize(before.saturating_add(size), 0);
        self.read_at(offset, bytes.get_mut(before..).unwrap_or_default())
    }

    /// `len` bytes of the map from byte `offset` on.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Result<&[u8], Error> {
        if len == 0 {
            return Ok(&[]);
        }
        let bytes: &[u8] = match &self.backing {
            Backing::File { file, map, seen } => {
                let now = seen.len(file).map_err(|e| self.io(e))?;
                if offset.checked_add(len).is_none_or(|end| end > now) {
                    return Err(self.too_short(now));
                }
                self.map(file, map)?
            }
            Backing::Memory(bytes) => bytes,
        };
        byte_range(offset, len).and_then(|r| bytes.get(r)).ok_or_else(|| self.too_short(offset))
    }

    fn map<'a>(&self, file: &File, map: &'a OnceLock<Mmap>) -> Result<&'a [u8], Error> {
        if let Some(map) = map.get() {
            return Ok(map);
        }
        // SAFETY: the map is read-only and is dropped with the file. Other processes can still change or shorten
        // the file; the module's header says what is done about it and what is not.
        let new = unsafe { Mmap::map(file) }.map_err(|e| self.io(e))?;
        Ok(map.get_or_init(|| new))
    }
}

fn byte_range(offset: u64, len: u64) -> Option<std::ops::Range<usize>> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    Some(usize::try_from(offset).ok()?..end)
}

#[cfg(unix)]
fn read_some(file: &File, dst: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, dst, offset)
}

#[cfg(windows)]
fn read_some(file: &File, dst: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, dst, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrunk_file_is_an_error() {
        let dir = crate::testing::Dir::new();
        let path = dir.path().join("f");
        std::fs::write(&path, [7u8; 100]).unwrap();
        let source = Source::open(&path).unwrap();
        assert_eq!(source.slice(10, 90).unwrap(), [7u8; 90]);
        assert_eq!(source.slice(100, 0).unwrap(), [0u8; 0]);
        assert!(matches!(source.slice(10, 91), Err(Error::Corrupt { .. })));
        assert!(matches!(source.slice(u64::MAX, 2), Err(Error::Corrupt { .. })));
        let mut buf = [0; 50];
        source.read_at(50, &mut buf).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(60).unwrap();
        assert!(matches!(source.read_at(50, &mut buf), Err(Error::Corrupt { offset: Some(60), .. })));
        std::thread::sleep(BELIEVED);
        assert!(matches!(source.slice(50, 50), Err(Error::Corrupt { .. })));
        assert_eq!(source.slice(50, 10).unwrap(), [7u8; 10]);
    }

    #[test]
    fn only_regular_files() {
        let dir = crate::testing::Dir::new();
        assert!(matches!(Source::open(dir.path()), Err(Error::Refused { .. })));
        assert!(matches!(Source::open(&dir.path().join("none")), Err(Error::Io { .. })));
        #[cfg(unix)]
        assert!(matches!(Source::open(Path::new("/dev/null")), Err(Error::Refused { .. })));
    }

    #[test]
    fn reading_more_than_there_is_allocates_nothing() {
        let source = Source::memory(Path::new("f"), vec![1, 2, 3]);
        assert_eq!(source.read_vec(1, 2).unwrap(), [2, 3]);
        assert!(matches!(source.read_vec(1, u64::MAX), Err(Error::Corrupt { .. })));
        assert!(matches!(source.read_vec(0, 1 << 62), Err(Error::Corrupt { .. })));
    }
}
