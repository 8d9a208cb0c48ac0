//! The tokenizer section, as metadata under `qsf.tokenizer.`
//!
//! Eight `u32` (kind, tokens, merges, added tokens, bytes of each of these three, flags), the vocabulary in the order of
//! its ids (a `u16` length and so many bytes each), its CRC-32, the merges (three `u32`: left, right, merged) and the
//! added tokens (`u32` id, `u16` length, text, `u8` flags).

use super::header::Header;
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::{Array, Error, Metadata, Strings, Value};

/// The section's header.
pub(super) const SIZE: u64 = 32;

/// How long the section is: for the map of the file.
pub(super) fn extent(source: &Source, at: u64) -> Result<u64, Error> {
    let head = head(source, at)?;
    let [_, _, _, _, vocab, merges, added, _] = head.map(u64::from);
    Ok([SIZE, vocab, 4, merges, added].iter().fold(0, |sum: u64, n| sum.saturating_add(*n)))
}

fn head(source: &Source, at: u64) -> Result<[u32; 8], Error> {
    let bytes = source.read_vec(at, SIZE).map_err(|e| crate::opened::name_tensor(e, "tokenizer"))?;
    let mut cursor = Cursor::new(&bytes, SIZE);
    let mut fields = [0; 8];
    for field in &mut fields {
        *field = cursor.u32().map_err(|fault| fault.in_file(source.path()))?;
    }
    Ok(fields)
}

/// Reads the section, if there is one.
pub(super) fn read(source: &Source, header: &Header, metadata: &mut Metadata) -> Result<(), Error> {
    if header.tokenizer == 0 {
        return Ok(());
    }
    let fields = head(source, header.tokenizer)?;
    let bytes = source.read_vec(header.tokenizer, extent(source, header.tokenizer)?);
    let bytes = bytes.map_err(|e| crate::opened::name_tensor(e, "tokenizer"))?;
    let mut cursor = Cursor::new(&bytes, bytes.len() as u64);
    let read = parse(&mut cursor, fields, metadata);
    read.map_err(|fault| fault.of("tokenizer").shifted(header.tokenizer).in_file(source.path()))
}

fn parse(c: &mut Cursor<'_>, fields: [u32; 8], metadata: &mut Metadata) -> Result<(), Fault> {
    let [kind, tokens, merges, added, vocab_bytes, merge_bytes, added_bytes, flags] = fields;
    c.take(SIZE)?;
    let vocabulary = c.take(vocab_bytes.into())?;
    let (want, got) = (c.u32()?, crc32fast::hash(vocabulary));
    if want != got {
        return Err(c.corrupt(format!("the vocabulary's checksum is {got:08x}, it should be {want:08x}")));
    }
    let mut text = Cursor::new(vocabulary, vocab_bytes.into());
    let mut strings = Strings::new();
    for _ in 0..tokens {
        strings.push(token(&mut text).map_err(|fault| fault.shifted(SIZE))?);
    }
    if text.left() != 0 {
        return Err(c.corrupt(format!("{} bytes follow the vocabulary's {tokens} tokens", text.left())));
    }
    if u64::from(merges).checked_mul(12) != Some(merge_bytes.into()) {
        return Err(c.corrupt(format!("{merges} merges in {merge_bytes} bytes")));
    }
    let mut triples = Vec::new();
    for _ in 0..merges.saturating_mul(3) {
        let id = c.u32()?;
        if id >= tokens {
            return Err(c.corrupt(format!("a merge names token {id} of {tokens}")));
        }
        triples.push(id);
    }
    let end = c.at().saturating_add(added_bytes.into());
    let (mut ids, mut texts, mut bits) = (Vec::new(), Strings::new(), Vec::new());
    for _ in 0..added {
        ids.push(c.u32()?);
        texts.push(token(c)?);
        bits.push(c.u8()?);
    }
    if c.at() != end {
        return Err(c.corrupt(format!("{added} added tokens do not end where their {added_bytes} bytes do")));
    }
    let mut set = |name: &str, value: Value| metadata.insert(format!("qsf.tokenizer.{name}"), value);
    set("type", kind.into());
    set("flags", flags.into());
    set("tokens", strings.into());
    set("merges", triples.into());
    set("added_ids", ids.into());
    set("added_tokens", texts.into());
    set("added_flags", Value::Array(Array::U8(bits)));
    Ok(())
}

fn token<'a>(c: &mut Cursor<'a>) -> Result<&'a str, Fault> {
    let len = c.u16()?;
    let at = c.clone();
    let bytes = c.take(len.into())?;
    std::str::from_utf8(bytes).map_err(|_| at.corrupt("a token that is not UTF-8"))
}
