//! Numbers that are the same in every run: SplitMix64 (Steele, Lea, Flood 2014).

/// A generator; its whole state is one number, so that parts of a computation can have generators of their own.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

/// Mixes a number's bits.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// A generator for one of many uses of a seed.
    pub(super) fn new(seed: u64, of: u64) -> Random {
        Random(mix(seed ^ mix(of.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to 1, without 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Of the standard normal distribution, near enough: twelve uniform ones less six. Its logarithms and cosines
    /// would be the system's, and those differ.
    pub(super) fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }
}
