//! The byte alphabet of byte-level BPE: each byte is written as one printable character.
//!
//! Source: GPT-2 (Radford et al. 2019), `bytes_to_unicode`: bytes that are printable in Latin-1 stand for themselves,
//! the other 68 are U+0100 upwards in their order.

/// Whether the byte is written as itself.
const fn printable(b: u8) -> bool {
    matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

const fn encode_table() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut next = 0x100u32;
    let mut b = 0usize;
    while b < 256 {
        if printable(b as u8) {
            table[b] = b as u8 as char;
        } else {
            table[b] = match char::from_u32(next) {
                Some(c) => c,
                None => '\0',
            };
            next += 1;
        }
        b += 1;
    }
    table
}

static ENCODE: [char; 256] = encode_table();

/// The byte's character.
pub(crate) fn to_char(byte: u8) -> char {
    ENCODE.get(usize::from(byte)).copied().unwrap_or('\0')
}

/// The character's byte, if it is one of the alphabet.
pub(crate) fn from_char(c: char) -> Option<u8> {
    let n = u32::from(c);
    if n < 0x100 {
        let b = n as u8;
        return printable(b).then_some(b);
    }
    // The 68 others: 0x00..=0x20, 0x7f..=0xa0, 0xad.
    let i = n - 0x100;
    Some(match i {
        0..=0x20 => i as u8,
        0x21..=0x42 => (i - 0x21 + 0x7f) as u8,
        0x43 => 0xad,
        _ => return None,
    })
}

/// Appends text in the alphabet's spelling.
pub(crate) fn push_encoded(out: &mut String, text: &str) {
    out.extend(text.bytes().map(to_char));
}

/// The bytes that a token in the alphabet's spelling stands for; characters outside the alphabet (added tokens are
/// spelled plainly) stand for their own UTF-8.
pub(crate) fn decode(token: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(token.len());
    for c in token.chars() {
        match from_char(c) {
            Some(b) => out.push(b),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_there_and_back() {
        for b in 0..=255u8 {
            assert_eq!(from_char(to_char(b)), Some(b));
        }
        assert_eq!(to_char(b' '), 'Ġ');
        assert_eq!(to_char(b'\n'), 'Ċ');
        assert_eq!(from_char('\u{144}'), None);
        assert_eq!(from_char(' '), None);
    }
}
