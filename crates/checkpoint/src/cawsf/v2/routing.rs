//! ROUTING of version 2: what a shard is worth for a prompt.
//!
//! ```text
//! u64 seed  u32 dim  u32 n  u16 length  the embedding tensor's name
//! f32 mean[dim]
//! n × { u32 shard, f32 cost in MiB, f32 worth, f32 key[dim] }
//! ```
//!
//! A prompt's feature is the mean of its tokens' embeddings, each made of length 1, times a matrix of signs that the
//! seed gives, `/ √dim`, less the mean of the same over the calibration text. A shard's worth for it is
//! `worth + key · feature`: the share of its matrix's output energy that it is expected to add, `‖R·x‖² / ‖W·x‖²`, as a
//! regression on the calibration text found it. Shards are taken by worth for each MiB, the largest first and equal
//! ones by their numbers; with a budget a shard that would pass it is skipped and the next one tried.

use super::super::unpack::corrupt;
use crate::cursor::{Cursor, Fault};

/// A shard's place in the routing table.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Number of the shard in INDEX.
    pub shard: u32,
    /// What taking it costs, in MiB.
    pub cost: f32,
    /// Its worth for a prompt like the calibration text on the whole.
    pub worth: f32,
    /// How that changes with the prompt's feature.
    pub key: Vec<f32>,
}

/// The routing table.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// What the signs are drawn from.
    pub seed: u64,
    /// The tensor whose rows are the tokens' embeddings.
    pub embedding: String,
    /// Mean of the calibration text's features; as long as a feature.
    pub mean: Vec<f32>,
    /// The shards.
    pub entries: Vec<Entry>,
}

/// A shard for a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Number of the shard in INDEX.
    pub shard: u32,
    /// What taking it costs, in MiB.
    pub cost: f32,
    /// What it is worth for the prompt.
    pub worth: f64,
}

impl Choice {
    /// What shards are ranked by.
    pub fn rate(&self) -> f64 {
        self.worth / f64::from(self.cost).max(1e-6)
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The mean of rows made of length 1, times signs, `/ √dim`: nothing of rows that have no length.
pub fn projected<'a>(seed: u64, dim: usize, rows: impl Iterator<Item = &'a [f32]>) -> Vec<f64> {
    let mut mean: Vec<f64> = Vec::new();
    let mut count = 0f64;
    for row in rows {
        let length = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        if mean.is_empty() {
            mean.resize(row.len(), 0.0);
        }
        count += 1.0;
        if length > 0.0 {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / length);
        }
    }
    let mut out = vec![0f64; dim];
    let scale = 1.0 / (count.max(1.0) * (dim as f64).sqrt());
    for (at, value) in (0u64..).zip(&mean) {
        // One number gives 64 signs.
        for (block, out) in (0u64..).zip(out.chunks_mut(64)) {
            let mut signs = mix(seed ^ mix(at.wrapping_mul(1 << 20).wrapping_add(block)));
            for out in out {
                *out += if signs & 1 == 1 { value * scale } else { -value * scale };
                signs >>= 1;
            }
        }
    }
    out
}

impl Routing {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = self.seed.to_le_bytes().to_vec();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        out.extend(count(self.mean.len()));
        out.extend(count(self.entries.len()));
        out.extend(u16::try_from(self.embedding.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(self.embedding.as_bytes());
        self.mean.iter().for_each(|v| out.extend(v.to_le_bytes()));
        for entry in &self.entries {
            out.extend(entry.shard.to_le_bytes());
            [entry.cost, entry.worth].iter().chain(&entry.key).for_each(|v| out.extend(v.to_le_bytes()));
        }
        out
    }

    /// Reads the section of a file of `shards` shards.
    pub(super) fn read(bytes: &[u8], shards: usize) -> Result<Routing, Fault> {
        let mut c = Cursor::new(bytes, bytes.len() as u64);
        let (seed, dim, n, len) = (c.u64()?, u64::from(c.u32()?), u64::from(c.u32()?), u64::from(c.u16()?));
        let name = std::str::from_utf8(c.take(len)?).map_err(|_| corrupt("a name is not UTF-8"))?;
        // Before anything is allocated: the rest is as long as these two numbers say.
        let each = dim.saturating_mul(4).saturating_add(12);
        if dim == 0 || c.left() != n.saturating_mul(each).saturating_add(dim.saturating_mul(4)) {
            return Err(c.corrupt(format!("{n} keys of {dim} values in {} bytes", c.left())));
        }
        let finite = |c: &mut Cursor| match c.f32()? {
            value if value.is_finite() => Ok(value),
            value => Err(c.corrupt(format!("{value} in the table"))),
        };
        let values = |c: &mut Cursor| (0..dim).map(|_| finite(c)).collect::<Result<Vec<f32>, Fault>>();
        let mean = values(&mut c)?;
        let mut entries = Vec::new();
        for _ in 0..n {
            let shard = c.u32()?;
            if shard as usize >= shards {
                return Err(c.corrupt(format!("a key of shard {shard}; there are {shards}")));
            }
            let (cost, worth) = (finite(&mut c)?, finite(&mut c)?);
            if cost < 0.0 {
                return Err(c.corrupt(format!("a cost of {cost}")));
            }
            entries.push(Entry { shard, cost, worth, key: values(&mut c)? });
        }
        Ok(Routing { seed, embedding: name.into(), mean, entries })
    }

    /// The feature of a prompt whose tokens have these embeddings. Without tokens it is that of the calibration text.
    pub fn feature<'a>(&self, rows: impl Iterator<Item = &'a [f32]>) -> Vec<f64> {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return vec![0.0; self.mean.len()];
        }
        let mut feature = projected(self.seed, self.mean.len(), rows);
        feature.iter_mut().zip(&self.mean).for_each(|(f, m)| *f -= f64::from(*m));
        feature
    }

    /// All shards for a prompt's feature, the most useful for its size first.
    pub fn rank(&self, feature: &[f64]) -> Vec<Choice> {
        let choice = |e: &Entry| {
            let more: f64 = e.key.iter().zip(feature).map(|(k, f)| f64::from(*k) * f).sum();
            // Energies are not negative, whatever a regression says.
            Choice { shard: e.shard, cost: e.cost, worth: (f64::from(e.worth) + more).max(0.0) }
        };
        let mut all: Vec<Choice> = self.entries.iter().map(choice).collect();
        all.sort_by(|a, b| b.rate().total_cmp(&a.rate()).then(a.shard.cmp(&b.shard)));
        all
    }

    /// At most `k` shards for a prompt's feature, within a budget in MiB if there is one.
    pub fn select(&self, feature: &[f64], k: usize, budget: Option<f64>) -> Vec<Choice> {
        let mut spent = 0.0;
        let within = |choice: &Choice| {
            let cost = f64::from(choice.cost);
            let fits = budget.is_none_or(|most| spent + cost <= most);
            spent += if fits { cost } else { 0.0 };
            fits
        };
        self.rank(feature).into_iter().filter(within).take(k).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Routing {
        let entry = |shard, cost, worth, key: [f32; 2]| Entry { shard, cost, worth, key: key.into() };
        Routing {
            seed: 7,
            embedding: "e".into(),
            mean: vec![0.0, 0.0],
            entries: vec![
                entry(0, 2.0, 1.0, [0.0, 0.0]),
                entry(1, 1.0, 0.8, [1.0, 0.0]),
                entry(2, 1.0, 0.8, [-1.0, 0.0]),
                entry(4, 4.0, 0.1, [0.0, 9.0]),
            ],
        }
    }

    #[test]
    fn the_feature_moves_the_choice() {
        let table = table();
        let ids = |feature: [f64; 2], k, budget| {
            table.select(&feature, k, budget).iter().map(|c| c.shard).collect::<Vec<_>>()
        };
        assert_eq!(ids([0.0, 0.0], 9, None), [1, 2, 0, 4]);
        assert_eq!(ids([0.5, 0.0], 2, None), [1, 0]);
        assert_eq!(ids([-0.5, 0.0], 2, None), [2, 0]);
        assert_eq!(ids([0.0, 1.0], 1, None), [4]);
        assert_eq!(ids([0.0, 1.0], 9, Some(2.5)), [1, 2], "skipped, not stopped at");
        assert_eq!(table.rank(&[-9.0, 0.0]).last().unwrap().worth, 0.0);
        assert_eq!(table.feature(std::iter::empty()), [0.0, 0.0]);
    }

    #[test]
    fn projections_keep_lengths_and_angles_nearly() {
        let rows: Vec<Vec<f32>> = (0..6)
            .map(|r| (0..300).map(|i| ((i * (r + 3) * 37 % 101) as f32 - 50.0) / 9.0).collect())
            .collect();
        let of = |r: usize| projected(3, 512, std::iter::once(&rows[r][..]));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for r in 0..6 {
            // Johnson and Lindenstrauss: the error has a deviation of about √(2 / 512).
            assert!((dot(&of(r), &of(r)) - 1.0).abs() < 0.3);
        }
        assert_ne!(of(0), projected(4, 512, std::iter::once(&rows[0][..])));
    }

    #[test]
    fn what_is_written_is_read_and_hostile_tables_are_refused() {
        let table = table();
        let bytes = table.bytes();
        assert_eq!(Routing::read(&bytes, 5).unwrap(), table);
        assert!(matches!(Routing::read(&bytes, 4), Err(Fault::Corrupt { .. })), "a shard that is not there");
        for (at, value) in [(8, 0u8), (8, 3), (12, 9), (16, 200), (18, 0xff), (22, 0xc0)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let same = Routing::read(&bad, 5).is_ok_and(|r| r == table);
            assert!(!same, "{at}");
        }
        for nan in [19, 19 + 8 + 4, 19 + 8 + 8] {
            let mut bad = bytes.clone();
            bad[nan..nan + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            assert!(Routing::read(&bad, 5).is_err(), "{nan}");
        }
        (0..bytes.len()).for_each(|len| assert!(Routing::read(&bytes[..len], 5).is_err(), "{len}"));
    }
}
