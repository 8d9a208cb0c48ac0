//! The bodies of the fuzz targets on a few thousand inputs that are the same each time.

use fonio_codec::{fuzz, list};

/// A stream of pseudo-random words (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From −1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

#[test]
fn any_bytes_unpack_to_the_same_values_everywhere() {
    let mut random = Random(1);
    for first in 0..list::ALL.len() {
        let t = list::ALL[first];
        for round in 0..40 {
            // Whole blocks most of the time.
            let extra = if round % 4 == 0 { random.below(t.block_bytes()) } else { 0 };
            let len = random.below(4) * t.block_bytes() + extra;
            let fill: Option<u8> = [Some(0x00), Some(0xff), Some(0x80), Some(0x7f), None][round.min(4)];
            let mut data = vec![first as u8];
            data.extend((0..len).map(|_| fill.unwrap_or(random.next() as u8)));
            fuzz::dequantize(&data);
        }
    }
    fuzz::dequantize(&[]);
}

/// Values of kinds that break searches for scales.
fn hostile(random: &mut Random, kind: usize, i: usize) -> f32 {
    let unit = random.unit();
    match kind {
        0 => 0.0,
        1 => -0.0,
        2 => unit,
        3 => unit * 1e-30,
        4 => unit * 1e-43,
        5 => unit * f32::MAX,
        6 => [f32::MAX, f32::MIN][i % 2],
        7 => f32::MIN_POSITIVE * unit.signum(),
        8 => unit * 2f32.powi(random.below(250) as i32 - 126),
        9 => [0.0, 1.0][usize::from(i % 97 == 5)],
        10 => [1e-7 * unit, 3e4][usize::from(i % 64 == 63)],
        11 => 1.0,
        12 => -1.0,
        13 => 0.25 + 1e-4 * unit,
        14 => unit * 65504.0,
        15 => unit * 6e-8,
        16 => f32::from_bits(random.next() as u32),
        _ => unit.abs(),
    }
}

#[test]
fn any_values_pack_to_finite_ones_the_same_everywhere() {
    let mut random = Random(2);
    let makes = list::ALL.iter().filter(|t| t.is_quantized() && t.can_quantize());
    for (first, t) in makes.enumerate() {
        for kind in 0..18 {
            for weights in 0..6 {
                let mut data = vec![first as u8, u8::from(weights > 0)];
                let len = t.block_len() * 2;
                for i in 0..len {
                    data.extend(hostile(&mut random, kind, i).to_le_bytes());
                }
                for i in 0..len {
                    let weight = match weights {
                        1 => 0.0,
                        2 => random.unit().abs(),
                        3 => [0.0, 1e-42, f32::MAX, 1.0][i % 4],
                        4 => [f32::INFINITY, f32::NAN, -1.0, 1.0][i % 4],
                        5 => f32::from_bits(random.next() as u32),
                        _ => break,
                    };
                    data.extend(weight.to_le_bytes());
                }
                fuzz::quantize(&data);
            }
        }
    }
    fuzz::quantize(&[0]);
}
