//! ROUTING, and which shards version 1 picks for a prompt.
//!
//! ```text
//! u16 dim  u32 n  u32 ids[n]  f32 costs[n]  f32 keys[n][dim]
//! ```
//!
//! A prompt's key counts its words, split at white space and as they are written, in the slots
//! `xxh3_64(word) % dim`, and has length 1. Shards are taken by the cosine between their keys and the prompt's, the
//! largest first and equal ones in file order; with a budget a shard that would pass it is skipped and the next one
//! tried.

use super::unpack::corrupt;
use crate::cursor::{Cursor, Fault};

/// A shard's place in the routing table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Number of the shard, as the bank counts them.
    pub shard: u32,
    /// What taking it costs, in MiB.
    pub cost: f32,
    /// How near its key is to the prompt's: −1 to 1, 0 for a prompt without words.
    pub cosine: f64,
}

/// The routing table.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    dim: u16,
    ids: Vec<u32>,
    costs: Vec<f32>,
    keys: Vec<f32>,
}

/// The cost that version 1 gives to a shard of so many unpacked bytes, in MiB.
pub fn cost(size: u32) -> f64 {
    (f64::from(size) / 1_048_576.0).max(0.001)
}

/// Where a key of length `dim` counts this word.
pub fn slot(word: &str, dim: u16) -> u16 {
    let hash = twox_hash::XxHash3_64::oneshot(word.as_bytes());
    u16::try_from(hash.checked_rem(u64::from(dim)).unwrap_or(0)).unwrap_or(0)
}

/// The key of a prompt: of length 1, or all 0 if there are no words in it.
pub fn prompt_key(prompt: &str, dim: u16) -> Vec<f64> {
    let mut key = vec![0.0; usize::from(dim)];
    for word in prompt.split_whitespace() {
        if let Some(count) = key.get_mut(usize::from(slot(word, dim))) {
            *count += 1.0;
        }
    }
    let length = norm(key.iter().copied());
    if length > 0.0 {
        key.iter_mut().for_each(|v| *v /= length);
    }
    key
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

impl Routing {
    /// Reads the section of a bank of `shards` shards.
    pub(super) fn read(bytes: &[u8], shards: usize) -> Result<Routing, Fault> {
        let mut c = Cursor::new(bytes, bytes.len() as u64);
        let (dim, n) = (c.u16()?, c.u32()?);
        // Before anything is allocated: the rest is as long as these two numbers say.
        let each = u64::from(dim).saturating_mul(4).saturating_add(8);
        if dim == 0 || c.left() != u64::from(n).saturating_mul(each) {
            return Err(c.corrupt(format!("{n} keys of {dim} values in {} bytes", c.left())));
        }
        let mut routing = Routing { dim, ids: Vec::new(), costs: Vec::new(), keys: Vec::new() };
        for _ in 0..n {
            let id = c.u32()?;
            if id as usize >= shards {
                return Err(c.corrupt(format!("a key of shard {id}; there are {shards}")));
            }
            routing.ids.push(id);
        }
        for _ in 0..n {
            let cost = c.f32()?;
            if !cost.is_finite() || cost < 0.0 {
                return Err(c.corrupt(format!("a cost of {cost}")));
            }
            routing.costs.push(cost);
        }
        while c.left() > 0 {
            let value = c.f32()?;
            if !value.is_finite() {
                return Err(corrupt("a key that is no finite number"));
            }
            routing.keys.push(value);
        }
        Ok(routing)
    }

    /// Length of a key.
    pub fn dim(&self) -> u16 {
        self.dim
    }

    /// All shards, the nearest to the prompt first.
    pub fn rank(&self, prompt: &str) -> Vec<Choice> {
        let key = prompt_key(prompt, self.dim);
        let entries = self.ids.iter().zip(&self.costs).zip(self.keys.chunks(usize::from(self.dim.max(1))));
        let mut all: Vec<Choice> = entries
            .map(|((&shard, &cost), own)| {
                let dot: f64 = own.iter().zip(&key).map(|(a, b)| f64::from(*a) * b).sum();
                let length = norm(own.iter().map(|v| f64::from(*v)));
                Choice { shard, cost, cosine: if length > 0.0 { dot / length } else { 0.0 } }
            })
            .collect();
        all.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
        all
    }

    /// At most `k` shards for a prompt, within a budget in MiB if there is one.
    pub fn select(&self, prompt: &str, k: usize, budget: Option<f64>) -> Vec<Choice> {
        let mut spent = 0.0;
        let within = |choice: &Choice| {
            let cost = f64::from(choice.cost);
            let fits = budget.is_none_or(|most| spent + cost <= most);
            spent += if fits { cost } else { 0.0 };
            fits
        };
        self.rank(prompt).into_iter().filter(within).take(k).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(keys: &[[f32; 2]], costs: &[f32]) -> Routing {
        let n = keys.len() as u32;
        let mut bytes = [&2u16.to_le_bytes()[..], &n.to_le_bytes()].concat();
        (0..n).for_each(|id| bytes.extend(id.to_le_bytes()));
        costs.iter().chain(keys.as_flattened()).for_each(|v| bytes.extend(v.to_le_bytes()));
        Routing::read(&bytes, keys.len()).unwrap()
    }

    #[test]
    fn words_have_the_slots_of_version_1() {
        assert_eq!(twox_hash::XxHash3_64::oneshot(b"hello"), 0x9555_e855_5c62_dcfd);
        assert_eq!(twox_hash::XxHash3_64::oneshot(b"world"), 0xd647_6c25_083d_69be);
        assert_eq!([slot("hello", 64), slot("world", 64), slot("", 64)], [61, 62, 2]);
        let key = prompt_key(" hello\tworld\u{a0}hello\n", 64);
        assert_eq!(key.iter().filter(|v| **v != 0.0).count(), 2);
        assert!((key[61] - 2.0 / 5f64.sqrt()).abs() < 1e-15 && (key[62] - 1.0 / 5f64.sqrt()).abs() < 1e-15);
        assert_ne!(slot("Hello", 64), slot("hello", 64));
        assert_eq!(prompt_key(" \n", 64), [0.0; 64]);
    }

    #[test]
    fn costs_have_a_floor() {
        assert_eq!(cost(786_440), 786_440.0 / 1_048_576.0);
        assert_eq!([cost(0), cost(1048)], [0.001; 2]);
    }

    #[test]
    fn a_budget_skips_and_does_not_stop() {
        let (mut near, mut far) = ([0.0; 2], [0.0; 2]);
        near[usize::from(slot("a", 2))] = 3.0;
        far[1 - usize::from(slot("a", 2))] = 1.0;
        let routing = table(&[far, near, [1.0, 1.0], near], &[1.0, 2.0, 9.0, 1.5]);
        let ids = |k, budget| routing.select("a", k, budget).iter().map(|c| c.shard).collect::<Vec<_>>();
        assert_eq!(ids(9, None), [1, 3, 2, 0]);
        assert_eq!(ids(2, None), [1, 3]);
        assert_eq!(ids(9, Some(3.0)), [1, 0]);
        assert_eq!(ids(9, Some(3.5)), [1, 3]);
        assert_eq!(ids(1, Some(1.2)), [0]);
        let cosines: Vec<f64> = routing.rank("a").iter().map(|c| c.cosine).collect();
        assert_eq!(cosines, [1.0, 1.0, 1.0 / 2f64.sqrt(), 0.0]);
        // Without words all are equally far: file order.
        assert_eq!(routing.rank("").iter().map(|c| c.shard).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn hostile_tables_are_refused() {
        let read = |bytes: &[u8]| Routing::read(bytes, 4);
        for bad in [&[][..], &[0; 6], &[64, 0, 255, 255, 255, 255], &[1, 0, 1, 0, 0, 0, 0]] {
            assert!(matches!(read(bad), Err(Fault::Corrupt { .. })), "{bad:?}");
        }
        let one = |id: u32, cost: f32, key: f32| {
            [&[1, 0, 1, 0, 0, 0][..], &id.to_le_bytes(), &cost.to_le_bytes(), &key.to_le_bytes()].concat()
        };
        assert!(read(&one(3, 1.0, 1.0)).is_ok());
        for bad in [one(4, 1.0, 1.0), one(0, -1.0, 1.0), one(0, f32::NAN, 1.0), one(0, 1.0, f32::INFINITY)] {
            assert!(matches!(read(&bad), Err(Fault::Corrupt { .. })));
        }
    }
}
