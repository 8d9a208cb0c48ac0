//! Every level against plain arithmetic.

use super::*;
use crate::Isa;

struct Dots<'a, const GROUP: usize, const WIDE: bool>(&'a [u8], &'a [i8], &'a [i32], i32);
impl<const GROUP: usize, const WIDE: bool> VectorTask for Dots<'_, GROUP, WIDE> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = Vec::new();
        for at in (0..self.1.len()).step_by(S::LANES * GROUP) {
            let ints = s.group_sums::<GROUP, WIDE>(self.0, self.1, at, &self.2[at / GROUP..], self.3);
            out.resize(at / GROUP + S::LANES, 0.0);
            s.store(s.to_f32(ints), &mut out[at / GROUP..]);
        }
        out
    }
}

fn dots_of_groups_are_exact<const GROUP: usize, const WIDE: bool>(offset: i32) {
    let largest = if WIDE { 255 } else { 127 };
    for len in (64..=576).step_by(64) {
        // Extremes that would saturate 16-bit sums, then a spread of values.
        let w: Vec<u8> = (0..len)
            .map(|i| match i % 96 {
                0..32 => 0,
                32..64 => largest,
                _ => ((i * 91 + i / 7) % (usize::from(largest) + 1)) as u8,
            })
            .collect();
        let a: Vec<i8> = (0..len)
            .map(|i| if i % 160 < 64 { [127, -127][i / 160 % 2] } else { ((i * 37) % 255) as i16 as i8 })
            .map(|a| a.max(-127))
            .collect();
        let room = len.next_multiple_of(512) / GROUP;
        let mut sums: Vec<i32> =
            a.chunks_exact(GROUP).map(|a| a.iter().map(|&a| i32::from(a)).sum()).collect();
        sums.resize(room, 0);
        let products = |(w, a): (&[u8], &[i8])| {
            w.iter().zip(a).map(|(&w, &a)| (i32::from(w) - offset) * i32::from(a)).sum::<i32>() as f32
        };
        let want: Vec<f32> = w.chunks_exact(GROUP).zip(a.chunks_exact(GROUP)).map(products).collect();
        for isa in Isa::available() {
            let out = isa.vector(Dots::<GROUP, WIDE>(&w, &a, &sums, offset));
            assert_eq!(out[..want.len()], want, "{GROUP} {offset} {len} {isa}");
        }
    }
}

struct Loads<'a>(&'a [u8]);
impl VectorTask for Loads<'_> {
    type Output = Vec<[f32; 16]>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = vec![[f32::NAN; 16]; 4];
        for at in (0..16).step_by(S::LANES) {
            s.store(s.load_f16(&self.0[2 * at..]), &mut out[0][at..]);
            s.store(s.load_bf16(&self.0[2 * at..]), &mut out[1][at..]);
            s.store(s.load_f32(&self.0[4 * at..]), &mut out[2][at..]);
            s.store(s.to_f32(s.load_i8(&self.0[at..])), &mut out[3][at..]);
        }
        out
    }
}

#[test]
fn numbers_are_loaded_alike_at_every_level() {
    for start in (0..=u16::MAX).step_by(61) {
        let halves: Vec<u16> = (0..32).map(|i| start.wrapping_add(i * 2053)).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        for isa in Isa::available() {
            let out = isa.vector(Loads(&bytes));
            for i in 0..16 {
                let word = u32::from(halves[2 * i]) | u32::from(halves[2 * i + 1]) << 16;
                let want = [
                    widen(halves[i]),
                    f32::from_bits(u32::from(halves[i]) << 16),
                    f32::from_bits(word),
                    f32::from(bytes[i] as i8),
                ];
                for (got, want) in out.iter().map(|out| out[i]).zip(want) {
                    assert!(
                        got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                        "{isa} {got} {want}"
                    );
                }
            }
        }
    }
}

struct Turned<'a>([&'a [f32]; 4]);
impl VectorTask for Turned<'_> {
    type Output = [[f32; 4]; 4];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        s.turn(self.0)
    }
}

#[test]
fn rows_are_turned_and_the_smaller_numbers_found_at_every_level() {
    let x: Vec<f32> = (0..40).map(|i| i as f32).collect();
    for isa in Isa::available() {
        let turned = isa.vector(Turned([&x, &x[9..], &x[18..], &x[27..31]]));
        for (i, row) in turned.into_iter().enumerate() {
            assert_eq!(row, [0.0, 9.0, 18.0, 27.0].map(|x| x + i as f32), "{isa}");
        }
        let (a, b) = (&x[5..21], [12.0; 16]);
        assert_eq!(isa.vector(Smaller(a, &b)), a.iter().map(|a| a.min(12.0)).collect::<Vec<_>>(), "{isa}");
    }
}

struct Widened;
impl VectorTask for Widened {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        (0..=u16::MAX).all(|half| {
            let (one, other) = (s.widen_half(half), widen(half));
            one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan()
        })
    }
}

#[test]
fn halves_are_widened_at_every_level() {
    assert!(Isa::available().into_iter().all(|isa| isa.vector(Widened)));
}

struct Transposed<'a>(&'a [f32]);
impl VectorTask for Transposed<'_> {
    type Output = (usize, Vec<u8>);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut rows, mut out) = ([s.splat_i(0); 16], vec![0; 4 * S::LANES * S::LANES]);
        for (r, row) in rows.iter_mut().take(S::LANES).enumerate() {
            *row = s.bits_of(s.load(&self.0[r * S::LANES..]));
        }
        for (column, out) in s.transposed(rows).into_iter().zip(out.chunks_exact_mut(4 * S::LANES)) {
            s.store_bytes(column, out);
        }
        (S::LANES, out)
    }
}

#[test]
fn squares_are_transposed_at_every_level() {
    let x: Vec<f32> = (0..256).map(|i| i as f32 + 0.1).collect();
    for isa in Isa::available() {
        let (lanes, bytes) = isa.vector(Transposed(&x));
        for (at, number) in bytes.as_chunks::<4>().0.iter().enumerate() {
            assert_eq!(f32::from_le_bytes(*number), x[at % lanes * lanes + at / lanes], "{at} {isa}");
        }
    }
}

struct LowAndLarger<'a>(&'a [f32], &'a [f32]);
impl VectorTask for LowAndLarger<'_> {
    type Output = ([i8; 16], Vec<u8>);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut low, mut larger) = ([0; 16], vec![0; 64]);
        for at in (0..16).step_by(S::LANES) {
            let (a, b) = (s.bits_of(s.load(&self.0[at..])), s.bits_of(s.load(&self.1[at..])));
            s.store_low_bytes(a, &mut low[at..]);
            s.store_bytes(s.max_i(a, b), &mut larger[4 * at..]);
        }
        (low, larger)
    }
}

#[test]
fn low_bytes_are_stored_and_the_larger_integers_found_at_every_level() {
    let bits = |i: u32| i.wrapping_mul(2_654_435_761);
    let numbers = |from: u32| -> Vec<f32> { (from..from + 16).map(|i| f32::from_bits(bits(i))).collect() };
    for isa in Isa::available() {
        let (low, larger) = isa.vector(LowAndLarger(&numbers(1), &numbers(40)));
        for i in 0..16 {
            let (a, b) = (bits(i + 1), bits(i + 40));
            assert_eq!(low[i as usize], a as i8, "{isa}");
            let bytes = larger[4 * i as usize..][..4].try_into().unwrap();
            assert_eq!(i32::from_le_bytes(bytes), (a as i32).max(b as i32), "{isa}");
        }
    }
}

struct Smaller<'a>(&'a [f32], &'a [f32]);
impl VectorTask for Smaller<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; 16];
        for at in (0..16).step_by(S::LANES) {
            s.store(s.min(s.load(&self.0[at..]), s.load(&self.1[at..])), &mut out[at..]);
        }
        out
    }
}

struct Halves<'a>(&'a [u8], usize, &'a mut [[f32; 16]; 2]);
impl VectorTask for Halves<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [first, second] = self.2;
        s.half_pairs(self.0, self.1, first, second);
    }
}

/// Ways of making bytes of others, by numbers.
struct Made<'a>(usize, &'a [u8], &'a mut [u8]);
impl VectorTask for Made<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let Made(way, x, out) = self;
        let v = match way {
            0 => s.load_bytes(x),
            1 => s.blocks(x, 34),
            2 => s.nibbles(x, 18),
            3 => s.repeat(x),
            4 => s.bytes_where(16, x, 7),
            5 => s.look_up(&TABLE, s.and_bytes(s.load_bytes(x), 15)),
            6 => s.shift_right(s.load_bytes(x), 6, 3),
            7 => s.shift_left::<5>(s.load_bytes(x)),
            8 => s.bits::<2>(x, 12),
            9 => s.bits::<3>(x, 12),
            10 => s.bits::<4>(x, 20),
            11 => s.xor_bytes(s.load_bytes(x), 0x5a),
            _ => s.or(s.load_bytes(x), s.and_bytes(s.load_bytes(&x[5..]), 0xa6)),
        };
        s.store_bytes(v, out);
        4 * S::LANES
    }
}

const TABLE: [u8; 16] = [250, 3, 0, 9, 255, 128, 127, 77, 1, 2, 4, 8, 16, 32, 64, 5];

#[test]
fn bytes_are_made_alike_at_every_level() {
    let x: Vec<u8> = (0..160).map(|i| (i * 59 + i * i / 3 + 3) as u8).collect();
    let lane = |i: usize| u32::from_le_bytes(x[i / 4 * 4..i / 4 * 4 + 4].try_into().unwrap());
    let bits = |n: usize, step: usize, i: usize| {
        let bit = |b: usize| x[i / 32 * step + b / 8] >> (b % 8) & 1;
        (0..n).map(|b| bit(i % 32 * n + b) << b).sum()
    };
    let want = |way: usize, i: usize| match way {
        0 => x[i],
        1 => x[i / 32 * 34 + i % 32],
        2 => x[i / 32 * 18 + i % 16] >> (i % 32 / 16 * 4) & 15,
        3 => x[i % 32],
        4 => 16 * (x[i / 32 * 7 + i % 32 / 8] >> (i % 8) & 1),
        5 => TABLE[usize::from(x[i] & 15)],
        6 => (lane(i) >> [6, 3][i / 32] >> (i % 4 * 8)) as u8,
        7 => (lane(i) << 5 >> (i % 4 * 8)) as u8,
        8 => bits(2, 12, i),
        9 => bits(3, 12, i),
        10 => bits(4, 20, i),
        11 => x[i] ^ 0x5a,
        _ => x[i] | x[i + 5] & 0xa6,
    };
    for isa in Isa::available() {
        for way in 0..13 {
            let mut out = [0; 64];
            let n = isa.vector(Made(way, &x, &mut out));
            let want: Vec<u8> = (0..n).map(|i| want(way, i)).collect();
            assert_eq!(out[..n], want, "{way} {isa}");
        }
    }
}

#[test]
fn pairs_of_halves_are_widened_at_every_level() {
    for step in [4, 18, 20, 34, 66] {
        for start in (0..=u16::MAX).step_by(29) {
            let mut bytes = vec![0u8; 15 * step + 4];
            let half = |i: usize| start.wrapping_add(i as u16 * 2111);
            for i in 0..16 {
                bytes[i * step..i * step + 2].copy_from_slice(&half(2 * i).to_le_bytes());
                bytes[i * step + 2..i * step + 4].copy_from_slice(&half(2 * i + 1).to_le_bytes());
            }
            for isa in Isa::available() {
                let mut out = [[f32::NAN; 16]; 2];
                isa.vector(Halves(&bytes, step, &mut out));
                for (i, pair) in (0..16).map(|i| (i, [out[0][i], out[1][i]])) {
                    for (k, x) in pair.into_iter().enumerate() {
                        let want = widen(half(2 * i + k));
                        assert!(x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan(), "{isa}");
                    }
                }
            }
        }
    }
}

struct LaneDots<'a, const WIDE: bool>(&'a [u8], &'a [i8]);
impl<const WIDE: bool> VectorTask for LaneDots<'_, WIDE> {
    /// What is in the lanes, and how much less of each byte counted.
    type Output = (Vec<f32>, i32);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut sum = s.splat_i(5);
        for (w, a) in self.0.chunks_exact(4 * S::LANES).zip(self.1.chunks_exact(4)) {
            let a = i32::from_le_bytes([a[0], a[1], a[2], a[3]].map(|a| a as u8));
            sum = s.lane_dots::<WIDE>(sum, s.load_bytes(w), a);
        }
        let mut lanes = vec![0.0; S::LANES];
        s.store(s.to_f32(sum), &mut lanes);
        (lanes, if WIDE && !S::BIASED { 128 } else { 0 })
    }
}

fn dots_of_lanes_are_exact<const WIDE: bool>() {
    let largest = if WIDE { 255u8 } else { 127 };
    // Extremes that would be the first to saturate sums of 16 bits, then a spread of values.
    let w: Vec<u8> = (0..1024)
        .map(|i| match i {
            0..256 => largest,
            256..512 => 0,
            _ => ((i * 37 + i / 9) % (usize::from(largest) + 1)) as u8,
        })
        .collect();
    let a: Vec<i8> = (0..128).map(|i| if i < 32 { -127 } else { ((i * 91) % 255) as i16 as i8 }).collect();
    let a: Vec<i8> = a.into_iter().map(|a| a.max(-127)).collect();
    for isa in Isa::available() {
        let (lanes, less) = isa.vector(LaneDots::<WIDE>(&w, &a));
        for (l, &lane) in lanes.iter().enumerate() {
            let own = (0..w.len()).filter(|i| i / 4 % lanes.len() == l);
            let product =
                |i: usize| (i32::from(w[i]) - less) * i32::from(a[i / (4 * lanes.len()) * 4 + i % 4]);
            // At most 128 products below 2^15, so exact as f32.
            assert_eq!(lane, (own.map(product).sum::<i32>() + 5) as f32, "lane {l}, {WIDE}, {isa}");
        }
    }
}

#[test]
fn dots_of_lanes_are_exact_at_every_level() {
    dots_of_lanes_are_exact::<false>();
    dots_of_lanes_are_exact::<true>();
}

#[test]
fn dots_of_groups_are_exact_at_every_level() {
    for offset in [0, 8, 32] {
        dots_of_groups_are_exact::<16, false>(offset);
        dots_of_groups_are_exact::<32, false>(offset);
    }
    dots_of_groups_are_exact::<16, true>(128);
    dots_of_groups_are_exact::<32, true>(128);
}

struct Edges<'a>(&'a [f32]);
impl VectorTask for Edges<'_> {
    /// Sums of vectors at once and one by one, and what is loaded of too few numbers.
    type Output = (Vec<f32>, Vec<f32>, Vec<Vec<f32>>);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut vectors = [s.splat(0.0); 16];
        let mut single = vec![];
        for (v, x) in vectors.iter_mut().zip(self.0.chunks_exact(S::LANES)) {
            *v = s.load(x);
            single.push(s.sum(*v));
        }
        single.truncate(S::LANES);
        let out = |v| {
            let mut out = vec![0.0; S::LANES];
            s.store(v, &mut out);
            out
        };
        let few = (0..S::LANES).map(|n| out(s.load_first(&self.0[..n]))).collect();
        (out(s.sums(vectors)), single, few)
    }
}

#[test]
fn sums_of_many_vectors_and_of_few_numbers_at_every_level() {
    // Sizes that differ show the order of additions.
    let x: Vec<f32> = (1..=256).map(|i| (i * 7919 % 257) as f32 * 10f32.powi(i % 7 - 3)).collect();
    for isa in Isa::available() {
        let (sums, single, few) = isa.vector(Edges(&x));
        assert_eq!(sums, single, "{isa}");
        for (n, lanes) in few.iter().enumerate() {
            let want: Vec<f32> = (0..lanes.len()).map(|i| if i < n { x[i] } else { 0.0 }).collect();
            assert_eq!(*lanes, want, "{isa} {n}");
        }
    }
}

struct Highest<'a>(&'a [f32]);
impl VectorTask for Highest<'_> {
    type Output = (f32, usize);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, usize) {
        (s.highest(s.load(self.0)), S::LANES)
    }
}

#[test]
fn the_highest_lane_is_found_wherever_it_is() {
    for isa in Isa::available() {
        for at in 0..16 {
            let x: Vec<f32> = (0..16).map(|i| if i == at { -1.5 } else { -2.0 - i as f32 }).collect();
            let (highest, lanes) = isa.vector(Highest(&x));
            let want = x[..lanes].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(highest, want, "{isa} {at}");
        }
    }
}
