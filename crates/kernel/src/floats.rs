//! Products of weights that are plain numbers.
//!
//! For one token they are multiplied as they are loaded, for more they are unpacked into `f32`, a strip of rows at a time,
//! and multiplied a tile of rows and tokens at a time. A lane adds up every sixteenth or eighth product either way, so that
//! results are the same bits.

use crate::matmul::Matrix;
use crate::share::Shared;
use fonio_codec::list;
use fonio_simd::{AHEAD, Isa, Simd, VectorTask};

/// Values that are multiplied between fetches.
const LINE: usize = 32;

/// Values that the widest level multiplies at once; rows of plain numbers are padded to it with zeros.
const PAD: usize = 16;

/// Activations as they are, rows padded with zeros.
pub(crate) struct FloatActs {
    stride: usize,
    x: Vec<f32>,
}

pub(crate) fn pack_floats(x: &[f32], cols: usize) -> FloatActs {
    let stride = cols.next_multiple_of(PAD);
    let mut padded = vec![0.0; x.len() / cols * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(x.chunks_exact(cols)) {
        to[..cols].copy_from_slice(from);
    }
    FloatActs { stride, x: padded }
}

/// A strip of rows of plain numbers times all tokens.
pub(crate) struct FloatStrip<'a, 'b> {
    pub weight: &'a Matrix<'a>,
    pub isa: Isa,
    pub first: usize,
    pub rows: usize,
    pub acts: &'a FloatActs,
    pub x: &'a mut Vec<f32>,
    pub out: &'a Shared<'b, f32>,
}

impl VectorTask for FloatStrip<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cols, stride) = (self.weight.cols(), self.acts.stride);
        if self.acts.x.len() == stride && cols == stride {
            match self.weight.dtype() {
                t if t == list::F16 => return self.direct::<S, Halves>(s),
                t if t == list::BF16 => return self.direct::<S, Brains>(s),
                t if t == list::F32 => return self.direct::<S, Singles>(s),
                _ => {}
            }
        }
        let x = &mut *self.x;
        x.resize(self.rows * stride, 0.0);
        for (r, row) in x.chunks_exact_mut(stride).enumerate() {
            row[cols..].fill(0.0);
            self.weight.row(self.isa, self.first + r, &mut row[..cols]);
        }
        let tokens = self.acts.x.len() / stride;
        let mut t = 0;
        while t < tokens {
            let n = if tokens - t >= 4 { 4 } else { 1 };
            let mut r = 0;
            while r < self.rows {
                let m = if self.rows - r >= 4 { 4 } else { 1 };
                match (m, n) {
                    (4, 4) => self.tile::<S, 4, 4>(s, r, t),
                    (4, _) => self.tile::<S, 4, 1>(s, r, t),
                    (_, 4) => self.tile::<S, 1, 4>(s, r, t),
                    _ => self.tile::<S, 1, 1>(s, r, t),
                }
                r += m;
            }
            t += n;
        }
    }
}

/// A type whose values are loaded as they are multiplied.
pub(crate) trait Load {
    const BYTES: usize;
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F;
}

pub(crate) struct Halves;
pub(crate) struct Brains;
pub(crate) struct Singles;

impl Load for Halves {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f16(bytes)
    }
}

impl Load for Brains {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_bf16(bytes)
    }
}

impl Load for Singles {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(s: S, bytes: &[u8]) -> S::F {
        s.load_f32(bytes)
    }
}

impl FloatStrip<'_, '_> {
    /// Rows times one token, straight from their bytes: as few at once as keep the CPU busy, because it reads one after the
    /// other faster than side by side.
    #[inline(always)]
    fn direct<S: Simd, L: Load>(&self, s: S) {
        let mut r = 0;
        while r < self.rows {
            if S::LANES < PAD && self.rows - r >= 2 {
                self.direct_rows::<S, L, 2>(s, r);
                r += 2;
            } else {
                self.direct_rows::<S, L, 1>(s, r);
                r += 1;
            }
        }
    }

    /// The order of additions is that of [`FloatStrip::tile`].
    #[inline(always)]
    fn direct_rows<S: Simd, L: Load, const R: usize>(&self, s: S, row: usize) {
        let a = &self.acts.x[..];
        let size = a.len() * L::BYTES;
        let all = self.weight.packed(self.first + row, R);
        let mut acc = [s.splat(0.0); R];
        let mut i = 0;
        while i + LINE <= a.len() {
            let x = &a[i..i + LINE];
            for r in 0..R {
                let w = &all[r * size + i * L::BYTES..][..LINE * L::BYTES];
                // Not what is read beside this row anyway.
                s.prefetch(w.as_ptr().wrapping_add((R * size).max(AHEAD)));
                let mut k = 0;
                while k < LINE {
                    acc[r] = s.fma(L::load(s, &w[k * L::BYTES..]), s.load(&x[k..]), acc[r]);
                    k += S::LANES;
                }
            }
            i += LINE;
        }
        while i < a.len() {
            let x = s.load(&a[i..]);
            for r in 0..R {
                acc[r] = s.fma(L::load(s, &all[r * size + i * L::BYTES..]), x, acc[r]);
            }
            i += S::LANES;
        }
        // SAFETY: this strip is this thread's alone, so its rows' places are too.
        let out = unsafe { self.out.part(self.first + row, R) };
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = s.sum(acc);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const T: usize>(&self, s: S, row: usize, token: usize) {
        let stride = self.acts.stride;
        let w: [&[f32]; R] = std::array::from_fn(|r| &self.x[(row + r) * stride..][..stride]);
        let a: [&[f32]; T] = std::array::from_fn(|t| &self.acts.x[(token + t) * stride..][..stride]);
        let mut acc = [[s.splat(0.0); T]; R];
        let mut i = 0;
        while i + S::LANES <= stride {
            let x: [S::F; T] = std::array::from_fn(|t| s.load(&a[t][i..]));
            for (acc, w) in acc.iter_mut().zip(w) {
                let w = s.load(&w[i..]);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = s.fma(w, x, *acc);
                }
            }
            i += S::LANES;
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (t, acc) in acc.into_iter().enumerate() {
                let at = (token + t) * self.weight.rows() + self.first + row + r;
                // SAFETY: this strip is this thread's alone, so its rows' places are too.
                unsafe { self.out.part(at, 1)[0] = s.sum(acc) };
            }
        }
    }
}
