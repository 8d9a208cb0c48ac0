//! Properties of every quantizer, on values of all kinds.

use fonio_codec::{DType, list};
use fonio_simd::Isa;

fn quantizers() -> impl Iterator<Item = DType> {
    list::ALL.iter().copied().filter(|t| t.is_quantized() && t.can_quantize())
}

fn round_trip(dtype: DType, isa: Isa, values: &[f32], importance: Option<&[f32]>) -> (Vec<u8>, Vec<f32>) {
    let mut packed = vec![0xa5; dtype.bytes_for(values.len() as u64).unwrap() as usize];
    let mut unpacked = vec![f32::NAN; values.len()];
    dtype.quantize(isa, values, importance, &mut packed).unwrap();
    dtype.dequantize(isa, &packed, &mut unpacked).unwrap();
    (packed, unpacked)
}

/// Even numbers between 0 and 1.
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// 16 rows of 256 about as weights are: bell-shaped.
fn bell(seed: u64) -> Vec<f32> {
    let mut next = uniform(seed);
    (0..4096).map(|_| ((0..12).map(|_| next()).sum::<f64>() - 6.0) as f32 * 0.02).collect()
}

/// Rows of 256 of every awkward kind.
fn edges() -> Vec<(&'static str, Vec<f32>)> {
    let row = |f: &dyn Fn(usize) -> f32| (0..256).map(f).collect::<Vec<_>>();
    let sign = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    vec![
        ("zeros", row(&|_| 0.0)),
        ("negative zeros", row(&|_| -0.0)),
        ("one positive", row(&|i| if i == 37 { 3.25 } else { 0.0 })),
        ("one negative", row(&|i| if i == 255 { -0.0125 } else { 0.0 })),
        ("one in each group", row(&|i| if i % 16 == 3 { i as f32 - 100.0 } else { 0.0 })),
        ("constant", row(&|_| 0.7)),
        ("negative constant", row(&|_| -0.7)),
        ("positive, narrow", row(&|i| 1000.0 + i as f32 * 0.001)),
        ("negative, narrow", row(&|i| -1000.0 - i as f32 * 0.001)),
        ("two values", row(&|i| if i % 3 == 0 { 0.5 } else { -0.25 })),
        ("subnormal", row(&|i| f32::from_bits(i as u32 * 1000) * sign(i))),
        ("least", row(&|i| f32::from_bits(1) * sign(i))),
        ("scales below half precision", row(&|i| i as f32 * 1e-9 * sign(i))),
        ("subnormal scales", row(&|i| i as f32 * 1e-7 * sign(i))),
        ("too large for half precision", row(&|i| i as f32 * 1e6 * sign(i))),
        ("largest", row(&|_| f32::MAX)),
        ("largest of both signs", row(&|i| f32::MAX * sign(i))),
        ("from least to largest", row(&|i| 2f32.powi(i as i32 - 128) * sign(i / 2))),
        ("large and small groups", row(&|i| if i < 32 { 1e30 } else { 1e-30 } * sign(i))),
        ("ramp", row(&|i| i as f32 / 100.0)),
    ]
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum()
}

#[test]
fn every_value_gives_finite_values_no_worse_than_zeros() {
    let importance: Vec<f32> = (0..256).map(|i| (i % 7) as f32).collect();
    for dtype in quantizers() {
        for (name, values) in edges() {
            for weights in [None, Some(&importance[..])] {
                let (_, unpacked) = round_trip(dtype, Isa::detect(), &values, weights);
                assert!(unpacked.iter().all(|x| x.is_finite()), "{dtype} {name}");
                let weight = |i: usize| weights.map_or(1.0, |w| f64::from(w[i]).sqrt());
                let pairs = values.iter().zip(&unpacked).enumerate();
                let error = squares(pairs.map(|(i, (&a, &b))| weight(i) * (f64::from(a) - f64::from(b))));
                let zeros = squares(values.iter().enumerate().map(|(i, &a)| weight(i) * f64::from(a)));
                // Least squares in single precision: 256 terms, each rounded a few times.
                assert!(error <= zeros * 1.0001, "{dtype} {name}: {error:e} > {zeros:e}");
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in quantizers() {
        let (_, unpacked) = round_trip(dtype, Isa::detect(), &[0.0; 256], None);
        assert!(unpacked.iter().all(|&x| x == 0.0), "{dtype}");
    }
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    let mut values = bell(1);
    edges().into_iter().for_each(|(_, row)| values.extend(row));
    let mut next = uniform(2);
    let importance: Vec<f32> = (0..256).map(|_| (next() * 8.0 - 4.0).exp() as f32).collect();
    for dtype in quantizers() {
        for weights in [None, Some(&importance[..])] {
            let (want, _) = round_trip(dtype, Isa::scalar(), &values, weights);
            for isa in Isa::available() {
                assert!(round_trip(dtype, isa, &values, weights).0 == want, "{dtype} {isa}");
            }
        }
    }
}

#[test]
fn a_block_does_not_depend_on_its_neighbours() {
    let values = bell(3);
    for dtype in quantizers() {
        let (all, _) = round_trip(dtype, Isa::detect(), &values, None);
        let (len, bytes) = (dtype.block_len(), dtype.block_bytes());
        for (block, want) in values.chunks(len).zip(all.chunks(bytes)) {
            assert!(round_trip(dtype, Isa::detect(), block, None).0 == want, "{dtype}");
        }
    }
}

/// How far apart the levels are at most, as a part of the largest magnitude, if every scale is chosen for it alone.
fn step(dtype: DType) -> Option<f64> {
    if let Some((kind, _)) = fonio_codec::qsf::kind(dtype) {
        return Some(match kind {
            "2bit" | "2bit_sym" => 2.0 / 3.0,
            "3bit" => 2.0 / 7.0,
            "4bit" => 2.0 / 15.0,
            "4bit_sym" => 1.0 / 7.0,
            "8bit" => 1.0 / 127.0,
            _ => 1.0,
        });
    }
    Some(match dtype.name() {
        "Q4_0" => 1.0 / 8.0,
        "Q4_1" | "Q4_K" => 2.0 / 15.0,
        "Q5_0" => 1.0 / 16.0,
        "Q5_1" | "Q5_K" => 2.0 / 31.0,
        "Q8_0" => 1.0 / 127.0,
        "Q2_K" => 2.0 / 3.0,
        "Q3_K" => 1.0 / 4.0,
        "Q6_K" => 1.0 / 32.0,
        _ => return None,
    })
}

#[test]
fn root_mean_square_error_is_below_half_a_step() {
    let values = bell(4);
    for dtype in quantizers() {
        let Some(step) = step(dtype) else { continue };
        let (_, unpacked) = round_trip(dtype, Isa::detect(), &values, None);
        let len = dtype.block_len();
        for (a, b) in values.chunks(len).zip(unpacked.chunks(len)) {
            let most = a.iter().fold(0f64, |m, &x| m.max(f64::from(x).abs()));
            let error = squares(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
            // Rounding to half precision moves a level by 2^-11 of itself.
            let bound = most * (step / 2.0 + 1.0 / 2048.0);
            assert!((error / len as f64).sqrt() <= bound, "{dtype}: {error} {bound}");
        }
    }
}

#[test]
fn what_is_representable_is_kept() {
    for dtype in [list::Q4_0, list::Q5_0, list::Q8_0] {
        let (_, once) = round_trip(dtype, Isa::detect(), &bell(5), None);
        let (_, twice) = round_trip(dtype, Isa::detect(), &once, None);
        assert!(once == twice, "{dtype}");
    }
}

#[test]
fn only_the_ratios_of_weights_matter() {
    let values = bell(6);
    let mut next = uniform(7);
    let importance: Vec<f32> = (0..256).map(|_| next() as f32).collect();
    let scaled = |factor: f32| importance.iter().map(|w| w * factor).collect::<Vec<_>>();
    for dtype in quantizers() {
        let (want, _) = round_trip(dtype, Isa::detect(), &values, Some(&importance));
        for factor in [2f32.powi(40), 2f32.powi(-40)] {
            assert!(round_trip(dtype, Isa::detect(), &values, Some(&scaled(factor))).0 == want, "{dtype}");
        }
    }
}

#[test]
fn senseless_weights_do_no_harm() {
    let values = bell(8);
    for dtype in quantizers() {
        let plain = squares(values.iter().map(|&x| f64::from(x)));
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            for rest in [0.0, 1.0] {
                let weights: Vec<f32> = (0..256).map(|i| if i % 5 == 0 { bad } else { rest }).collect();
                let (_, unpacked) = round_trip(dtype, Isa::detect(), &values, Some(&weights));
                let error = squares(values.iter().zip(&unpacked).map(|(&a, &b)| f64::from(a) - f64::from(b)));
                // Values without weight may be clipped, but not blown up.
                assert!(error <= plain, "{dtype} {bad} {rest}: {error} {plain}");
            }
        }
    }
}

#[test]
fn one_value_with_all_the_weight_is_within_half_a_step() {
    let values = bell(9);
    for dtype in quantizers() {
        let Some(step) = step(dtype) else { continue };
        let weights: Vec<f32> = (0..256).map(|i| if i == 77 { 1.0 } else { 0.0 }).collect();
        let (_, unpacked) = round_trip(dtype, Isa::detect(), &values, Some(&weights));
        for (a, b) in values.chunks(256).zip(unpacked.chunks(256)) {
            let most = a.iter().fold(0f32, |m, &x| m.max(x.abs()));
            assert!((a[77] - b[77]).abs() <= most * step as f32 * 0.5, "{dtype}: {} {}", a[77], b[77]);
        }
    }
}
