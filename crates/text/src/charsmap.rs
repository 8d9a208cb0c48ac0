//! SentencePiece's precompiled normalization: a double-array trie from sequences of characters to their replacements.
//!
//! Layout: the trie's size in bytes as a little-endian `u32`; the trie, an array of little-endian `u32`; the
//! replacements, each ended by a zero byte. A unit of the trie holds a label in bits 0..8 (bit 31 is set in units that
//! are values), whether a value hangs on it in bit 8, and the offset to its children in bits 10..31, to be multiplied
//! by 256 if bit 9 is set. The child for byte `c` of the unit at `i` is at `i ^ offset ^ c`, the value at `i ^ offset`;
//! a value is the place of a replacement.
//!
//! Source: the format of Darts-clone (Yata) as SentencePiece's `normalizer` writes it; Aoe 1989 (double arrays); Yata
//! 2007 (XOR in place of sums).

use crate::Error;

#[derive(Debug, Clone)]
pub(crate) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

/// The longest sequences of real tables have 18 bytes. A table that goes in circles must not cost more.
const LONGEST: usize = 256;

fn corrupt(why: &str) -> Error {
    Error::corrupt("precompiled_charsmap", why)
}

impl Charsmap {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Charsmap, Error> {
        let (size, rest) =
            bytes.split_first_chunk::<4>().ok_or_else(|| corrupt("it is shorter than its header"))?;
        let size = u32::from_le_bytes(*size) as usize;
        let parts = rest.split_at_checked(size);
        let (trie, replacements) = parts.ok_or_else(|| corrupt("its trie is longer than it"))?;
        let (units, odd) = trie.as_chunks::<4>();
        if units.is_empty() || !odd.is_empty() {
            return Err(corrupt("the size of its trie is no multiple of 4, or 0"));
        }
        let replacements =
            std::str::from_utf8(replacements).map_err(|_| corrupt("a replacement is not UTF-8"))?;
        if !(replacements.is_empty() || replacements.ends_with('\0')) {
            return Err(corrupt("the last replacement does not end"));
        }
        Ok(Charsmap {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_owned(),
        })
    }

    fn unit(&self, at: u32) -> Result<u32, Error> {
        self.units.get(at as usize).copied().ok_or_else(|| corrupt("its trie points outside of itself"))
    }

    /// The longest sequence that `text` begins with: its length in bytes, and what replaces it.
    pub(crate) fn longest(&self, text: &[u8]) -> Result<Option<(usize, &str)>, Error> {
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let mut at = offset(self.unit(0)?);
        let mut found = None;
        for (i, &byte) in text.iter().take(LONGEST).enumerate() {
            if byte == 0 {
                break;
            }
            at ^= u32::from(byte);
            // A missing child may lie beyond the end only in a broken table, so that is an error.
            let unit = self.unit(at)?;
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                found = Some((i + 1, self.unit(at)? & !(1 << 31)));
            }
        }
        let Some((len, place)) = found else { return Ok(None) };
        let text = self.replacements.get(place as usize..).and_then(|rest| rest.split('\0').next());
        Ok(Some((len, text.ok_or_else(|| corrupt("a replacement lies outside of it"))?)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A table that replaces `A` by `a`, and `AB` by nothing.
    pub(crate) fn sample() -> Vec<u8> {
        // Root at 0 with offset 0x100; A at 0x141 with offset 0x200: value at 0x341, B at 0x341 ^ 0x42.
        let mut units = vec![0u32; 0x400];
        units[0] = 0x100 << 10;
        units[0x100 ^ 0x41] = 0x200 << 10 | 1 << 8 | 0x41;
        let a = 0x141 ^ 0x200;
        units[a] = 1 << 31;
        units[a ^ 0x42] = 0x080 << 10 | 1 << 8 | 0x42;
        units[a ^ 0x42 ^ 0x80] = 1 << 31 | 2;
        let mut bytes = ((units.len() * 4) as u32).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        bytes.extend(b"a\0\0");
        bytes
    }

    #[test]
    fn longest_replacement() {
        let map = Charsmap::parse(&sample()).unwrap();
        assert_eq!(map.longest(b"AC").unwrap(), Some((1, "a")));
        assert_eq!(map.longest(b"ABC").unwrap(), Some((2, "")));
        assert_eq!(map.longest(b"B").unwrap(), None);
        assert_eq!(map.longest(b"").unwrap(), None);
    }

    #[test]
    fn broken_tables_are_errors() {
        let whole = sample();
        for cut in 0..whole.len() {
            if let Ok(map) = Charsmap::parse(&whole[..cut]) {
                let _ = map.longest(b"ABAB");
            }
        }
        let mut outside = whole.clone();
        outside[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Charsmap::parse(&outside).unwrap().longest(b"A").is_err());
        let far = whole.len() - 3 - 0x400 * 4 + (0x141 ^ 0x200) * 4;
        let mut place = whole;
        place[far..far + 4].copy_from_slice(&(1 << 31 | 0xffffu32).to_le_bytes());
        assert!(Charsmap::parse(&place).unwrap().longest(b"A").is_err());
    }
}
