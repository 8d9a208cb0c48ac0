//! `tokenizer.model` (SentencePiece's protobuf) as a [`Vocab`].
//!
//! Read by hand: the file is a flat list of pieces and two small specs. Every length is checked against the bytes that
//! are left, nothing recurses, and unknown fields are skipped.
//! Source: `sentencepiece_model.proto`; the protobuf encoding guide (wire types 0, 1, 2, 5).

use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab};

const WHAT: &str = "tokenizer.model";

fn corrupt(why: &str) -> Error {
    Error::corrupt(WHAT, why)
}

/// A field's value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in order.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or_else(|| corrupt("it ends inside a number"))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("a number is longer than 64 bits"))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Error> {
        let n = usize::try_from(n).ok();
        let parts = n.and_then(|n| self.0.split_at_checked(n));
        let (head, rest) = parts.ok_or_else(|| corrupt("a field is longer than the file"))?;
        self.0 = rest;
        Ok(head)
    }

    /// The next field's number and value; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let n = self.varint()?;
                Field::Bytes(self.take(n)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(bytes.try_into().map(u32::from_le_bytes).unwrap_or(0))
            }
            _ => return Err(corrupt("a field of unknown wire type")),
        };
        Ok(Some((key >> 3, field)))
    }
}

fn piece(bytes: &[u8]) -> Result<(String, f32, TokenType), Error> {
    let (mut text, mut score, mut kind) = (None, 0.0, TokenType::Normal);
    let mut message = Message(bytes);
    while let Some(field) = message.next()? {
        match field {
            (1, Field::Bytes(b)) => {
                text = Some(std::str::from_utf8(b).map_err(|_| corrupt("a piece is not UTF-8"))?)
            }
            (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
            (3, Field::Number(n)) => {
                let known = i32::try_from(n).ok().and_then(TokenType::from_i32);
                kind = known.ok_or_else(|| corrupt("a piece of unknown type"))?;
            }
            _ => {}
        }
    }
    let text = text.ok_or_else(|| corrupt("a piece without text"))?;
    if kind == TokenType::UserDefined {
        return Ok((text.replace('\u{2581}', " "), score, kind));
    }
    Ok((text.to_owned(), score, kind))
}

/// What the two specs say.
#[derive(Default)]
struct Specs<'a> {
    algorithm: Option<u64>,
    ids: [Option<u64>; 4],
    suffix_space: bool,
    charsmap: &'a [u8],
    dummy_prefix: Option<bool>,
    extra_spaces_removed: Option<bool>,
}

impl<'a> Specs<'a> {
    fn trainer(&mut self, bytes: &'a [u8]) -> Result<(), Error> {
        let mut message = Message(bytes);
        while let Some(field) = message.next()? {
            match field {
                (3, Field::Number(n)) => self.algorithm = Some(n),
                (24, Field::Number(n)) => self.suffix_space = n != 0,
                (at @ 40..=43, Field::Number(n)) => {
                    if let Some(id) = self.ids.get_mut((at - 40) as usize) {
                        *id = Some(n);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer(&mut self, bytes: &'a [u8]) -> Result<(), Error> {
        let mut message = Message(bytes);
        while let Some(field) = message.next()? {
            match field {
                (2, Field::Bytes(b)) => self.charsmap = b,
                (3, Field::Number(n)) => self.dummy_prefix = Some(n != 0),
                (4, Field::Number(n)) => self.extra_spaces_removed = Some(n != 0),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads the bytes of a `tokenizer.model`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vocab, Error> {
    let mut vocab = Vocab { pre: Some("default".into()), ..Vocab::default() };
    let (mut scores, mut types) = (Vec::new(), Vec::new());
    let mut specs = Specs::default();
    let mut message = Message(bytes);
    while let Some(field) = message.next()? {
        match field {
            (1, Field::Bytes(b)) => {
                let (text, score, kind) = piece(b)?;
                vocab.tokens.push(text);
                scores.push(score);
                types.push(kind as i32);
                if vocab.tokens.len() > MAX_TOKENS {
                    return Err(Error::Limit {
                        what: "the vocabulary",
                        value: vocab.tokens.len() as u64,
                        limit: MAX_TOKENS as u64,
                    });
                }
            }
            (2, Field::Bytes(b)) => specs.trainer(b)?,
            (3, Field::Bytes(b)) => specs.normalizer(b)?,
            _ => {}
        }
    }
    // The defaults of the format: unigram, prefix and removal on; ids 0, 1, 2, and no padding.
    let removes = specs.extra_spaces_removed.unwrap_or(true);
    vocab.model = match specs.algorithm.unwrap_or(1) {
        1 => "t5".into(),
        2 => "llama".into(),
        other => return Err(Error::unsupported("SentencePiece model type", other.to_string())),
    };
    if specs.suffix_space {
        return Err(Error::unsupported("SentencePiece option", "treat_whitespace_as_suffix"));
    }
    if vocab.model == "llama" && removes {
        return Err(Error::unsupported("SentencePiece option", "remove_extra_whitespaces before BPE"));
    }
    vocab.precompiled_charsmap = (!specs.charsmap.is_empty()).then(|| specs.charsmap.to_vec());
    if vocab.model == "t5" {
        vocab.remove_extra_whitespaces = Some(removes);
    } else if vocab.precompiled_charsmap.is_some() {
        vocab.normalizer = Some(r#"{"type":"Precompiled"}"#.into());
    }
    vocab.add_space_prefix = Some(specs.dummy_prefix.unwrap_or(true));
    let id = |at: usize, default: Option<u64>| {
        // −1 (no such token) is written as 64 bits of ones.
        let id = specs.ids.get(at).copied().flatten().or(default)?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < vocab.tokens.len())
    };
    (vocab.unk, vocab.bos, vocab.eos, vocab.pad) =
        (id(0, Some(0)), id(1, Some(1)), id(2, Some(2)), id(3, None));
    vocab.scores = Some(scores);
    vocab.token_types = Some(types);
    vocab.check()?;
    Ok(vocab)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.extend([number << 3 | 2, bytes.len() as u8]);
        out.extend_from_slice(bytes);
    }

    /// A small BPE model in the format.
    pub(crate) fn sample() -> Vec<u8> {
        let mut file = Vec::new();
        for (text, score, kind) in [
            ("<unk>", 0f32, 2u8),
            ("<s>", 0., 3),
            ("</s>", 0., 3),
            ("ab", -0.5, 1),
            ("a", -1., 1),
            ("b", -2., 1),
        ] {
            let mut p = Vec::new();
            field(&mut p, 1, text.as_bytes());
            p.push(2 << 3 | 5);
            p.extend(score.to_le_bytes());
            p.extend([3 << 3, kind]);
            field(&mut file, 1, &p);
        }
        field(&mut file, 2, &[3 << 3, 2]);
        field(&mut file, 3, &[3 << 3, 0, 4 << 3, 0]);
        file
    }

    #[test]
    fn reads_pieces_and_specs() {
        let vocab = parse(&sample()).unwrap();
        assert_eq!((vocab.model.as_str(), vocab.tokens.len()), ("llama", 6));
        assert_eq!((vocab.unk, vocab.bos, vocab.eos, vocab.pad), (Some(0), Some(1), Some(2), None));
        assert_eq!(vocab.add_space_prefix, Some(false));
        let t = crate::Tokenizer::from_vocab(vocab).unwrap();
        assert_eq!(t.encode("abb", true, false).unwrap(), [1, 3, 5]);
    }

    #[test]
    fn every_cut_is_an_error_or_a_vocabulary() {
        let file = sample();
        for n in 0..file.len() {
            let _ = parse(&file[..n]);
        }
        assert!(matches!(parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Error::Corrupt { .. })));
        assert!(matches!(parse(&[0x80; 11]), Err(Error::Corrupt { .. })));
    }
}
