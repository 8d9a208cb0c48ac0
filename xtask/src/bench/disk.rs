//! What the disk under a file can do, and how much of a file is in the page cache.

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What direct reads are aligned to: no disk's sectors are larger.
const ALIGN: usize = 4096;
/// Numbers of threads, and MiB of a read, that are tried.
const THREADS: [usize; 3] = [1, 2, 4];
const MEBIBYTES: [usize; 4] = [1, 4, 8, 16];

/// One way to read, and how fast it is.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub threads: usize,
    /// Bytes of a read.
    pub block: usize,
    /// Bytes per second.
    pub rate: f64,
}

/// Reads the file directly in every way, each for `limit` at most.
pub fn readings(path: &Path, limit: Duration) -> io::Result<Vec<Reading>> {
    let ways = THREADS.into_iter().flat_map(|threads| MEBIBYTES.map(|m| (threads, m << 20)));
    ways.map(|(threads, block)| {
        let rate = direct(path, threads, block, limit)?;
        Ok(Reading { threads, block, rate })
    })
    .collect()
}

impl Reading {
    /// The file read once more in this way.
    pub fn again(self, path: &Path, limit: Duration) -> io::Result<Reading> {
        Ok(Reading { rate: direct(path, self.threads, self.block, limit)?, ..self })
    }
}

/// Bytes per second of direct reads (`O_DIRECT`, past the page cache) from the file's beginning on. Threads take the
/// blocks in order.
fn direct(path: &Path, threads: usize, block: usize, limit: Duration) -> io::Result<f64> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
    let (next, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let read = || -> io::Result<()> {
        let mut buffer = vec![0u8; block + ALIGN];
        let skip = buffer.as_ptr().align_offset(ALIGN);
        let buffer = &mut buffer[skip..skip + block];
        while started.elapsed() < limit {
            let n = file.read_at(buffer, next.fetch_add(1, Ordering::Relaxed) * block as u64)?;
            total.fetch_add(n as u64, Ordering::Relaxed);
            if n < block {
                break;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("reading does not panic"))
    })?;
    Ok(total.into_inner() as f64 / started.elapsed().as_secs_f64())
}

/// Takes a file out of the page cache, and gives how many bytes of it are still there, if `fincore` (of util-linux) is
/// there to tell.
pub fn evict(path: &Path) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    // Pages that are not written yet would stay.
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(cached(path))
}

fn cached(path: &Path) -> Option<u64> {
    let output =
        Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the build folder: folders for temporary files may be in memory, where nothing is read directly.
    fn file(len: usize) -> tempfile::NamedTempFile {
        let program = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        std::fs::write(file.path(), vec![7u8; len]).unwrap();
        file
    }

    #[test]
    fn every_way_reads() {
        let file = file((3 << 20) + 5);
        match readings(file.path(), Duration::from_secs(10)) {
            Ok(readings) => {
                assert_eq!(readings.len(), THREADS.len() * MEBIBYTES.len());
                assert!(readings.iter().all(|r| r.rate > 0.0), "{readings:?}");
            }
            // A file system without direct reads.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{e}"),
        }
    }

    #[test]
    fn evicted_files_are_not_cached() {
        let file = file(4 << 20);
        let before = cached(file.path());
        let left = evict(file.path()).unwrap();
        assert_eq!(before.is_some(), left.is_some());
        if let (Some(before), Some(left)) = (before, left) {
            assert!(left < before, "{left} of {before}");
        }
    }
}
