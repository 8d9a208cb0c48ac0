//! Sections: parts of the file that have a checksum, and may be compressed.

use crate::Error;
use crate::map::Source;
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A byte of LZ4 stands for at most so many.
const LZ4_RATIO: u64 = 255;

/// A part of the file.
pub(super) struct Section {
    /// What errors call it.
    pub name: String,
    pub offset: u64,
    /// Bytes in the file.
    pub stored: u64,
    /// Bytes when it is decompressed.
    pub len: u64,
    /// Whether it is one raw LZ4 block.
    pub lz4: bool,
    /// CRC-32 of what is in the file.
    pub crc: u32,
    /// CRC-32 of what it is decompressed.
    pub plain_crc: Option<u32>,
    /// Whether a section that is not compressed was found right.
    pub checked: AtomicBool,
}

/// The sections of a file, and the compressed one that was read last.
pub(super) struct Sections {
    source: Source,
    all: Vec<Section>,
    last: Mutex<Option<(usize, Arc<Vec<u8>>)>>,
}

impl Section {
    fn corrupt(&self, source: &Source, reason: String) -> Error {
        let (file, offset) = (source.path().into(), Some(self.offset));
        Error::Corrupt { file, tensor: None, offset, reason: format!("{}: {reason}", self.name) }
    }

    fn compare(&self, source: &Source, what: &str, got: u32, want: u32) -> Result<(), Error> {
        if got == want {
            return Ok(());
        }
        Err(self.corrupt(source, format!("the checksum {what} is {got:08x}, it should be {want:08x}")))
    }

    /// Compares the checksum of what is in the file, a piece at a time.
    fn check_stored(&self, source: &Source) -> Result<(), Error> {
        const PIECE: u64 = 1 << 20;
        let mut hasher = crc32fast::Hasher::new();
        let mut piece = vec![0; usize::try_from(self.stored.min(PIECE)).unwrap_or(0)];
        let mut at = 0;
        while at < self.stored {
            let n = usize::try_from(self.stored.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let part = piece.get_mut(..n).unwrap_or_default();
            source.read_at(self.offset.saturating_add(at), part)?;
            hasher.update(part);
            at = at.saturating_add(n as u64);
        }
        self.compare(source, "of its bytes", hasher.finalize(), self.crc)
    }

    /// Refuses sizes that cannot be, before anything is allocated.
    pub(super) fn check_sizes(&self, source: &Source) -> Result<(), Error> {
        if self.offset.checked_add(self.stored).is_none_or(|end| end > source.len()) {
            let (stored, len) = (self.stored, source.len());
            return Err(
                self.corrupt(source, format!("its {stored} bytes go past the end of the file, {len}"))
            );
        }
        let most = if self.lz4 { self.stored.saturating_mul(LZ4_RATIO) } else { self.stored };
        if self.len > most || (!self.lz4 && self.len != self.stored) {
            let (len, stored) = (self.len, self.stored);
            return Err(self.corrupt(source, format!("{stored} bytes cannot hold {len}")));
        }
        Ok(())
    }

    fn decompress(&self, source: &Source) -> Result<Vec<u8>, Error> {
        let stored = source.read_vec(self.offset, self.stored)?;
        self.compare(source, "of its bytes", crc32fast::hash(&stored), self.crc)?;
        let mut plain = Vec::new();
        let len = usize::try_from(self.len).ok().filter(|&n| plain.try_reserve_exact(n).is_ok());
        let len = len.ok_or_else(|| {
            let reason = format!("{}: no memory for {} bytes", self.name, self.len);
            Error::Limit { file: source.path().into(), tensor: None, reason }
        })?;
        plain.resize(len, 0);
        match lz4_flex::block::decompress_into(&stored, &mut plain) {
            Ok(n) if n == len => {}
            Ok(n) => return Err(self.corrupt(source, format!("it holds {n} bytes, not {len}"))),
            Err(e) => return Err(self.corrupt(source, format!("it is no LZ4 block: {e}"))),
        }
        if let Some(want) = self.plain_crc {
            self.compare(source, "of what it holds", crc32fast::hash(&plain), want)?;
        }
        Ok(plain)
    }
}

impl Sections {
    pub(super) fn new(source: Source) -> Sections {
        Sections { source, all: Vec::new(), last: Mutex::new(None) }
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Adds a section whose sizes can be, and gives its number.
    pub(super) fn add(&mut self, section: Section) -> Result<usize, Error> {
        section.check_sizes(&self.source)?;
        self.all.push(section);
        Ok(self.all.len().saturating_sub(1))
    }

    fn get(&self, section: usize) -> Result<&Section, Error> {
        self.all.get(section).ok_or_else(|| Error::Refused {
            file: self.source.path().into(),
            reason: format!("there is no section number {section}"),
        })
    }

    /// A compressed section's content.
    fn plain(&self, number: usize, section: &Section) -> Result<Arc<Vec<u8>>, Error> {
        // Held while it is decompressed, so that threads that want the same section wait for one copy of it. A thread
        // that panicked elsewhere leaves a whole value or none.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plain)) = last.as_ref().filter(|(at, _)| *at == number) {
            return Ok(plain.clone());
        }
        *last = None;
        let plain = Arc::new(section.decompress(&self.source)?);
        *last = Some((number, plain.clone()));
        Ok(plain)
    }

    fn ensure(&self, section: &Section) -> Result<(), Error> {
        if !section.checked.load(Ordering::Acquire) {
            section.check_stored(&self.source)?;
            section.checked.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn check_range(&self, section: &Section, at: u64, len: u64) -> Result<(), Error> {
        if at.checked_add(len).is_some_and(|end| end <= section.len) {
            return Ok(());
        }
        let all = section.len;
        Err(section.corrupt(&self.source, format!("{len} bytes at {at} go past its end, {all}")))
    }

    /// Fills `dst` from byte `at` of a section on, once its checksum is right.
    pub(super) fn read(&self, number: usize, at: u64, dst: &mut [u8]) -> Result<(), Error> {
        let section = self.get(number)?;
        if !section.lz4 {
            self.ensure(section)?;
        }
        self.peek(number, at, dst)
    }

    /// The same before the checksum of a section that is not compressed was compared: for the headers of tensors, which
    /// are read when a file is opened.
    pub(super) fn peek(&self, number: usize, at: u64, dst: &mut [u8]) -> Result<(), Error> {
        let section = self.get(number)?;
        self.check_range(section, at, dst.len() as u64)?;
        if !section.lz4 {
            return self.source.read_at(section.offset.saturating_add(at), dst);
        }
        let plain = self.plain(number, section)?;
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        if let Some(src) = plain.get(from..).and_then(|b| b.get(..dst.len())) {
            dst.copy_from_slice(src);
        }
        Ok(())
    }

    /// `len` bytes of a section from `at` on, borrowed if it is not compressed.
    pub(super) fn slice(&self, number: usize, at: u64, len: u64) -> Result<Cow<'_, [u8]>, Error> {
        let section = self.get(number)?;
        self.check_range(section, at, len)?;
        if !section.lz4 {
            self.ensure(section)?;
            return Ok(Cow::Borrowed(self.source.slice(section.offset.saturating_add(at), len)?));
        }
        let plain = self.plain(number, section)?;
        let range = usize::try_from(at).ok().zip(usize::try_from(len).ok());
        let bytes = range.and_then(|(at, len)| plain.get(at..)?.get(..len)).unwrap_or_default();
        Ok(Cow::Owned(bytes.to_vec()))
    }

    /// Compares all checksums anew; how many there are.
    pub(super) fn verify(&self) -> Result<usize, Error> {
        let mut n = 0usize;
        for section in &self.all {
            if section.lz4 {
                drop(section.decompress(&self.source)?);
            } else {
                section.check_stored(&self.source)?;
                // Nothing was compressed, so the second sum is of the same bytes.
                if let Some(want) = section.plain_crc {
                    section.compare(&self.source, "of what it holds", section.crc, want)?;
                }
            }
            n = n.saturating_add(1).saturating_add(usize::from(section.plain_crc.is_some()));
        }
        Ok(n)
    }
}
