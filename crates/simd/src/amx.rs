//! Products of bfloat16 matrices in AMX's tiles.
//!
//! A tile has 16 rows of 64 bytes: 32 values of each of 16 rows of one matrix, or 16 pairs of values of each of 16 columns
//! of the other. One instruction adds 16 × 16 sums of 32 products to a tile of `f32` (Intel, *Architecture Instruction Set
//! Extensions*, TDPBF16PS): products are exact, and each sum is rounded in an order of its own that depends on nothing but
//! the number of values, so that it is the same bits whatever its neighbours are. Subnormal numbers count as zero.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        unused_variables,
        unused_mut,
        unreachable_code,
        dead_code,
        reason = "nothing proves that it is there"
    )
)]

#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;

/// Rows or columns of a tile.
pub const TILE: usize = 16;
/// Values of each of them.
pub const STEP: usize = 32;

/// Bfloat16 numbers: for [`Tiles::multiply`]'s first matrix 32 values of each of 16 rows, for the second one 16 rows of
/// pairs, a pair of each column.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Tile([[u16; STEP]; TILE]);

impl Tile {
    /// All zeros.
    pub const ZERO: Tile = Tile([[0; STEP]; TILE]);
}

/// Sums: a row for each row of the first matrix, with one for each column of the second.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Sums(pub [[f32; TILE]; TILE]);

impl Sums {
    /// All zeros.
    pub const ZERO: Sums = Sums([[0.0; TILE]; TILE]);
}

/// Proof that the CPU has AMX with bfloat16 and AVX-512 with it, and that the system lets this process use them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Amx(Proof);

/// Nothing can prove it on other machines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    #[cfg(target_arch = "x86_64")]
    Found,
}

/// Rows of integers with a scale for each group: `value = scale · (q − offset) − min`.
#[derive(Clone, Copy)]
pub struct Grouped<'a> {
    /// A byte for each value.
    pub q: &'a [u8],
    /// What integers are less than their bytes.
    pub offset: u8,
    /// Values of a group: 16 or 32.
    pub group: usize,
    /// One for each group.
    pub scale: &'a [f32],
    /// The same, or none.
    pub min: &'a [f32],
}

impl Amx {
    /// Asks the CPU and the system.
    pub(crate) fn detect() -> Option<Amx> {
        #[cfg(target_arch = "x86_64")]
        if x86::is_there() {
            return Some(Amx(Proof::Found));
        }
        None
    }

    /// Rounds a row of integers with scales to row `row` of one tile after the other; behind its end are zeros.
    ///
    /// Panics if there are fewer scales than groups, or tiles for fewer values.
    pub fn round_grouped(self, mut from: Grouped<'_>, row: usize, to: &mut [Tile]) {
        let groups = from.q.len().div_ceil(from.group);
        assert!(from.group == 16 || from.group == 32, "a group has 16 or 32 values");
        from.scale = &from.scale[..groups];
        from.min = if from.min.is_empty() { from.min } else { &from.min[..groups] };
        assert!(row < TILE && from.q.len().div_ceil(STEP) <= to.len(), "room in tiles");
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof, and the lengths asserted above.
            Proof::Found => unsafe { x86::round_grouped(from, row, to) },
        }
    }

    /// Splits a row of values to row `row` of one tile after the other: what they are as bfloat16 numbers goes to `high`,
    /// what is left then to `low`, so that the sum of both is within 2⁻¹⁸ of each value. Behind its end are zeros.
    ///
    /// Panics if there are too few tiles.
    pub fn split_row(self, x: &[f32], row: usize, high: &mut [Tile], low: &mut [Tile]) {
        assert!(
            row < TILE && x.len().div_ceil(STEP) <= high.len() && low.len() == high.len(),
            "room in tiles"
        );
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof, and the lengths asserted above.
            Proof::Found => unsafe { x86::split_row(x, row, high, low) },
        }
    }

    /// Rounds up to 16 vectors of `len` values, one behind the other in `x`, to the columns of one tile after the other;
    /// where there is none are zeros. What is left of values goes to `low`, if that is not empty, as in
    /// [`Amx::split_row`].
    ///
    /// Panics if there are more vectors, or too few tiles.
    pub fn split_columns(self, x: &[f32], len: usize, high: &mut [Tile], low: &mut [Tile]) {
        assert!(len > 0 && x.len().is_multiple_of(len) && x.len() / len <= TILE, "up to 16 vectors");
        assert!(len.div_ceil(STEP) <= high.len(), "room in tiles");
        assert!(low.is_empty() || low.len() == high.len(), "as many tiles of both");
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof, and the lengths asserted above.
            Proof::Found => unsafe { x86::split_columns(x, len, high, low) },
        }
    }

    /// Splits 16 columns of rows that are `stride` values apart, 32 rows to a tile, as [`Amx::split_row`] does: the columns are
    /// those of the tiles.
    ///
    /// Panics if there are not as many rows as tiles have place for.
    pub fn split_block(self, x: &[f32], stride: usize, high: &mut [Tile], low: &mut [Tile]) {
        assert!(low.len() == high.len() && stride >= TILE, "as many tiles of both");
        assert!(high.is_empty() || x.len() >= (high.len() * STEP - 1) * stride + TILE, "rows for all tiles");
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof, and the lengths asserted above.
            Proof::Found => unsafe { x86::split_block(x, stride, high, low) },
        }
    }

    /// Makes rows of columns.
    pub fn turn(self, sums: &Sums) -> Sums {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof.
            Proof::Found => unsafe { x86::turn(sums) },
        }
    }

    /// This thread's tiles, until it is dropped.
    pub fn tiles(self) -> Tiles {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof.
            Proof::Found => unsafe { x86::configure() },
        }
        Tiles(self, PhantomData)
    }
}

/// The tiles of one thread.
pub struct Tiles(Amx, PhantomData<*mut ()>);

impl Tiles {
    /// Products of two tiles' rows with two tiles' columns, each over as many steps as there are tiles: what
    /// `sums[2 · i + j]` becomes, or what is added to it if `add`, is of `rows[i]` and `columns[j]`.
    ///
    /// Panics if there are not as many steps of each, or none.
    pub fn multiply(&mut self, rows: [&[Tile]; 2], columns: [&[Tile]; 2], sums: &mut [Sums; 4], add: bool) {
        let steps = rows[0].len();
        assert!(
            steps > 0 && rows[1].len() == steps && columns.iter().all(|c| c.len() == steps),
            "as many steps"
        );
        match self.0.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof and the lengths, and tiles are configured while a `Tiles` lives.
            Proof::Found => unsafe { x86::multiply(rows, columns, sums, add) },
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        match self.0.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the proof; nothing is in the tiles that anybody needs.
            Proof::Found => unsafe { x86::release() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, which bfloat16 has exactly.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f32 - 11.0).collect()
    }

    fn product(amx: Amx, rows: &[f32], columns: &[f32], len: usize, cut: usize) -> [Sums; 4] {
        let steps = len.div_ceil(STEP);
        let mut a = vec![Tile::ZERO; 2 * steps];
        let mut b = vec![Tile::ZERO; 2 * steps];
        for (r, row) in rows.chunks_exact(len).enumerate() {
            // Bytes around 128 and one scale.
            let q: Vec<u8> = row.iter().map(|&x| (x + 128.0) as u8).collect();
            let scale = vec![1.0; len.div_ceil(16)];
            let from = Grouped { q: &q, offset: 128, group: 16, scale: &scale, min: &[] };
            amx.round_grouped(from, r % TILE, &mut a[r / TILE * steps..][..steps]);
        }
        for (j, columns) in columns.chunks(TILE * len).enumerate() {
            amx.split_columns(columns, len, &mut b[j * steps..][..steps], &mut []);
        }
        let mut sums = [Sums([[f32::NAN; TILE]; TILE]); 4];
        let mut tiles = amx.tiles();
        for part in [0..cut, cut..steps] {
            if !part.is_empty() {
                let of = |m: &'_ [Tile], i: usize| m[i * steps..][part.clone()].to_vec();
                let (a0, a1, b0, b1) = (of(&a, 0), of(&a, 1), of(&b, 0), of(&b, 1));
                tiles.multiply([&a0, &a1], [&b0, &b1], &mut sums, part.start > 0);
            }
        }
        sums
    }

    #[test]
    fn products_of_integers_are_exact() {
        let Some(amx) = Amx::detect() else { return eprintln!("skipped: no AMX") };
        for (len, rows, columns) in [(32, 32, 32), (64, 32, 19), (48, 17, 1), (176, 5, 32), (7, 32, 16)] {
            let (x, y) = (integers(rows * len, 1), integers(columns * len, 2));
            for cut in 0..=len.div_ceil(STEP) / 2 {
                let sums = product(amx, &x, &y, len, cut);
                for r in 0..rows {
                    for c in 0..columns {
                        let want: f32 = (0..len).map(|k| x[r * len + k] * y[c * len + k]).sum();
                        let of = &sums[r / TILE * 2 + c / TILE];
                        assert_eq!(of.0[r % TILE][c % TILE], want, "{len} {r} {c}");
                        assert_eq!(amx.turn(of).0[c % TILE][r % TILE], want);
                    }
                }
            }
        }
    }

    #[test]
    fn scales_and_minima_of_groups_are_rounded_to_nearest() {
        let Some(amx) = Amx::detect() else { return eprintln!("skipped: no AMX") };
        for group in [16, 32] {
            let len = 96;
            let q: Vec<u8> = (0..len).map(|i| (i * 29 % 128) as u8).collect();
            let scale: Vec<f32> = (0..len / group).map(|g| 0.013 * (g + 1) as f32).collect();
            let min: Vec<f32> = (0..len / group).map(|g| 0.37 * g as f32).collect();
            let mut tiles = vec![Tile::ZERO; len / STEP];
            amx.round_grouped(Grouped { q: &q, offset: 8, group, scale: &scale, min: &min }, 3, &mut tiles);
            for (i, &q) in q.iter().enumerate() {
                let want = scale[i / group] * (f32::from(q) - 8.0) - min[i / group];
                let got = f32::from_bits(u32::from(tiles[i / STEP].0[3][i % STEP]) << 16);
                // Half a step of eight bits, and what single precision loses of the terms.
                assert!((got - want).abs() <= want.abs() / 256.0 + 1e-6, "{group} {i}: {got} {want}");
            }
            assert!(tiles.iter().all(|t| t.0[2].iter().chain(&t.0[4]).all(|&x| x == 0)), "no other row");
        }
        let mut tiles = [Tile::ZERO];
        amx.split_columns(&[f32::NAN, f32::INFINITY, -0.1], 3, &mut tiles, &mut []);
        let [nan, infinite] =
            [tiles[0].0[0][0], tiles[0].0[0][1]].map(|x| f32::from_bits(u32::from(x) << 16));
        assert!(nan.is_nan() && infinite == f32::INFINITY);
    }

    #[test]
    fn values_are_sums_of_two_numbers() {
        let Some(amx) = Amx::detect() else { return eprintln!("skipped: no AMX") };
        let x: Vec<f32> = (1..=90).map(|i| (i as f32 * 0.731).exp() * (-1f32).powi(i)).collect();
        let mut parts = [[Tile::ZERO; 3]; 4];
        let [high, low, columns, rest] = &mut parts;
        amx.split_row(&x, 5, high, low);
        amx.split_columns(&x[..45], 45, columns, rest);
        let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
        for (i, &value) in x.iter().enumerate() {
            let [step, at] = [i / STEP, i % STEP];
            let sum = f64::from(wide(high[step].0[5][at])) + f64::from(wide(low[step].0[5][at]));
            assert!(
                (sum - f64::from(value)).abs() <= f64::from(value.abs()) * 2f64.powi(-17),
                "{value} {sum}"
            );
            if i < 45 {
                assert_eq!(columns[step].0[at / 2][at % 2], high[step].0[5][at]);
                assert_eq!(rest[step].0[at / 2][at % 2], low[step].0[5][at]);
            }
        }
    }

    #[test]
    fn columns_of_rows_are_split_as_vectors_are() {
        let Some(amx) = Amx::detect() else { return eprintln!("skipped: no AMX") };
        let (stride, steps) = (40, 2);
        let x: Vec<f32> = (0..STEP * steps * stride).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let turned: Vec<f32> =
            (0..TILE).flat_map(|n| x.iter().skip(n).step_by(stride).copied().collect::<Vec<f32>>()).collect();
        let [mut high, mut low, mut want_high, mut want_low] = [[Tile::ZERO; 2]; 4];
        amx.split_block(&x, stride, &mut high, &mut low);
        amx.split_columns(&turned, STEP * steps, &mut want_high, &mut want_low);
        for step in 0..steps {
            assert_eq!(high[step].0, want_high[step].0);
            assert_eq!(low[step].0, want_low[step].0);
        }
    }
}
