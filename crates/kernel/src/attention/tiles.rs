//! Many queries times a cache, in AMX's tiles.
//!
//! Queries, keys, weights and values are sums of two bfloat16 numbers each, `high + low`, within 2⁻¹⁷ of what they are, and
//! all products but those of two low parts are added up: rows of tiles have high, high and low parts one after the other,
//! columns high, low and high ones.

use super::piece::{CHUNK, weigh};
use super::store::PAD;
use super::unpack::rows;
use super::{Attention, Queries};
use crate::share::Shared;
use crate::tiles::{SQUARE, at_least};
use fonio_simd::amx::{Amx, STEP, Sums, TILE, Tile, Tiles};
use fonio_simd::{Isa, Lines, Simd, VectorTask};

/// Rows of queries that are taken together: enough to pay for the unpacking of keys and values.
const ROWS: usize = 128;
/// Steps of a chunk's positions.
const STEPS: usize = CHUNK / STEP;
/// Squares of a chunk's positions.
const ACROSS: usize = CHUNK / SQUARE;

/// Tokens whose queries of `group` heads are taken together.
pub(super) fn tokens(group: usize) -> usize {
    (ROWS / group).max(1)
}

/// What a thread keeps between pieces.
#[derive(Default)]
pub(crate) struct Scratch {
    row: Vec<f32>,
    keys: Lines<f32>,
    values: Lines<f32>,
    query_tiles: Vec<Tile>,
    key_tiles: Vec<Tile>,
    value_tiles: Vec<Tile>,
    weight_tiles: Vec<Tile>,
    /// Weighted sums of values, of each 32 rows of queries and 32 values.
    sums: Vec<[Sums; 4]>,
    max_sum: Vec<(f32, f32)>,
}

/// Some queries that share a head of keys, times all that they see.
pub(super) struct Piece<'a, 'b> {
    pub job: &'a Attention<'a>,
    pub isa: Isa,
    pub amx: Amx,
    pub all: &'a [f32],
    pub queries: &'a Queries,
    pub scratch: &'a mut Scratch,
    pub out: &'a Shared<'b, f32>,
}

/// Numbers of things.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    /// Values of padded rows.
    sk: usize,
    sv: usize,
    /// Tiles behind one another of 16 queries or keys: three times the steps of a head.
    deep: usize,
    /// Squares of rows, and of a value.
    squares: usize,
    wide: usize,
}

impl VectorTask for Piece<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (sk, sv) =
            (self.job.keys.head_dim.next_multiple_of(PAD), self.job.values.head_dim.next_multiple_of(PAD));
        let rows = self.queries.len();
        let n = Sizes {
            rows,
            sk,
            sv,
            deep: 3 * sk.div_ceil(STEP),
            squares: rows.div_ceil(SQUARE),
            wide: sv.div_ceil(SQUARE),
        };
        self.begin(n);
        let (job, amx) = (self.job, self.amx);
        let seen = self.queries.tokens.clone();
        let end = job.start + seen.end;
        let first = job.window.map_or(0, |w| (job.start + seen.start + 1).saturating_sub(w));
        // Not in a closure, which would not be compiled for the level.
        let mut tiles = amx.tiles();
        let mut chunk = first / CHUNK * CHUNK;
        while chunk < end {
            self.unpack(s, n, chunk, CHUNK.min(end - chunk));
            let mut square = 0;
            while square < n.squares {
                self.square(s, &mut tiles, n, square, chunk);
                square += 1;
            }
            chunk += CHUNK;
        }
        self.finish(s, n);
    }
}

impl Piece<'_, '_> {
    /// Makes place, splits the queries, and makes sums what they are before any position.
    fn begin(&mut self, n: Sizes) {
        let Piece { job, queries, all, amx, .. } = *self;
        let scratch = &mut *self.scratch;
        let dim = job.keys.head_dim;
        scratch.row.clear();
        scratch.row.resize(n.sk, 0.0);
        scratch.keys.resize(CHUNK * n.sk);
        scratch.values.resize(CHUNK * n.sv);
        at_least(&mut scratch.query_tiles, 2 * n.squares * n.deep, Tile::ZERO);
        at_least(&mut scratch.key_tiles, 2 * ACROSS * n.deep, Tile::ZERO);
        at_least(&mut scratch.value_tiles, 2 * n.wide * 3 * STEPS, Tile::ZERO);
        at_least(&mut scratch.weight_tiles, 2 * 3 * STEPS, Tile::ZERO);
        scratch.sums.clear();
        scratch.sums.resize(n.squares * n.wide, [Sums::ZERO; 4]);
        scratch.max_sum.clear();
        for (i, (token, head)) in queries.rows().enumerate() {
            let from = &all[(token * job.heads + head) * dim..][..dim];
            scratch.row.iter_mut().zip(from).for_each(|(to, q)| *to = q * job.scale);
            let tiles = &mut scratch.query_tiles[i / TILE * n.deep..][..n.deep];
            let (high, low) = tiles.split_at_mut(2 * n.deep / 3);
            amx.split_row(&scratch.row, i % TILE, &mut high[..n.deep / 3], low);
            high.copy_within(..n.deep / 3, n.deep / 3);
            scratch.max_sum.push(job.sinks.map_or((f32::NEG_INFINITY, 0.0), |sinks| (sinks[head], 1.0)));
        }
    }

    /// Unpacks and splits the keys and values of a chunk.
    #[inline(always)]
    fn unpack<S: Simd>(&mut self, s: S, n: Sizes, chunk: usize, len: usize) {
        let Piece { job, isa, amx, .. } = *self;
        let head = self.queries.heads.start / (job.heads / job.keys.shape.heads());
        let Scratch { keys, values, key_tiles, value_tiles, .. } = &mut *self.scratch;
        rows(s, isa, &job.keys, (head, chunk, len), keys);
        rows(s, isa, &job.values, (head, chunk, len), values);
        // They weigh 0, but would spoil sums if they were not numbers.
        values[len * n.sv..].fill(0.0);
        let third = n.deep / 3;
        for (keys, tiles) in keys.chunks_exact(TILE * n.sk).zip(key_tiles.chunks_exact_mut(n.deep)) {
            let (high, low) = tiles.split_at_mut(third);
            amx.split_columns(keys, n.sk, high, &mut low[..third]);
            tiles.copy_within(..third, 2 * third);
        }
        for (i, tiles) in value_tiles.chunks_exact_mut(3 * STEPS).take(n.sv / TILE).enumerate() {
            let (high, low) = tiles.split_at_mut(STEPS);
            amx.split_block(&values[i * TILE..], n.sv, high, &mut low[..STEPS]);
            tiles.copy_within(..STEPS, 2 * STEPS);
        }
    }

    /// Takes a chunk into the sums of 32 rows of queries.
    #[inline(always)]
    fn square<S: Simd>(&mut self, s: S, tiles: &mut Tiles, n: Sizes, square: usize, chunk: usize) {
        let Scratch { query_tiles, key_tiles, value_tiles, weight_tiles, sums, max_sum, .. } =
            &mut *self.scratch;
        let sums = &mut sums[square * n.wide..(square + 1) * n.wide];
        let mut scores = [[Sums::ZERO; 4]; ACROSS];
        let asked = two(query_tiles, n.deep, square);
        for (i, scores) in scores.iter_mut().enumerate() {
            tiles.multiply(asked, two(key_tiles, n.deep, i), scores, false);
        }
        let rows = square * SQUARE..n.rows.min((square + 1) * SQUARE);
        let mut r = 0;
        while r < SQUARE {
            let mut weights = [0f32; CHUNK];
            if r < rows.len() {
                let token = self.queries.tokens.start + (rows.start + r) / self.queries.heads.len();
                let position = self.job.start + token;
                let from = self.job.window.map_or(0, |w| (position + 1).saturating_sub(w)).max(chunk);
                let to = (position + 1).min(chunk + CHUNK).max(from);
                if from < to {
                    let mut at = 0;
                    while at < CHUNK {
                        let part = &scores[at / SQUARE][r / TILE * 2 + at / TILE % 2].0[r % TILE];
                        s.store(s.load(part), &mut weights[at..]);
                        at += TILE;
                    }
                    let seen = from - chunk..to - chunk;
                    let shrink =
                        weigh(s, self.job.softcap, &mut weights, &seen, &mut max_sum[rows.start + r]);
                    if shrink != 1.0 {
                        scale_row(s, sums, r, shrink);
                    }
                }
            }
            let tiles = &mut weight_tiles[r / TILE * 3 * STEPS..][..3 * STEPS];
            let (high, low) = tiles.split_at_mut(2 * STEPS);
            self.amx.split_row(&weights, r % TILE, &mut high[..STEPS], low);
            r += 1;
        }
        for tiles in weight_tiles[..2 * 3 * STEPS].chunks_exact_mut(3 * STEPS) {
            tiles.copy_within(..STEPS, STEPS);
        }
        let weights = two(weight_tiles, 3 * STEPS, 0);
        for (i, sums) in sums.iter_mut().enumerate() {
            tiles.multiply(weights, two(value_tiles, 3 * STEPS, i), sums, true);
        }
    }

    /// Writes the results.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, n: Sizes) {
        let (dim, heads) = (self.job.values.head_dim, self.job.heads);
        let mut row = vec![0.0; n.wide * SQUARE];
        for (i, (token, head)) in self.queries.rows().enumerate() {
            let sums = &self.scratch.sums[i / SQUARE * n.wide..][..n.wide];
            let whole = s.splat(1.0 / self.scratch.max_sum[i].1);
            let mut at = 0;
            while at < row.len() {
                let part = &sums[at / SQUARE][i % SQUARE / TILE * 2 + at / TILE % 2].0[i % TILE];
                s.store(s.mul(s.load(part), whole), &mut row[at..]);
                at += TILE;
            }
            // SAFETY: this head of this token is one caller's alone.
            unsafe { self.out.part((token * heads + head) * dim, dim) }.copy_from_slice(&row[..dim]);
        }
    }
}

/// Two times 16 rows or columns, of `deep` tiles each.
#[inline(always)]
fn two(tiles: &[Tile], deep: usize, square: usize) -> [&[Tile]; 2] {
    [0, 1].map(|half| &tiles[(2 * square + half) * deep..][..deep])
}

/// Multiplies a row of sums.
#[inline(always)]
fn scale_row<S: Simd>(s: S, sums: &mut [[Sums; 4]], r: usize, factor: f32) {
    let factor = s.splat(factor);
    for sums in sums {
        let mut j = 0;
        while j < 2 {
            let part = &mut sums[r / TILE * 2 + j].0[r % TILE];
            let lanes = s.mul(s.load(&part[..]), factor);
            s.store(lanes, part);
            j += 1;
        }
    }
}
