//! Reading large pieces of files, past the page cache where the system lets us.
//!
//! A model that does not fit goes through memory once for each token: the page cache would only push out what is
//! needed next. Pieces are read in blocks by a few threads, so that the disk always has the next request.

use fonio_checkpoint::Error;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Condvar, Mutex, PoisonError};

/// Offsets, lengths and addresses of direct reads are multiples of this on every common disk.
pub(crate) const PAGE: usize = 4096;
/// One request. Of this size, disks were read fastest here; larger ones tend to be slower.
const BLOCK: usize = 1 << 20;
/// Requests at once. More of them were slower.
const AT_ONCE: usize = 2;

/// A file that is read by position.
pub trait ReadAt: Send + Sync {
    /// Reads some bytes from `offset` on; fewer than `dst` has at the end, or when it pleases.
    fn read_at(&self, dst: &mut [u8], offset: u64) -> IoResult<usize>;
}

impl ReadAt for File {
    #[cfg(unix)]
    fn read_at(&self, dst: &mut [u8], offset: u64) -> IoResult<usize> {
        std::os::unix::fs::FileExt::read_at(self, dst, offset)
    }
    #[cfg(windows)]
    fn read_at(&self, dst: &mut [u8], offset: u64) -> IoResult<usize> {
        std::os::windows::fs::FileExt::seek_read(self, dst, offset)
    }
}

/// Opens a file; past the page cache if the flag is set and the system can.
pub type Open = dyn Fn(&Path, bool) -> IoResult<Box<dyn ReadAt>> + Send + Sync;

/// Opens files of the file system.
pub(crate) fn open(path: &Path, direct: bool) -> IoResult<Box<dyn ReadAt>> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    if direct {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return Err(ErrorKind::Unsupported.into());
    }
    Ok(Box::new(options.open(path)?))
}

/// Memory whose beginning is aligned for direct reads.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Room for `len` bytes; what they are is anything.
    pub(crate) fn room(&mut self, len: usize) -> IoResult<&mut [u8]> {
        let whole = len.checked_add(PAGE).ok_or(ErrorKind::OutOfMemory)?;
        if self.bytes.len() < whole {
            // The old memory goes first: both at once would not be in anybody's budget.
            self.bytes = Vec::new();
            self.bytes.try_reserve_exact(whole).map_err(|_| ErrorKind::OutOfMemory)?;
            self.bytes.resize(whole, 0);
            self.start = self.bytes.as_ptr().align_offset(PAGE).min(PAGE);
        }
        self.len = len;
        Ok(&mut self.bytes[self.start..self.start + len])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// Lets so many requests through at once, whoever makes them: the last blocks of one part and the first of the next
/// keep the disk as busy as those between.
struct Gate {
    free: Mutex<usize>,
    changed: Condvar,
}

struct Permit<'a>(&'a Gate);

impl Gate {
    fn enter(&self) -> Permit<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}

/// The files of a checkpoint, open for large reads.
pub(crate) struct Files {
    files: Vec<Opened>,
    gate: Gate,
}

struct Opened {
    path: PathBuf,
    plain: Box<dyn ReadAt>,
    direct: Option<Box<dyn ReadAt>>,
    /// Direct reads turned out not to work here.
    indirect: AtomicBool,
}

impl Files {
    pub(crate) fn open(paths: &[PathBuf], open: &Open) -> Result<Files, Error> {
        let files = paths.iter().map(|path| {
            let plain = open(path, false).map_err(|source| Error::Io { file: path.clone(), source })?;
            let direct = open(path, true).ok();
            Ok(Opened { path: path.clone(), plain, direct, indirect: AtomicBool::new(false) })
        });
        let gate = Gate { free: Mutex::new(AT_ONCE), changed: Condvar::new() };
        Ok(Files { files: files.collect::<Result<_, _>>()?, gate })
    }

    /// Whether reads go past the page cache.
    pub(crate) fn are_direct(&self) -> bool {
        self.files.iter().all(|f| f.direct.is_some() && !f.indirect.load(Ordering::Relaxed))
    }

    /// Reads bytes `offset .. offset + len` of a file and gives their place in `buffer`, which gets whole pages around
    /// them. `name` is what they are, for errors; `seen` gets them from the first to the last, while others are read.
    pub(crate) fn read(
        &self,
        (file, offset, len): (usize, u64, u64),
        buffer: &mut Buffer,
        name: &str,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, Error> {
        let Some(file) = self.files.get(file) else {
            return Err(Error::Refused { file: PathBuf::new(), reason: format!("{name}: file {file}") });
        };
        let io = |source: IoError| Error::Io { file: file.path.clone(), source };
        let first = offset / PAGE as u64 * PAGE as u64;
        let skew = (offset - first) as usize;
        let need = usize::try_from(len).ok().and_then(|n| n.checked_add(skew)).ok_or(ErrorKind::OutOfMemory);
        let need = need.map_err(|e| io(e.into()))?;
        let dst = buffer.room(need.next_multiple_of(PAGE)).map_err(io)?;
        file.blocks(&self.gate, dst, first, need, &mut |at, block| {
            let from = skew.saturating_sub(at).min(block.len());
            seen(&block[from..block.len().min(need - at)]);
        })
        .map_err(|(at, e)| match e.kind() {
            ErrorKind::UnexpectedEof => Error::Corrupt {
                file: file.path.clone(),
                tensor: Some(name.into()),
                offset: Some(at),
                reason: "the file ends too early; was it changed while the model ran?".into(),
            },
            kind => io(IoError::new(kind, format!("{name}, at byte {at}: {e}"))),
        })?;
        Ok(skew)
    }
}

/// Where reading failed, and why.
type Failed = (u64, IoError);

impl Opened {
    /// Fills blocks from `first` on, up to `need` bytes, a few at once. `done` gets each with its place, in order.
    fn blocks(
        &self,
        gate: &Gate,
        dst: &mut [u8],
        first: u64,
        need: usize,
        done: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Failed> {
        if need <= BLOCK {
            let permit = gate.enter();
            self.fill(dst, need, first)?;
            drop(permit);
            done(0, dst);
            return Ok(());
        }
        let blocks = Mutex::new(dst.chunks_mut(BLOCK).enumerate());
        let next = || blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            let (send, receive) = channel::<Result<(usize, &mut [u8]), Failed>>();
            for _ in 0..AT_ONCE {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    // Kept until the part has no more blocks, so that what is read first is whole first.
                    let _permit = gate.enter();
                    while let Some((i, block)) = next() {
                        let at = i * BLOCK;
                        let filled = self.fill(block, (need - at).min(block.len()), first + at as u64);
                        let failed = filled.is_err();
                        // Nobody listens after an error.
                        if send.send(filled.map(|()| (i, block))).is_err() || failed {
                            return;
                        }
                    }
                });
            }
            drop(send);
            let (mut early, mut expected) = (BTreeMap::new(), 0);
            for filled in receive {
                let (i, block) = filled?;
                early.insert(i, block);
                while let Some(block) = early.remove(&expected) {
                    done(expected * BLOCK, block);
                    expected += 1;
                }
            }
            Ok(())
        })
    }

    /// Fills at least the first `need` bytes of a block of whole pages.
    fn fill(&self, block: &mut [u8], need: usize, offset: u64) -> Result<(), Failed> {
        let mut done = 0;
        while done < need {
            let at = offset + done as u64;
            // After a short read the rest is no whole pages.
            let direct = self.direct.as_ref().filter(|_| done.is_multiple_of(PAGE));
            let direct = direct.filter(|_| !self.indirect.load(Ordering::Relaxed));
            let read = match direct {
                Some(file) => file.read_at(&mut block[done..], at),
                None => self.plain.read_at(&mut block[done..need], at),
            };
            match read {
                Ok(0) => return Err((at, ErrorKind::UnexpectedEof.into())),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Some file systems open a file for direct reads that they cannot do.
                Err(e) if e.kind() == ErrorKind::InvalidInput && direct.is_some() => {
                    self.indirect.store(true, Ordering::Relaxed);
                }
                Err(e) => return Err((at, e)),
            }
        }
        Ok(())
    }
}
