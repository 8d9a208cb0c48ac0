//! Packers, written from the formats' definitions.

use crate::memory::{Memory, Random};
use fonio_codec::{DType, list};

/// Where the bits of an integer are in its words: word, bit of the word, bit of the integer. For 3 bits as AutoGPTQ's
/// packer lists them: ten whole ones, one across, ten from bit 1 on, one across, ten from bit 2 on.
fn places(i: usize, bits: usize) -> Vec<(usize, usize, usize)> {
    if bits != 3 {
        let per = 32 / bits;
        return (0..bits).map(|b| (i / per, i % per * bits + b, b)).collect();
    }
    let first = i / 32 * 3;
    let three = |word: usize, at: usize| (0..3).map(|b| (first + word, at + b, b)).collect();
    match i % 32 {
        k @ 0..=9 => three(0, 3 * k),
        10 => vec![(first, 30, 0), (first, 31, 1), (first + 1, 0, 2)],
        k @ 11..=20 => three(1, 3 * (k - 11) + 1),
        21 => vec![(first + 1, 31, 0), (first + 2, 0, 1), (first + 2, 1, 2)],
        k => three(2, 3 * (k - 22) + 2),
    }
}

/// Packs `n` integers of `bits`: the words.
pub fn pack(n: usize, bits: usize, value: impl Fn(usize) -> u32) -> Vec<u32> {
    let mut words = vec![0u32; (n * bits).div_ceil(32)];
    for i in 0..n {
        for (word, at, bit) in places(i, bits) {
            words[word] |= (value(i) >> bit & 1) << at;
        }
    }
    words
}

/// Swaps rows and columns.
pub fn turn<T: Copy>(m: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| m.iter().skip(c).step_by(cols).copied()).collect()
}

/// A random weight of integers: all by outputs.
#[derive(Clone, Debug)]
pub struct Weight {
    pub rows: usize,
    pub cols: usize,
    pub bits: usize,
    pub groups: usize,
    pub group: Vec<usize>,
    pub q: Vec<u32>,
    pub zeros: Vec<u32>,
    pub scales: Vec<f32>,
}

impl Weight {
    /// Zero points are `zero`, or random ones from `1` on.
    pub fn random(
        random: &mut Random,
        (rows, cols, bits): (usize, usize, usize),
        size: usize,
        zero: Option<u32>,
    ) -> Weight {
        let groups = cols.div_ceil(size);
        let most = 1usize << bits;
        Weight {
            rows,
            cols,
            bits,
            groups,
            group: (0..cols).map(|c| c / size).collect(),
            q: (0..rows * cols).map(|_| random.below(most) as u32).collect(),
            zeros: (0..rows * groups).map(|_| zero.unwrap_or(1 + random.below(most - 1) as u32)).collect(),
            scales: (0..rows * groups).map(|_| random.half()).collect(),
        }
    }

    pub fn values(&self) -> Vec<f32> {
        let value = |i: usize| {
            let g = i / self.cols * self.groups + self.group[i % self.cols];
            self.scales[g] * (self.q[i] as f32 - self.zeros[g] as f32)
        };
        (0..self.q.len()).map(value).collect()
    }

    /// As GPTQ, zero points less `less`.
    pub fn gptq(&self, m: &mut Memory, name: &str, scale: DType, less: u32, map: bool) {
        let (rows, cols, bits) = (self.rows, self.cols, self.bits);
        let columns: Vec<u32> = (0..rows).flat_map(|r| pack(cols, bits, |c| self.q[r * cols + c])).collect();
        let words = cols * bits / 32;
        m.words(&format!("{name}.qweight"), &[words, rows], &turn(&columns, words));
        let zeros: Vec<u32> = (0..self.groups)
            .flat_map(|g| pack(rows, bits, |r| self.zeros[r * self.groups + g] - less))
            .collect();
        m.words(&format!("{name}.qzeros"), &[self.groups, rows * bits / 32], &zeros);
        m.floats(&format!("{name}.scales"), scale, &[self.groups, rows], &turn(&self.scales, self.groups));
        if map {
            let map: Vec<i32> = self.group.iter().map(|&g| g as i32).collect();
            m.ints(&format!("{name}.g_idx"), &[cols], &map);
        }
    }

    /// As AWQ's GEMM layout.
    pub fn awq(&self, m: &mut Memory, name: &str) {
        let (rows, cols) = (self.rows, self.cols);
        let line = |value: &dyn Fn(usize) -> u32| -> Vec<u32> {
            let word = |w: usize| {
                let order = [0, 2, 4, 6, 1, 3, 5, 7];
                (0..8).fold(0, |word, k| word | value(8 * w + order[k]) << (4 * k))
            };
            (0..rows / 8).map(word).collect()
        };
        let words: Vec<u32> = (0..cols).flat_map(|c| line(&|r| self.q[r * cols + c])).collect();
        m.words(&format!("{name}.qweight"), &[cols, rows / 8], &words);
        let zeros: Vec<u32> =
            (0..self.groups).flat_map(|g| line(&|r| self.zeros[r * self.groups + g])).collect();
        m.words(&format!("{name}.qzeros"), &[self.groups, rows / 8], &zeros);
        let scales = turn(&self.scales, self.groups);
        m.floats(&format!("{name}.scales"), list::F16, &[self.groups, rows], &scales);
    }

    /// As compressed-tensors' `pack-quantized`; the integers here are already those that are stored.
    pub fn compressed(&self, m: &mut Memory, name: &str, scale: DType, zeros: bool) {
        let (rows, cols, bits, groups) = (self.rows, self.cols, self.bits, self.groups);
        let words: Vec<u32> = (0..rows).flat_map(|r| pack(cols, bits, |c| self.q[r * cols + c])).collect();
        m.words(&format!("{name}.weight_packed"), &[rows, words.len() / rows], &words);
        let shape: Vec<u8> = [rows, cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
        m.add(&format!("{name}.weight_shape"), list::I64, &[2], shape);
        m.floats(&format!("{name}.weight_scale"), scale, &[rows, groups], &self.scales);
        if zeros {
            let columns: Vec<u32> =
                (0..groups).flat_map(|g| pack(rows, bits, |r| self.zeros[r * groups + g])).collect();
            let lines = columns.len() / groups;
            m.words(&format!("{name}.weight_zero_point"), &[lines, groups], &turn(&columns, lines));
        }
    }
}
