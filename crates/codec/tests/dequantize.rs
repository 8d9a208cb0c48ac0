//! Every type against what ggml unpacks, bit for bit, at every instruction set.
//!
//! `conformance/codec/generate.py` made the fixture and says what is in it.

use fonio_codec::{DType, list};
use fonio_simd::Isa;
use safetensors::SafeTensors;

const FIXTURE: &[u8] = include_bytes!("../../../conformance/codec/dequantize.safetensors");
const HASHED_VALUES: usize = 1 << 19;
const HASH_BLOCKS: usize = 64;
const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const NAN: u32 = 0x7fc0_0000;

/// The bits of a value, those of all NaNs being the same.
fn bits(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

fn splitmix64(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    words.take(len.div_ceil(8)).flat_map(u64::to_le_bytes).take(len).collect()
}

/// Bytes of whole blocks, with the bits that ggml makes of them or hashes of runs of these.
struct Case {
    dtype: DType,
    packed: Vec<u8>,
    values: Vec<u32>,
    hashed: Vec<u8>,
    hashes: Vec<u64>,
}

fn names<'a>(file: &'a SafeTensors<'a>) -> Vec<&'a str> {
    let mut names: Vec<&str> = file.names().into_iter().filter_map(|n| n.strip_suffix(".packed")).collect();
    names.sort_unstable();
    names
}

/// The cases of the types that the list has; another test sees to it that these are all.
fn cases() -> Vec<Case> {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap().data();
        data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    let case = |name: &str| {
        let dtype = DType::named(name)?;
        let hashed = if dtype.is_quantized() {
            let seed = u64::from(dtype.ggml_type().unwrap());
            splitmix64(seed, HASHED_VALUES / dtype.block_len() * dtype.block_bytes())
        } else {
            (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
        };
        let hashes = file.tensor(&format!("{name}.hash")).unwrap().data();
        Some(Case {
            dtype,
            packed: file.tensor(&format!("{name}.packed")).unwrap().data().to_vec(),
            values: words(&format!("{name}.values")).into_iter().map(|b| bits(f32::from_bits(b))).collect(),
            hashed,
            hashes: hashes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
        })
    };
    names(&file).into_iter().filter_map(case).collect()
}

/// Compares what `unpack` makes of a case's bytes, at every instruction set.
fn check(case: &Case, what: &str, unpack: impl Fn(Isa, &[u8], &mut [f32])) {
    let t = case.dtype;
    let len = |bytes: usize| bytes / t.block_bytes() * t.block_len();
    for isa in Isa::available() {
        let mut got = vec![0f32; len(case.packed.len())];
        unpack(isa, &case.packed, &mut got);
        assert_eq!(got.len(), case.values.len(), "{t}");
        for (i, (&x, &want)) in got.iter().zip(&case.values).enumerate() {
            assert_eq!(
                bits(x),
                want,
                "{what} of {t} on {isa}: value {i} is {x}, not {}",
                f32::from_bits(want)
            );
        }
        let mut got = vec![0f32; len(case.hashed.len())];
        unpack(isa, &case.hashed, &mut got);
        let run = HASH_BLOCKS * t.block_len().max(32);
        assert_eq!(got.len(), case.hashes.len() * run, "{t}");
        for (i, (values, &want)) in got.chunks_exact(run).zip(&case.hashes).enumerate() {
            let mix = |h: u64, x: &f32| h.wrapping_mul(HASH_FACTOR).wrapping_add(u64::from(bits(*x)));
            assert_eq!(values.iter().fold(0, mix), want, "{what} of {t} on {isa}: run {i} of {run} values");
        }
    }
}

#[test]
fn list_and_fixture_have_the_same_types() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let missing: Vec<&str> = names(&file).into_iter().filter(|n| DType::named(n).is_none()).collect();
    assert!(missing.is_empty(), "types that the list lacks: {missing:?}");
    for t in list::ALL.iter().filter(|t| t.is_quantized() && t.ggml_type().is_some()) {
        assert!(file.tensor(&format!("{t}.packed")).is_ok(), "{t}");
    }
}

#[test]
fn values_equal_ggml_bit_for_bit() {
    for case in cases() {
        check(&case, "dequantize", |isa, src, dst| case.dtype.dequantize(isa, src, dst).unwrap());
    }
}

#[test]
fn groups_equal_ggml_bit_for_bit() {
    for case in cases() {
        let Some(groups) = case.dtype.codec().groups() else {
            assert!(!case.dtype.is_quantized(), "{}", case.dtype);
            continue;
        };
        let len = groups.group_len();
        assert!(case.dtype.block_len().is_multiple_of(len), "{}", case.dtype);
        check(&case, "groups", |isa, src, dst| {
            let mut q = vec![0u8; dst.len()];
            let mut scale = vec![0f32; dst.len() / len];
            let mut min = vec![0f32; if groups.has_min() { dst.len() / len } else { 0 }];
            groups.unpack(isa, src, &mut q, &mut scale, &mut min);
            for (i, (value, q)) in dst.iter_mut().zip(q).enumerate() {
                let product = scale[i / len] * f32::from(i16::from(q) - i16::from(groups.offset()));
                *value = if groups.has_min() { product - min[i / len] } else { product };
            }
        });
    }
}
