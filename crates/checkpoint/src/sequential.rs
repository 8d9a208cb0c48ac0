//! A file that is written from its first byte to its last, past the page cache where the system lets us.
//!
//! What a conversion writes is not read again soon: copying it into the page cache takes the time of two cores from the
//! arithmetic, and the cache is what the source is read from. Whole pages go straight to the disk in large blocks; what
//! is less than a page waits for more, or is written in the common way when all bytes have to be in the file.

use std::fs::File;
use std::io::{ErrorKind, Result, Seek, SeekFrom, Write};
use std::path::Path;

/// Offsets, lengths and addresses of direct writes are multiples of this on every common disk.
const PAGE: usize = 4096;
/// The bits of an offset that are not its page's.
const IN_PAGE: u64 = PAGE as u64 - 1;
/// One request.
const BLOCK: usize = 4 << 20;
/// Memory for a request, wherever its first page begins.
const ROOM: usize = BLOCK + PAGE;

pub(crate) struct Sequential {
    plain: File,
    /// The same file, open for direct writes; asked for with the first whole block.
    direct: Option<File>,
    asked: bool,
    /// Memory with [`BLOCK`] bytes from `start` on, which is a multiple of a page.
    memory: Vec<u8>,
    start: usize,
    /// Bytes in memory that belong at `at` in the file, a multiple of a page.
    len: usize,
    at: u64,
    /// How many of them are in the file already: a last part of a page that was needed there.
    there: usize,
}

impl Sequential {
    /// Goes on at the file's end. It is open for reading if it is not empty.
    pub(crate) fn new(mut plain: File) -> Result<Sequential> {
        let end = plain.seek(SeekFrom::End(0))?;
        let memory = vec![0; ROOM];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        let mut new =
            Sequential { plain, direct: None, asked: false, memory, start, len: 0, at: 0, there: 0 };
        new.go_on(end)?;
        Ok(new)
    }

    /// Takes up the file's last page.
    fn go_on(&mut self, end: u64) -> Result<()> {
        let part = (end & IN_PAGE) as usize;
        self.at = end.saturating_sub(part as u64);
        (self.len, self.there) = (part, part);
        self.plain.seek(SeekFrom::Start(self.at))?;
        let page = self.memory.get_mut(self.start..self.start.saturating_add(part)).unwrap_or_default();
        std::io::Read::read_exact(&mut self.plain, page)
    }

    /// Adds bytes at the end. `path` is where the file can be opened again.
    pub(crate) fn write(&mut self, mut bytes: &[u8], path: Option<&Path>) -> Result<()> {
        while !bytes.is_empty() {
            let from = self.start.saturating_add(self.len);
            let room = self.memory.get_mut(from..self.start.saturating_add(BLOCK)).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room.get_mut(..now.len()).unwrap_or_default().copy_from_slice(now);
            self.len = self.len.saturating_add(now.len());
            bytes = later;
            if self.len == BLOCK {
                if !self.asked {
                    self.asked = true;
                    self.direct = path.and_then(|path| open_direct(path).ok());
                }
                self.write_pages()?;
            }
        }
        Ok(())
    }

    /// Writes the whole pages that are in memory; what is left of them moves to the front.
    fn write_pages(&mut self) -> Result<()> {
        let whole = self.len.saturating_sub(self.len % PAGE);
        let (start, end) = (self.start, self.start.saturating_add(whole));
        let pages = self.memory.get(start..end).unwrap_or_default();
        if whole > 0 {
            let written = match &mut self.direct {
                Some(direct) => write_at(direct, pages, self.at),
                None => write_at(&mut self.plain, pages, self.at),
            };
            match written {
                // Some file systems open a file for direct writes that they cannot do.
                Err(e) if e.kind() == ErrorKind::InvalidInput && self.direct.take().is_some() => {
                    write_at(&mut self.plain, pages, self.at)?;
                }
                other => other?,
            }
        }
        self.memory.copy_within(end..start.saturating_add(self.len), start);
        self.at = self.at.saturating_add(whole as u64);
        self.len = self.len.saturating_sub(whole);
        self.there = if whole > 0 { 0 } else { self.there };
        Ok(())
    }

    /// Puts all bytes into the file.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.write_pages()?;
        if self.len > self.there {
            let part = self.memory.get(self.start..self.start.saturating_add(self.len)).unwrap_or_default();
            write_at(&mut self.plain, part, self.at)?;
            self.there = self.len;
        }
        Ok(())
    }

    /// Cuts the file off, or adds zeros.
    pub(crate) fn set_len(&mut self, len: u64) -> Result<()> {
        self.flush()?;
        self.plain.set_len(len)?;
        self.go_on(len)
    }

    /// Writes over bytes that are in the file.
    pub(crate) fn overwrite(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        self.flush()?;
        write_at(&mut self.plain, bytes, at)?;
        let end = self.at.saturating_add(self.len as u64);
        self.go_on(end)
    }

    /// Brings all bytes to the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.plain.sync_data()
    }

    /// Brings all bytes to the disk, and what is known of the file.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.plain.sync_all()
    }
}

fn write_at(file: &mut File, bytes: &[u8], at: u64) -> Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).custom_flags(libc::O_DIRECT).open(path)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_direct(_: &Path) -> Result<File> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn all_bytes_in_steps_of_any_size() {
        let dir = Dir::new();
        let bytes: Vec<u8> = (0..3 * BLOCK + 5000).map(|i| (i / 7 * 31 + i) as u8).collect();
        for (no, step) in [1usize << 20, BLOCK, BLOCK + 1, 777_777, 3 * BLOCK].into_iter().enumerate() {
            let path = dir.path().join(format!("{no}"));
            let mut out = Sequential::new(open(&path)).unwrap();
            let mut given = 0;
            for (i, part) in bytes.chunks(step).enumerate() {
                out.write(part, Some(&path)).unwrap();
                given += part.len() as u64;
                if i % 3 == 1 {
                    out.sync().unwrap();
                    assert_eq!(std::fs::metadata(&path).unwrap().len(), given);
                }
            }
            out.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "{step}");
        }
    }

    #[test]
    fn goes_on_at_the_end_of_any_length() {
        let dir = Dir::new();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..2 * BLOCK + 99).map(|i| (i * 13 + i / 256) as u8).collect();
        for cut in [0, 1, PAGE - 1, PAGE, PAGE + 1, BLOCK - 1, BLOCK, BLOCK + 7] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut out = Sequential::new(open(&path)).unwrap();
            out.write(&bytes[cut..], Some(&path)).unwrap();
            out.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "{cut}");
        }
    }

    #[test]
    fn cut_off_and_written_over() {
        let dir = Dir::new();
        let path = dir.path().join("f");
        let mut bytes: Vec<u8> = (0..BLOCK + 10_000).map(|i| (i * 7 + i / 999) as u8).collect();
        let mut out = Sequential::new(open(&path)).unwrap();
        out.write(&bytes, Some(&path)).unwrap();
        out.overwrite(b"front", 0).unwrap();
        out.set_len(BLOCK as u64 + 5000).unwrap();
        out.write(b"end", Some(&path)).unwrap();
        out.finish().unwrap();
        bytes[..5].copy_from_slice(b"front");
        bytes.truncate(BLOCK + 5000);
        bytes.extend(b"end");
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
