//! RWKV's "world" vocabulary: at each place the longest token, byte by byte.
//!
//! Tokens are any bytes. A GGUF file spells them as Python prints bytes (`\n`, `\xe4`, `\\`), which is also how
//! [`Vocab`] holds them. The vocabulary file has one token a line: id, a Python literal of text or bytes, length in
//! bytes, separated by spaces.
//! Source: `rwkv_vocab_v20230424.txt` and its `TRIE_TOKENIZER`; the Python language reference, "String and Bytes
//! literals".

use crate::tokenizer::Tokens;
use crate::trie::Trie;
use crate::vocab::MAX_TOKENS;
use crate::{Error, TokenType, Vocab};

#[derive(Debug)]
pub(crate) struct Rwkv {
    trie: Trie,
}

impl Rwkv {
    pub(crate) fn new(vocab: &Vocab) -> Result<Rwkv, Error> {
        let mut trie = Trie::new();
        for (id, text) in (0u32..).zip(&vocab.tokens) {
            if vocab.token_type(id) == TokenType::Normal && !text.is_empty() {
                trie.insert(&unescape(text), id)?;
            }
        }
        Ok(Rwkv { trie })
    }

    /// Appends the ids of plain text.
    pub(crate) fn encode(&self, tokens: &Tokens, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (len, id) = match self.trie.longest(rest) {
                Some(found) => found,
                None => (1, tokens.unk.ok_or_else(|| unencodable(rest))?),
            };
            out.push(id);
            rest = rest.get(len..).unwrap_or(&[]);
        }
        Ok(())
    }
}

fn unencodable(rest: &[u8]) -> Error {
    Error::Unencodable(String::from_utf8_lossy(rest.get(..1).unwrap_or(&[])).into_owned())
}

/// Two hexadecimal digits off the front.
fn hex_byte(text: &mut &[u8]) -> Option<u8> {
    let (pair, rest) = text.split_first_chunk::<2>()?;
    let [high, low] = pair.map(|b| char::from(b).to_digit(16));
    *text = rest;
    Some((high? * 16 + low?) as u8)
}

/// The bytes of a token in a GGUF file's spelling. A backslash before anything else stands for what follows it, as
/// llama.cpp reads it.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, after)) = rest.split_first() {
        rest = after;
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let Some((&escape, after)) = rest.split_first() else { break };
        rest = after;
        match escape {
            b't' => out.push(b'\t'),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b'x' => out.extend(hex_byte(&mut rest)),
            other => out.push(other),
        }
    }
    out
}

/// The spelling of bytes in a GGUF file: as Python prints them, without the quotes.
fn escape(bytes: &[u8]) -> String {
    // Python quotes with ' unless there is one and no ".
    let quoted = bytes.contains(&b'\'') && bytes.contains(&b'"');
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        match b {
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\\' => out.push_str("\\\\"),
            b'\'' if quoted => out.push_str("\\'"),
            0x20..=0x7e => out.push(char::from(b)),
            _ => out.push_str(&format!("\\x{b:02x}")),
        }
    }
    out
}

/// The value of a Python literal: `'…'`, `"…"`, `b'…'` or `b"…"`.
fn literal(source: &str) -> Result<Vec<u8>, &'static str> {
    let (is_bytes, source) = match source.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, source),
    };
    let quote = source.chars().next().filter(|c| matches!(c, '\'' | '"')).ok_or("no quote before it")?;
    let body = source.get(1..).and_then(|s| s.strip_suffix(quote)).ok_or("no quote after it")?;
    let mut out = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => push_escaped(&mut chars, is_bytes, &mut out)?,
            _ if c == quote => return Err("a quote inside of it"),
            _ if is_bytes && !c.is_ascii() => return Err("a character among bytes"),
            _ => push_char(&mut out, c),
        }
    }
    Ok(out)
}

fn push_char(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Appends what a backslash and the characters after it stand for.
fn push_escaped(chars: &mut std::str::Chars, is_bytes: bool, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let escape = chars.next().ok_or("a backslash at its end")?;
    let digits = match escape {
        'x' => 2,
        'u' if !is_bytes => 4,
        'U' if !is_bytes => 8,
        _ => 0,
    };
    if digits > 0 {
        let text = chars.as_str().get(..digits).filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()));
        let value =
            text.and_then(|t| u32::from_str_radix(t, 16).ok()).ok_or("an escape without its digits")?;
        *chars = chars.as_str().get(digits..).unwrap_or("").chars();
        match char::from_u32(value) {
            _ if is_bytes => out.push(value as u8),
            Some(c) => push_char(out, c),
            None => return Err("an escape that is no character"),
        }
        return Ok(());
    }
    out.push(match escape {
        'n' => b'\n',
        't' => b'\t',
        'r' => b'\r',
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'v' => 11,
        '0' => 0,
        '\\' => b'\\',
        '\'' => b'\'',
        '"' => b'"',
        _ => return Err("an unknown escape"),
    });
    Ok(())
}

/// Reads a vocabulary file. Token 0 is not in it: it ends texts.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vocab, Error> {
    let corrupt =
        |line: usize, why: &str| Error::corrupt("the RWKV vocabulary", format!("line {}: {why}", line + 1));
    let text =
        std::str::from_utf8(bytes).map_err(|_| Error::corrupt("the RWKV vocabulary", "it is not UTF-8"))?;
    let mut vocab = Vocab {
        model: "rwkv".into(),
        tokens: vec!["<s>".into()],
        token_types: Some(vec![TokenType::Control as i32]),
        ..Vocab::default()
    };
    let mut types = vec![TokenType::Control as i32];
    // Only \n ends a line: literals may hold other separators.
    for (number, line) in text.split_terminator('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let (id, rest) = line.split_once(' ').ok_or_else(|| corrupt(number, "it has no id"))?;
        let (source, len) = rest.rsplit_once(' ').ok_or_else(|| corrupt(number, "it has no length"))?;
        let id: usize = id.parse().map_err(|_| corrupt(number, "its id is no number"))?;
        let token =
            literal(source.trim()).map_err(|why| corrupt(number, &format!("the literal has {why}")))?;
        if len.parse() != Ok(token.len()) || token.is_empty() {
            return Err(corrupt(number, "its length is not that of the token"));
        }
        // The file is in order; a hole or two would do no harm, a huge id would.
        if id < vocab.tokens.len() || id > vocab.tokens.len() + 4096 || id >= MAX_TOKENS {
            return Err(corrupt(number, "its id is out of order"));
        }
        for hole in vocab.tokens.len()..id {
            vocab.tokens.push(format!("[PAD{hole}]"));
            types.push(TokenType::Unused as i32);
        }
        vocab.tokens.push(escape(&token));
        types.push(TokenType::Normal as i32);
    }
    if vocab.tokens.len() < 2 {
        return Err(Error::corrupt("the RWKV vocabulary", "it has no tokens"));
    }
    vocab.token_types = Some(types);
    (vocab.bos, vocab.eos) = (Some(0), Some(0));
    // Turns of RWKV's chats end with an empty line; the converter of llama.cpp says so too.
    vocab.eot = (0u32..).zip(&vocab.tokens).find(|(_, t)| *t == "\\n\\n").map(|(id, _)| id);
    Ok(vocab)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    pub(crate) const SAMPLE: &str = "1 '\\x00' 1\n2 '\\n' 1\n3 'a' 1\n4 ' a' 2\n5 b'\\xe4' 1\n6 b'\\xbd\\xa0' 2\n7 '你' 3\n8 \"it's\" 4\n9 '\\'\"' 2\n10 '\\u2028' 3\n11 '\\n\\n' 2\n12 '\\\\' 1\n";

    #[test]
    fn literals() {
        for (source, value) in [
            ("'a'", &b"a"[..]),
            ("\"'\"", b"'"),
            ("'\\'\"'", b"'\""),
            ("b'\\xff\\x00'", b"\xff\0"),
            ("'\\xe9\\u00e9\\U000000e9'", "ééé".as_bytes()),
            ("'\\t\\n\\r\\\\'", b"\t\n\r\\"),
        ] {
            assert_eq!(literal(source).unwrap(), value, "{source}");
        }
        for bad in [
            "",
            "a",
            "'",
            "'a",
            "'a'b'",
            "b'é'",
            "'\\",
            "'\\x1'",
            "'\\ud800'",
            "'\\q'",
            "b'\\u0041'",
            "'\\xé'",
        ] {
            assert!(literal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spellings_come_back() {
        for bytes in [&b"\xff'\"\\\n\t\r a"[..], b"'", b"\"", "é".as_bytes(), b"\\x41"] {
            assert_eq!(unescape(&escape(bytes)), bytes);
        }
        assert_eq!(escape(b"'\"\xe4\\"), "\\'\"\\xe4\\\\");
        assert_eq!(escape(b"it's"), "it's");
        assert_eq!(unescape("\\xZZ\\"), b"");
    }

    #[test]
    fn longest_tokens_win() {
        let vocab = parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!((vocab.tokens.len(), vocab.eot), (13, Some(11)));
        let t = Tokenizer::from_vocab(vocab).unwrap();
        assert_eq!(
            t.encode("a a\n\n\n你\u{2028}'\"it's\\", true, false).unwrap(),
            [3, 4, 11, 2, 7, 10, 9, 8, 12]
        );
        assert_eq!(t.decode(&[3, 5, 6, 9, 0], true), "a你'\"");
        let mut stream = t.decode_stream();
        assert_eq!(stream.push(5), None);
        assert_eq!(stream.push(6), Some("你"));
        assert!(matches!(t.encode("z", false, false), Err(Error::Unencodable(_))));
        assert!(t.is_end_of_generation(0) && t.is_end_of_generation(11));
    }

    #[test]
    fn broken_files_are_errors() {
        for bad in [
            "",
            "1",
            "1 'a'",
            "x 'a' 1",
            "1 'a' 2",
            "1 '' 0",
            "0 'a' 1",
            "99999999 'a' 1",
            "2 'a' 1\n1 'b' 1",
            "1 \u{e9} 1",
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(Error::Corrupt { .. })), "{bad}");
        }
        assert!(parse(b"\xff").is_err());
    }
}
