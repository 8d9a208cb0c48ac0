//! Byte strings to numbers, found by walking a text byte by byte: all entries that a text begins with, in one pass.
//!
//! A node is a number; an edge (node, byte) is an entry of a hash table with open addressing that doubles when it is
//! half full. Building is one look-up for each byte, and nothing is sorted. The hash has a key drawn at run time, so a
//! file cannot be made that collides on purpose.
//! Source: Fredkin 1960 (tries); Knuth, TAOCP 6.4 (linear probing).

use std::hash::{BuildHasher, RandomState};

use crate::Error;

/// Nodes are numbered in 28 bits, so that an edge fits a slot: node, byte, child.
const NODE_BITS: u32 = 28;
const NO_VALUE: u32 = u32::MAX;

/// Real tokens have at most a few hundred bytes. Every place of a text is compared with entries up to this length.
const LONGEST: usize = 4096;

#[derive(Debug)]
pub(crate) struct Trie {
    /// `node << 36 | byte << 28 | child`; 0 is free: the root is nobody's child.
    slots: Vec<u64>,
    mask: usize,
    /// By node.
    values: Vec<u32>,
    key: u64,
}

impl Trie {
    pub(crate) fn new() -> Trie {
        let size = 64;
        let key = RandomState::new().hash_one(3u8) | 1;
        Trie { slots: vec![0; size], mask: size - 1, values: vec![NO_VALUE], key }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.len() == 1
    }

    /// The slot of an edge, or the free one where it belongs.
    fn slot(&self, node: u32, byte: u8) -> usize {
        let edge = u64::from(node) << 8 | u64::from(byte);
        let wide = u128::from(edge + 1) * u128::from(self.key);
        let mut at = ((wide >> 40) as usize ^ wide as usize) & self.mask;
        while let Some(&slot) = self.slots.get(at) {
            if slot == 0 || slot >> NODE_BITS == edge {
                break;
            }
            at = (at + 1) & self.mask;
        }
        at
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let slot = self.slots.get(self.slot(node, byte)).copied().filter(|&slot| slot != 0)?;
        Some((slot & ((1 << NODE_BITS) - 1)) as u32)
    }

    fn grow(&mut self) {
        let size = self.slots.len() * 2;
        let old = std::mem::replace(&mut self.slots, vec![0; size]);
        self.mask = size - 1;
        for slot in old.into_iter().filter(|&slot| slot != 0) {
            let edge = slot >> NODE_BITS;
            let at = self.slot((edge >> 8) as u32, edge as u8);
            if let Some(to) = self.slots.get_mut(at) {
                *to = slot;
            }
        }
    }

    /// Sets the value of an entry; of equal entries the last one counts.
    pub(crate) fn insert(&mut self, entry: &[u8], value: u32) -> Result<(), Error> {
        if entry.len() > LONGEST {
            let (value, limit) = (entry.len() as u64, LONGEST as u64);
            return Err(Error::Limit { what: "the length of a token", value, limit });
        }
        let mut node = 0;
        for &byte in entry {
            node = match self.child(node, byte) {
                Some(child) => child,
                None => self.add(node, byte)?,
            };
        }
        if let Some(to) = self.values.get_mut(node as usize) {
            *to = value;
        }
        Ok(())
    }

    fn add(&mut self, node: u32, byte: u8) -> Result<u32, Error> {
        let child = self.values.len();
        if child >> NODE_BITS != 0 {
            let limit = 1 << NODE_BITS;
            return Err(Error::Limit { what: "the bytes of all tokens", value: child as u64, limit });
        }
        if child * 2 >= self.slots.len() {
            self.grow();
        }
        let at = self.slot(node, byte);
        if let Some(to) = self.slots.get_mut(at) {
            *to = (u64::from(node) << 8 | u64::from(byte)) << NODE_BITS | child as u64;
        }
        self.values.push(NO_VALUE);
        Ok(child as u32)
    }

    /// The entries that `text` begins with, shortest first: length and value.
    pub(crate) fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = 0;
        let nodes = text.iter().map_while(move |&byte| {
            node = self.child(node, byte)?;
            Some(node)
        });
        let with_value = |(i, node): (usize, u32)| {
            let value = self.values.get(node as usize).copied().filter(|&v| v != NO_VALUE)?;
            Some((i + 1, value))
        };
        nodes.enumerate().filter_map(with_value)
    }

    /// The longest entry that `text` begins with.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        self.prefixes(text).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_in_order() {
        let mut trie = Trie::new();
        assert!(trie.is_empty() && trie.longest(b"a").is_none());
        for (i, entry) in ["a", "abc", "b", "\u{e9}", "abcde"].iter().enumerate() {
            trie.insert(entry.as_bytes(), i as u32).unwrap();
        }
        trie.insert(b"b", 9).unwrap();
        let found: Vec<_> = trie.prefixes(b"abcdx").collect();
        assert_eq!(found, [(1, 0), (3, 1)]);
        assert_eq!(trie.longest("\u{e9}a".as_bytes()), Some((2, 3)));
        assert_eq!((trie.longest(b"b"), trie.longest(b"c"), trie.longest(b"")), (Some((1, 9)), None, None));
    }

    #[test]
    fn many_entries() {
        let mut trie = Trie::new();
        let words: Vec<String> =
            (0..20_000u32).map(|i| format!("w{}", i.wrapping_mul(2_654_435_761))).collect();
        for (i, word) in words.iter().enumerate() {
            trie.insert(word.as_bytes(), i as u32).unwrap();
        }
        for (i, word) in words.iter().enumerate() {
            assert_eq!(trie.longest(word.as_bytes()), Some((word.len(), i as u32)));
        }
    }
}
