//! What fuzz targets run: any bytes may come in, and what must hold is asserted.

use crate::{DType, list};
use fonio_simd::Isa;

/// Equal bits, or both not a number: which NaN comes out of an operation is not specified.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
}

/// Unpacks `data`, less its first byte, as the type that this byte names: every pattern of whole blocks is
/// valid, every instruction set and the integer view give the same values, other lengths are errors.
pub fn dequantize(data: &[u8]) {
    let Some((&first, packed)) = data.split_first() else { return };
    let t = list::ALL[usize::from(first) % list::ALL.len()];
    let blocks = packed.len() / t.block_bytes();
    let (whole, rest) = packed.split_at(blocks * t.block_bytes());
    let mut want = vec![0f32; blocks * t.block_len()];
    assert_eq!(t.dequantize(Isa::scalar(), packed, &mut want).is_ok(), rest.is_empty(), "{t}");
    t.dequantize(Isa::scalar(), whole, &mut want).expect("whole blocks");
    for isa in Isa::available() {
        let mut got = vec![0f32; want.len()];
        t.dequantize(isa, whole, &mut got).expect("whole blocks");
        assert!(same(&got, &want), "{t} on {isa}");
        assert!(same(&through_groups(t, isa, whole).unwrap_or(got), &want), "groups of {t} on {isa}");
    }
}

fn through_groups(t: DType, isa: Isa, packed: &[u8]) -> Option<Vec<f32>> {
    let groups = t.codec().groups()?;
    let len = packed.len() / t.block_bytes() * t.block_len();
    let group = groups.group_len();
    let (mut q, mut scale, mut min) = (vec![0u8; len], vec![0f32; len / group], vec![0f32; len / group]);
    groups.unpack(isa, packed, &mut q, &mut scale, &mut min);
    let offset = groups.offset();
    assert!(offset == 128 || q.iter().all(|&q| q < 128), "{t}: dot products take these as seven bits");
    let integer = |q: u8| f32::from(i16::from(q) - i16::from(offset));
    let values = q.iter().enumerate().map(|(i, &q)| scale[i / group] * integer(q) - min[i / group]);
    Some(values.collect())
}

/// Packs `data`, less its first two bytes, taken as `f32`, to the type that the first byte names, with weights if the
/// second is odd: finite values give finite values that are no worse than zeros, the same at every instruction set;
/// others are refused.
pub fn quantize(data: &[u8]) {
    let [first, second, rest @ ..] = data else { return };
    let makes: Vec<DType> =
        list::ALL.iter().copied().filter(|t| t.is_quantized() && t.can_quantize()).collect();
    let t = makes[usize::from(*first) % makes.len()];
    let floats: Vec<f32> = rest.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let weighted = second % 2 == 1;
    let blocks = floats.len() / if weighted { 2 } else { 1 } / t.block_len();
    let (values, weights) = floats.split_at(blocks * t.block_len());
    let weights = weighted.then(|| &weights[..values.len()]).filter(|w| !w.is_empty());
    let mut packed = vec![0; blocks * t.block_bytes()];
    let made = t.quantize(Isa::scalar(), values, weights, &mut packed);
    assert_eq!(made.is_ok(), values.iter().all(|x| x.is_finite()), "{t}");
    if made.is_err() {
        return;
    }
    for isa in Isa::available() {
        let mut again = vec![0; packed.len()];
        t.quantize(isa, values, weights, &mut again).expect("was fine before");
        assert_eq!(again, packed, "{t} on {isa}");
    }
    let mut back = vec![0f32; values.len()];
    t.dequantize(Isa::scalar(), &packed, &mut back).expect("whole blocks");
    assert!(back.iter().all(|x| x.is_finite()), "{t}: {values:?} gives {back:?}");
    if weights.is_none() {
        for (x, y) in values.chunks_exact(t.block_len()).zip(back.chunks_exact(t.block_len())) {
            let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                x.iter().zip(y).map(|(&x, &y)| f(f64::from(x), f64::from(y)).powi(2)).sum()
            };
            let (error, energy) = (sum(&|x, y| x - y), sum(&|x, _| x));
            // All zeros is a block of every type; sums in single precision may prefer one that is worse by rounding.
            assert!(error <= energy * 1.001, "{t}: error {error:e} of {energy:e}: {x:?} gives {y:?}");
        }
    }
}
