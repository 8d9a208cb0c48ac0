//! A hash table from short byte strings to their index in a list that lives elsewhere.
//!
//! Why own: the strings stay where they are (a vocabulary of 262 k tokens is indexed in a few milliseconds, one
//! allocation, no copies), and a lookup takes the bytes from any slice of the text. A slot is 8 bytes: 32 bits of the
//! hash and the index + 1. Linear probing, at most half full. The hash is a folded multiplication with keys drawn at
//! run time, so a file cannot be made that collides on purpose.

use std::hash::{BuildHasher, RandomState};

#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    seed: u64,
    key: u64,
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Hasher {
    fn new() -> Hasher {
        let random = RandomState::new();
        Hasher { seed: random.hash_one(1u8), key: random.hash_one(2u8) | 1 }
    }

    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        let mut h = self.seed ^ (bytes.len() as u64);
        let (chunks, tail) = bytes.as_chunks::<8>();
        for chunk in chunks {
            h = fold(h ^ u64::from_le_bytes(*chunk), self.key);
        }
        if !tail.is_empty() {
            let mut last = [0u8; 8];
            for (to, from) in last.iter_mut().zip(tail) {
                *to = *from;
            }
            h = fold(h ^ u64::from_le_bytes(last), self.key);
        }
        fold(h, self.key ^ self.seed)
    }

    /// The hash of a string together with a position in it.
    pub(crate) fn hash_split(&self, bytes: &[u8], split: usize) -> u64 {
        fold(self.hash(bytes) ^ (split as u64), self.key)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) hasher: Hasher,
    slots: Vec<u64>,
    mask: usize,
}

impl Table {
    /// Room for `n` entries.
    pub(crate) fn with_capacity(n: usize) -> Table {
        let size = (n.max(4) * 2).next_power_of_two();
        Table { hasher: Hasher::new(), slots: vec![0; size], mask: size - 1 }
    }

    /// Walks the probe sequence of `hash`: the slot of the entry that `same` accepts, or the free slot.
    fn find(&self, hash: u64, same: impl Fn(u32) -> bool) -> (usize, Option<u32>) {
        let tag = hash >> 32;
        let mut at = hash as usize & self.mask;
        loop {
            let slot = self.slots.get(at).copied().unwrap_or(0);
            if slot == 0 {
                return (at, None);
            }
            let index = (slot as u32).wrapping_sub(1);
            if slot >> 32 == tag && same(index) {
                return (at, Some(index));
            }
            at = (at + 1) & self.mask;
        }
    }

    pub(crate) fn get(&self, hash: u64, same: impl Fn(u32) -> bool) -> Option<u32> {
        self.find(hash, same).1
    }

    /// Adds an entry and says which equal one was there; that one stays unless `replace`.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        index: u32,
        replace: bool,
        same: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let (at, old) = self.find(hash, same);
        if (old.is_none() || replace)
            && let Some(slot) = self.slots.get_mut(at)
        {
            *slot = (hash >> 32 << 32) | (u64::from(index) + 1);
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_put_in() {
        let words: Vec<String> = (0..5000).map(|i| format!("word{}", i * 7)).collect();
        let mut table = Table::with_capacity(words.len());
        for (i, w) in words.iter().enumerate() {
            let hash = table.hasher.hash(w.as_bytes());
            assert_eq!(table.insert(hash, i as u32, false, |j| words[j as usize] == *w), None);
        }
        for (i, w) in words.iter().enumerate() {
            let hash = table.hasher.hash(w.as_bytes());
            assert_eq!(table.get(hash, |j| words[j as usize] == *w), Some(i as u32));
        }
        let hash = table.hasher.hash(b"absent");
        assert_eq!(table.get(hash, |j| words[j as usize] == "absent"), None);
    }

    #[test]
    fn length_and_split_count() {
        let h = Hasher::new();
        assert_ne!(h.hash(b"a"), h.hash(b"a\0"));
        assert_ne!(h.hash(b""), h.hash(b"\0"));
        assert_ne!(h.hash_split(b"abc", 1), h.hash_split(b"abc", 2));
    }
}
