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
    pub(crate) fn new() -> Hasher {
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

/// Parts of a table, as a power of two: of the largest ones, each fits a second-level cache.
const PART_BITS: u32 = 6;

impl Table {
    /// A table of these entries, each with its hash. Of equal ones the first stays, or the last if `replace`.
    ///
    /// Entries go into one part of the table after the other: in the order of the list, nearly each of them would wait
    /// for memory.
    pub(crate) fn build(
        hasher: Hasher,
        entries: &[(u64, u32)],
        replace: bool,
        same: impl Fn(u32, u32) -> bool,
    ) -> Table {
        let size = (entries.len().max(4) * 2).next_power_of_two();
        let mut table = Table { hasher, slots: vec![0; size], mask: size - 1 };
        let shift = size.trailing_zeros().saturating_sub(PART_BITS);
        let part = |hash: u64| (hash as usize & (size - 1)) >> shift;
        let mut starts = [0usize; 1 << PART_BITS];
        for &(hash, _) in entries {
            starts.iter_mut().skip(part(hash) + 1).take(1).for_each(|count| *count += 1);
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut sorted = vec![(0, 0); entries.len()];
        for &entry in entries {
            if let Some(start) = starts.get_mut(part(entry.0))
                && let Some(to) = sorted.get_mut(*start)
            {
                *to = entry;
                *start += 1;
            }
        }
        for (hash, index) in sorted {
            table.insert(hash, index, replace, |other| same(other, index));
        }
        table
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

    /// Adds an entry; an equal one that is there stays unless `replace`.
    fn insert(&mut self, hash: u64, index: u32, replace: bool, same: impl Fn(u32) -> bool) {
        let (at, old) = self.find(hash, same);
        if (old.is_none() || replace)
            && let Some(slot) = self.slots.get_mut(at)
        {
            *slot = (hash >> 32 << 32) | (u64::from(index) + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_put_in() {
        let words: Vec<String> = (0..5000).map(|i| format!("word{}", i * 7)).collect();
        let hasher = Hasher::new();
        let entries: Vec<_> = (0..).zip(&words).map(|(i, w)| (hasher.hash(w.as_bytes()), i)).collect();
        let table = Table::build(hasher, &entries, false, |i, j| words[i as usize] == words[j as usize]);
        for (i, w) in words.iter().enumerate() {
            let hash = table.hasher.hash(w.as_bytes());
            assert_eq!(table.get(hash, |j| words[j as usize] == *w), Some(i as u32));
        }
        let hash = table.hasher.hash(b"absent");
        assert_eq!(table.get(hash, |j| words[j as usize] == "absent"), None);
    }

    #[test]
    fn first_or_last_of_equals() {
        let words = ["a", "b", "a", "c", "a"];
        let same = |i: u32, j: u32| words[i as usize] == words[j as usize];
        for (replace, found) in [(false, 0), (true, 4)] {
            let hasher = Hasher::new();
            let entries: Vec<_> = (0..).zip(&words).map(|(i, w)| (hasher.hash(w.as_bytes()), i)).collect();
            let table = Table::build(hasher, &entries, replace, same);
            assert_eq!(table.get(table.hasher.hash(b"a"), |i| words[i as usize] == "a"), Some(found));
        }
        let empty = Table::build(Hasher::new(), &[], false, same);
        assert_eq!(empty.get(empty.hasher.hash(b"a"), |_| true), None);
    }

    #[test]
    fn length_and_split_count() {
        let h = Hasher::new();
        assert_ne!(h.hash(b"a"), h.hash(b"a\0"));
        assert_ne!(h.hash(b""), h.hash(b"\0"));
        assert_ne!(h.hash_split(b"abc", 1), h.hash_split(b"abc", 2));
    }
}
