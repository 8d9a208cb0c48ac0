//! Products of quantized weights with activations that are rounded to bytes, once for each product.

use crate::Kernels;
use crate::matmul::Matrix;
use crate::share::Shared;
use crate::spare::Lent;
use fonio_codec::block::Groups;
use fonio_codec::dot::{self, Acts, Scratch};
use fonio_simd::{Isa, Lines, Simd, VectorTask};

/// Rows of activations, rounded; each group has a scale.
#[derive(Default)]
pub(crate) struct ByteActs {
    group: usize,
    tokens: usize,
    /// Places of a row's integers, and of its groups.
    stride: usize,
    places: usize,
    q: Lines<i8>,
    sum: Lines<i32>,
    scale: Lines<f32>,
    total: Lines<f32>,
}

impl ByteActs {
    /// Rounds rows of `cols` values.
    pub(crate) fn pack<'a>(kernels: &'a Kernels, x: &[f32], cols: usize, group: usize) -> Lent<'a, ByteActs> {
        let (stride, places) = (dot::padded(cols), dot::group_places(cols, group));
        let tokens = x.len() / cols;
        // One row is there so often that many rows can be multiplied with it together.
        let often = if tokens == 1 { dot::together(cols) } else { 1 };
        let mut lent = kernels.bytes.lend();
        let acts = &mut *lent;
        (acts.group, acts.tokens, acts.stride, acts.places) = (group, tokens, stride, places);
        // Zeros behind the last value of a row.
        zeros(&mut acts.q, (tokens * stride).max(often * cols));
        zeros(&mut acts.sum, (tokens * places).max(dot::group_places(often * cols, group)));
        zeros(&mut acts.scale, tokens * places);
        zeros(&mut acts.total, tokens * places);
        let (q, sum) = (Shared::new(&mut acts.q), Shared::new(&mut acts.sum));
        let (scale, total) = (Shared::new(&mut acts.scale), Shared::new(&mut acts.total));
        kernels.pool().each(
            tokens,
            16,
            || (),
            |(), range| {
                for t in range {
                    // SAFETY: each token is in one range, and its parts overlap no other token's.
                    let row = unsafe {
                        Row {
                            q: q.part(t * stride, stride),
                            sum: sum.part(t * places, places),
                            scale: scale.part(t * places, places),
                            total: total.part(t * places, places),
                        }
                    };
                    row.round(kernels.isa(), &x[t * cols..(t + 1) * cols], group);
                }
            },
        );
        if often > 1 {
            acts.stride = acts.q.len();
            for i in 1..often {
                acts.q.copy_within(..cols, i * cols);
                acts.sum.copy_within(..cols / group, i * cols / group);
            }
        }
        lent
    }

    /// Whether there is one row.
    pub(crate) fn is_single(&self) -> bool {
        self.tokens == 1
    }

    fn row(&self, token: usize) -> Acts<'_> {
        let groups = token * self.places..(token + 1) * self.places;
        Acts {
            q: &self.q[token * self.stride..(token + 1) * self.stride],
            sum: if self.tokens == 1 { &self.sum } else { &self.sum[groups.clone()] },
            scale: &self.scale[groups.clone()],
            total: &self.total[groups],
        }
    }
}

fn zeros<T: Copy + Default>(x: &mut Lines<T>, n: usize) {
    x.resize(n);
    x.fill(T::default());
}

/// Where one row of activations is rounded to: what [`Acts`] has, zeros before.
pub(crate) struct Row<'a> {
    pub q: &'a mut [i8],
    pub sum: &'a mut [i32],
    pub scale: &'a mut [f32],
    pub total: &'a mut [f32],
}

impl Row<'_> {
    pub(crate) fn round(self, isa: Isa, x: &[f32], group: usize) {
        match group {
            16 => isa.vector(Round::<16>(x, self)),
            _ => isa.vector(Round::<32>(x, self)),
        }
    }
}

/// Adding it rounds to an integer, which is in the low bits then: 1.5 · 2²³.
const ROUND: f32 = 12_582_912.0;

struct Round<'a, const GROUP: usize>(&'a [f32], Row<'a>);

impl<const GROUP: usize> VectorTask for Round<'_, GROUP> {
    type Output = ();
    /// A group in each lane where groups are compared and added up.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round(x, row) = self;
        let mut first = 0;
        while first < x.len() / GROUP {
            let n = S::LANES.min(x.len() / GROUP - first);
            let x = &x[first * GROUP..(first + n) * GROUP];
            let q = &mut row.q[first * GROUP..(first + n) * GROUP];
            let largest = largest::<S, GROUP>(s, x);
            let (mut scale, mut inverse) = ([0f32; 16], [0f32; 16]);
            for l in 0..S::LANES {
                // A NaN stays visible in the scale.
                scale[l] = largest[l] / 127.0;
                // Groups of numbers that are too small for an inverse are zeros.
                let quotient = 127.0 / largest[l];
                inverse[l] = if largest[l] > 0.0 && quotient < f32::INFINITY { quotient } else { 0.0 };
            }
            let mut added = [s.splat(0.0); 16];
            for g in 0..n {
                let inverse = s.splat(inverse[g]);
                let mut at = g * GROUP;
                while at < (g + 1) * GROUP {
                    // The low byte of the mantissa is the rounded number; a conversion checks value by value.
                    let rounded = s.add(s.mul(s.load(&x[at..]), inverse), s.splat(ROUND));
                    s.store_low_bytes(s.bits_of(rounded), &mut q[at..]);
                    added[g] = s.add(added[g], s.add(rounded, s.splat(-ROUND)));
                    at += S::LANES;
                }
            }
            let mut sums = [0f32; 16];
            s.store(s.sums(added), &mut sums);
            row.scale[first..first + n].copy_from_slice(&scale[..n]);
            for g in 0..n {
                row.sum[first + g] = sums[g] as i32;
                row.total[first + g] = sums[g] * scale[g];
            }
            first += n;
        }
    }
}

/// The largest magnitude of each group, up to as many as there are lanes.
#[inline(always)]
fn largest<S: Simd, const GROUP: usize>(s: S, x: &[f32]) -> [f32; 16] {
    let mut groups = [s.splat_i(0); 16];
    let mut at = 0;
    while at < x.len() {
        // Magnitudes are ordered as their bits are, and those of a NaN are above all others.
        let bits = s.and(s.bits_of(s.load(&x[at..])), s.splat_i(0x7fff_ffff));
        groups[at / GROUP] = s.max_i(groups[at / GROUP], bits);
        at += S::LANES;
    }
    let lanes = s.transposed(groups);
    let (mut all, mut l) = (lanes[0], 1);
    while l < S::LANES {
        all = s.max_i(all, lanes[l]);
        l += 1;
    }
    let (mut bytes, mut largest) = ([0u8; 64], [0f32; 16]);
    s.store_bytes(all, &mut bytes);
    s.store(s.load_f32(&bytes), &mut largest);
    largest
}

/// What one thread keeps between strips.
#[derive(Default)]
pub(crate) struct Buffers {
    rows: Vec<Scratch>,
    out: Vec<f32>,
}

/// A strip of rows times all tokens.
pub(crate) struct Strip<'a, 'b> {
    pub weight: &'a Matrix<'a>,
    pub groups: &'a dyn Groups,
    pub isa: Isa,
    pub first: usize,
    pub rows: usize,
    pub acts: &'a ByteActs,
    pub out: &'a Shared<'b, f32>,
}

impl Strip<'_, '_> {
    pub(crate) fn multiply(&self, buffers: &mut Buffers) {
        debug_assert_eq!(self.groups.group_len(), self.acts.group);
        buffers.rows.resize_with(self.rows.max(1), Scratch::default);
        if self.acts.tokens == 1 {
            let packed = self.weight.packed(self.first, self.rows);
            // SAFETY: this strip is this thread's alone, so its rows' places are too.
            let out = unsafe { self.out.part(self.first, self.rows) };
            self.groups.dots(self.isa, packed, self.acts.row(0), &mut buffers.rows[0], out);
        } else {
            self.unpack(buffers);
            self.isa.vector(Many { strip: self, buffers });
        }
    }

    /// Unpacks the rows.
    fn unpack(&self, buffers: &mut Buffers) {
        let cols = self.weight.cols();
        for (r, row) in buffers.rows[..self.rows].iter_mut().enumerate() {
            row.resize(cols, self.acts.group);
            let n = cols / self.acts.group;
            let packed = self.weight.packed(self.first + r, 1);
            let Scratch { q, scale, min, .. } = row;
            self.groups.unpack(self.isa, packed, &mut q[..cols], &mut scale[..n], &mut min[..n]);
        }
    }
}

/// Unpacked rows times several tokens.
struct Many<'a, 'b> {
    strip: &'a Strip<'a, 'b>,
    buffers: &'a mut Buffers,
}

impl VectorTask for Many<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.strip.groups;
        match (groups.group_len(), groups.offset(), groups.has_min()) {
            (16, _, true) => self.multiply::<S, 16, false, true>(s),
            (16, 128, _) => self.multiply::<S, 16, true, false>(s),
            (16, _, _) => self.multiply::<S, 16, false, false>(s),
            (_, _, true) => self.multiply::<S, 32, false, true>(s),
            (_, 128, _) => self.multiply::<S, 32, true, false>(s),
            (_, _, _) => self.multiply::<S, 32, false, false>(s),
        }
    }
}

impl Many<'_, '_> {
    #[inline(always)]
    fn multiply<S: Simd, const GROUP: usize, const WIDE: bool, const MIN: bool>(self, s: S) {
        let Many { strip, buffers } = self;
        let offset = i32::from(strip.groups.offset());
        buffers.out.resize(strip.rows, 0.0);
        for t in 0..strip.acts.tokens {
            let acts = strip.acts.row(t);
            for (r, row) in buffers.rows[..strip.rows].iter().enumerate() {
                let Scratch { q, scale, min, .. } = row;
                let row = dot::Row { scale, min, offset };
                buffers.out[r] = dot::dot::<S, GROUP, WIDE, MIN>(s, &q[..], row, &acts);
            }
            // SAFETY: this strip is this thread's alone, so its rows' places are too.
            let out = unsafe { strip.out.part(t * strip.weight.rows() + strip.first, strip.rows) };
            out.copy_from_slice(&buffers.out[..strip.rows]);
        }
    }
}
