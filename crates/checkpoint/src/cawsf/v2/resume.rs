//! How a file is gone on with: what its journal's lines say besides lengths.
//!
//! INDEX comes last in a file, so the journal has it until then: each line the tensors and shards since the one before,
//! as INDEX will list them, and a note of whoever makes the file, both in hexadecimal digits.

use super::super::unpack::{self, Packing};
use super::index::{self, Index, Kind};
use super::write::Writer;
use crate::cursor::Cursor;
use crate::journal::{Begin, Journal, Mark, Part};
use crate::output::{check_free, part_path};
use crate::set::fingerprint;
use crate::{Error, Resume, Resumed, WriteOptions};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

impl Writer {
    /// Begins a file that can be gone on with, or goes on with one, after what [`Writer::complete`] says and
    /// [`Writer::codebooks`] codebooks.
    pub fn resumable(path: &Path, force: bool, packing: Packing, resume: &Resume) -> Result<Writer, Error> {
        let options = WriteOptions { resume: Some(resume.clone()), ..WriteOptions::default() };
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let how = [2, index::packing_number(packing)];
        let plan = fingerprint(&options, [name, b"cawsf", &how].into_iter());
        let (journal, begin) = Journal::open(vec![path.into()], plan, resume)?;
        let mut writer = Writer::empty(path, force, packing);
        if let Begin::Naming(marks) = &begin {
            journal.check_free(force)?;
            writer.restore(marks);
            writer.journal = Some(journal);
            return Ok(writer);
        }
        check_free(path, force)?;
        writer.journal = Some(journal);
        if let Begin::After(marks) = begin
            && writer.go_on(marks, plan)?
        {
            return Ok(writer);
        }
        writer.begin()?;
        Ok(writer)
    }

    /// Takes up an earlier process's part after its last good mark, unless there is none.
    fn go_on(&mut self, marks: Vec<Mark>, plan: u64) -> Result<bool, Error> {
        let Some(journal) = &mut self.journal else { return Ok(false) };
        let (marks, hasher) = journal.verify(marks, 0)?;
        if !self.restore(&marks) {
            if let Some(journal) = &mut self.journal {
                journal.restart(plan)?;
            }
            return Ok(false);
        }
        self.part = Some(Part::reopen(&self.path, self.force, self.resumed, 0, hasher)?);
        Ok(true)
    }

    /// Remembers what marks say, if they say anything.
    fn restore(&mut self, marks: &[Mark]) -> bool {
        let (mut found, mut notes) = (Index::default(), Vec::new());
        for mark in marks {
            let Some(note) = unhex(&mark.state).and_then(|state| listed(&mut found, &state)) else {
                return false;
            };
            notes.push(note);
        }
        let Some(last) = marks.last() else { return false };
        let codebooks = found.shards.iter().filter(|s| s.kind == Kind::Codebook).count();
        self.codebooks = u32::try_from(codebooks).unwrap_or(u32::MAX);
        self.marked = (found.tensors.len(), found.shards.len());
        (self.index, self.notes, self.resumed) = (found, notes, last.len);
        true
    }

    /// What an earlier process had written.
    pub fn resumed(&self) -> Resumed {
        Resumed { bytes: self.resumed, note: self.journal.as_ref().and_then(Journal::note) }
    }

    /// What an earlier process noted with its marks.
    pub fn notes(&self) -> &[Vec<u8>] {
        &self.notes
    }

    /// How many tensors are complete, and how many matrices there are of a stack behind them.
    pub fn complete(&self) -> (usize, u64) {
        let all = self.index.tensors.len();
        let Some(matrices) = self.index.tensors.last().and_then(index::Tensor::stacked) else {
            return (all, 0);
        };
        let before = all.saturating_sub(1);
        let own = self.index.shards.iter().filter(|s| s.kind != Kind::Codebook && s.scope as usize == before);
        let there = own.map(|s| u64::from(s.matrix).saturating_add(1)).max().unwrap_or(0);
        if there < matrices { (before, there) } else { (all, 0) }
    }

    /// How many codebooks there are so far.
    pub fn codebooks(&self) -> u32 {
        self.codebooks
    }

    /// Whether so much was written that [`Writer::mark`] is worth bringing it to the disk.
    pub fn is_due(&self) -> bool {
        let len = self.len();
        self.journal.as_ref().is_some_and(|journal| journal.is_due(len))
    }

    /// Makes this a point to go on from: all tensors are complete, of a stack all matrices that were begun, and `note` is
    /// given to the process that goes on.
    pub fn mark(&mut self, note: &[u8]) -> Result<(), Error> {
        self.whole_is_complete()?;
        let now = (self.index.tensors.len(), self.index.shards.len());
        let (Some(journal), Some(part)) = (&mut self.journal, &mut self.part) else { return Ok(()) };
        if now == self.marked && note.is_empty() {
            return Ok(());
        }
        let tensors = self.index.tensors.get(self.marked.0..).unwrap_or_default().to_vec();
        let shards = self.index.shards.get(self.marked.1..).unwrap_or_default().to_vec();
        let state = hex(&[&Index { tensors, shards }.bytes(), note].concat());
        part.mark(journal, part.len, 0, &state)?;
        self.marked = now;
        Ok(())
    }

    /// A codebook that an earlier process wrote: its m, k and length of a row, and its values.
    pub fn written_codebook(&self, number: u32) -> Result<([u64; 3], Vec<u8>), Error> {
        let mut all = self.index.shards.iter();
        let shard = all.find(|s| s.kind == Kind::Codebook && s.scope == number);
        let shard = shard.ok_or_else(|| self.refused(format!("there is no codebook {number}")))?;
        let part = part_path(&self.path)?;
        let io = |source| Error::Io { file: part.clone(), source };
        let mut file = File::open(&part).map_err(io)?;
        file.seek(SeekFrom::Start(shard.offset)).map_err(io)?;
        let mut stored = Vec::new();
        file.take(shard.stored).read_to_end(&mut stored).map_err(io)?;
        let values = unpack::unpack(shard.packing, &stored, shard.size).map_err(|f| f.in_file(&part))?;
        Ok((shard.numbers, values))
    }
}

/// Adds what a mark lists, and gives the note behind it.
fn listed(index: &mut Index, state: &[u8]) -> Option<Vec<u8>> {
    let mut c = Cursor::new(state, state.len() as u64);
    index.extend(&mut c).ok()?;
    c.take(c.left()).ok().map(<[u8]>::to_vec)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
    bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())
}
