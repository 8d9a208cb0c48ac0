//! Values and types of what is read.

use crate::memory::{Memory, Random, assert_same, check_pieces, values};
use crate::pack::{Weight, turn};
use fonio_checkpoint::Checkpoint;
use fonio_codec::{DType, list};
use fonio_model::prequant::mxfp4;
use fonio_simd::Isa;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn gptq(bits: usize, size: i64, sym: bool, format: &str) -> Value {
    json!({
        "quant_method": "gptq", "bits": bits, "group_size": size, "sym": sym, "desc_act": false,
        "checkpoint_format": format, "damp_percent": 0.1, "meta": {"quantizer": ["x:1"]}, "pack_dtype": "int32",
    })
}

fn awq(size: i64) -> Value {
    json!({
        "quant_method": "awq", "bits": 4, "group_size": size, "zero_point": true, "version": "gemm",
        "modules_to_not_convert": null, "backend": "autoawq", "do_fuse": false,
    })
}

fn compressed(format: &str, weights: Value) -> Value {
    let mut group = json!({
        "targets": ["Linear"], "output_activations": null,
        "input_activations": {"num_bits": 8, "type": "int", "dynamic": true, "strategy": "token"},
    });
    group["weights"] = weights;
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": null,
        "sparsity_config": {}, "transform_config": {}, "version": "0.12.2",
    })
}

fn weights(bits: usize, strategy: &str, size: Option<usize>, symmetric: bool) -> Value {
    json!({
        "num_bits": bits, "type": "int", "strategy": strategy, "group_size": size, "symmetric": symmetric,
        "dynamic": false, "actorder": null, "observer": "minmax", "observer_kwargs": {}, "block_structure": null,
    })
}

#[test]
fn gptq_of_every_width() {
    let mut random = Random(1);
    for bits in [2, 3, 4, 8] {
        let middle = 1 << (bits - 1);
        for (size, map) in [(32, true), (64, false), (128, true), (96, true), (16, true), (usize::MAX, true)]
        {
            for zero in [Some(middle), None] {
                for (format, less) in [("gptq", 1), ("gptq_v2", 0)] {
                    let shape = (96, 192, bits);
                    let group = size.min(192);
                    let weight = Weight::random(&mut random, shape, group, zero);
                    let mut m = Memory::new();
                    weight.gptq(&mut m, "a.q_proj", list::F16, less, map);
                    m.floats("a.q_proj.bias", list::F16, &[96], &[0.5; 96]);
                    let config_size = if size == usize::MAX { -1 } else { size as i64 };
                    let view = m.open(gptq(bits, config_size, zero.is_some(), format)).unwrap();
                    let names: Vec<&str> = view.tensors().iter().map(|t| t.name.as_str()).collect();
                    assert_eq!(names, ["a.q_proj.weight", "a.q_proj.bias"]);
                    assert_eq!(view.tensors()[0].shape, [96, 192]);
                    let (dtype, got) = values(view.as_ref(), "a.q_proj.weight");
                    let what = format!("{bits} bits, {size}, {zero:?}, {format}");
                    assert_same(&got, &weight.values(), &what);
                    let want = match (group % 32, bits, zero) {
                        (1.., ..) => "F32",
                        (0, 2 | 3, _) | (0, 4, Some(_)) => "Q4_0",
                        (0, 4, None) => "Q5_0",
                        (0, _, Some(_)) => "Q8_0",
                        _ => "F32",
                    };
                    assert_eq!(dtype.name(), want, "{what}");
                    check_pieces(view.as_ref(), "a.q_proj.weight", || random.below(9000));
                }
            }
        }
    }
}

#[test]
fn gptq_in_the_order_of_activations() {
    let mut random = Random(2);
    let mut weight = Weight::random(&mut random, (64, 128, 4), 32, Some(8));
    weight.group = (0..128).map(|c| (c * 37 + 5) % 128 / 32).collect();
    let mut m = Memory::new();
    weight.gptq(&mut m, "x", list::F16, 1, true);
    let mut config = gptq(4, 32, true, "gptq");
    config["desc_act"] = json!(true);
    let view = m.open(config).unwrap();
    let (dtype, got) = values(view.as_ref(), "x.weight");
    assert_eq!(dtype, list::F32);
    assert_same(&got, &weight.values(), "act order");
    // Whole blocks of groups out of order are still blocks.
    weight.group = (0..128).map(|c| 3 - c / 32).collect();
    let mut m = Memory::new();
    weight.gptq(&mut m, "x", list::F16, 1, true);
    let view = m.open(gptq(4, 32, true, "gptq")).unwrap();
    let (dtype, got) = values(view.as_ref(), "x.weight");
    assert_eq!(dtype, list::Q4_0);
    assert_same(&got, &weight.values(), "blocks out of order");
}

#[test]
fn symmetric_gptq_is_read_whichever_version_stored_it() {
    for (stored_less, format) in [(0, "gptq"), (1, "gptq_v2"), (1, "gptq"), (0, "gptq_v2")] {
        let weight = Weight::random(&mut Random(3), (32, 64, 4), 64, Some(8));
        let mut m = Memory::new();
        weight.gptq(&mut m, "x", list::F16, stored_less, false);
        let (dtype, got) = values(m.open(gptq(4, 64, true, format)).unwrap().as_ref(), "x.weight");
        assert_eq!(dtype, list::Q4_0);
        assert_same(&got, &weight.values(), format);
        // Where it may be asymmetric the version decides.
        let (_, got) = values(m.open(gptq(4, 64, false, format)).unwrap().as_ref(), "x.weight");
        assert_eq!(got == weight.values(), (stored_less == 1) == (format == "gptq"));
    }
}

#[test]
fn the_largest_zero_point_of_the_first_version() {
    let mut weight = Weight::random(&mut Random(4), (32, 64, 4), 32, None);
    weight.zeros.iter_mut().step_by(3).for_each(|zero| *zero = 16);
    let mut m = Memory::new();
    weight.gptq(&mut m, "x", list::F16, 1, false);
    let (dtype, got) = values(m.open(gptq(4, 32, false, "gptq")).unwrap().as_ref(), "x.weight");
    assert_eq!(dtype, list::Q5_0);
    assert_same(&got, &weight.values(), "zero point 16");
}

#[test]
fn scales_decide_about_blocks() {
    let mut weight = Weight::random(&mut Random(5), (32, 64, 4), 32, Some(8));
    let open = |weight: &Weight, dtype: DType| {
        let mut m = Memory::new();
        weight.gptq(&mut m, "x", dtype, 1, false);
        let view = m.open(gptq(4, 32, true, "gptq")).unwrap();
        let (dtype, got) = values(view.as_ref(), "x.weight");
        assert_same(&got, &weight.values(), "scales");
        dtype
    };
    assert_eq!(open(&weight, list::F32), list::Q4_0);
    weight.scales.iter_mut().for_each(|s| *s = half::bf16::from_f32(*s).to_f32());
    assert_eq!(open(&weight, list::BF16), list::Q4_0);
    for odd in [0.1f32, 1e-9, 1e6, f32::INFINITY] {
        let mut weight = weight.clone();
        weight.scales[7] = odd;
        assert_eq!(open(&weight, list::F32), list::F32, "{odd}");
    }
}

#[test]
fn awq_asymmetric_and_not() {
    let mut random = Random(6);
    for (zero, size, want) in [
        (None, 32, list::Q5_0),
        (Some(8), 64, list::Q4_0),
        (None, 16, list::F32),
        (Some(0), 128, list::Q5_0),
        (None, usize::MAX, list::Q5_0),
    ] {
        let weight = Weight::random(&mut random, (72, 128, 4), size.min(128), zero);
        let mut m = Memory::new();
        weight.awq(&mut m, "x");
        let view = m.open(awq(if size == usize::MAX { -1 } else { size as i64 })).unwrap();
        let (dtype, got) = values(view.as_ref(), "x.weight");
        assert_eq!(dtype, want);
        assert_same(&got, &weight.values(), "awq");
        check_pieces(view.as_ref(), "x.weight", || random.below(5000));
    }
}

#[test]
fn compressed_tensors_packed() {
    let mut random = Random(7);
    for bits in [2, 4, 8] {
        let middle = 1u32 << (bits - 1);
        for (strategy, size) in [("group", 32), ("group", 16), ("channel", 160)] {
            for symmetric in [true, false] {
                let zero = symmetric.then_some(middle);
                // 44 outputs: zero points do not fill their last words.
                let weight = Weight::random(&mut random, (44, 160, bits), size, zero);
                let mut m = Memory::new();
                weight.compressed(&mut m, "x", list::F16, !symmetric);
                let size = (strategy == "group").then_some(size);
                let config = compressed("pack-quantized", weights(bits, strategy, size, symmetric));
                let view = m.open(config).unwrap();
                let (dtype, got) = values(view.as_ref(), "x.weight");
                let what = format!("{bits} bits {strategy} {size:?} {symmetric}");
                assert_same(&got, &weight.values(), &what);
                if symmetric {
                    let want = if size == Some(16) {
                        "F32"
                    } else if bits == 8 {
                        "Q8_0"
                    } else {
                        "Q4_0"
                    };
                    assert_eq!(dtype.name(), want, "{what}");
                }
                check_pieces(view.as_ref(), "x.weight", || random.below(5000));
            }
        }
    }
}

#[test]
fn compressed_tensors_in_the_order_of_activations() {
    let mut weight = Weight::random(&mut Random(8), (32, 64, 4), 32, Some(8));
    let config = || {
        let mut weights = weights(4, "group", Some(32), true);
        weights["actorder"] = json!("group");
        compressed("pack-quantized", weights)
    };
    let mut m = Memory::new();
    weight.compressed(&mut m, "x", list::F16, false);
    assert!(m.open(config()).is_err(), "the map is missing");
    let (mut even, mut mapped) = (m.clone(), m);
    even.ints("x.weight_g_idx", &[64], &[-1; 64]);
    let (dtype, got) = values(even.open(config()).unwrap().as_ref(), "x.weight");
    assert_eq!(dtype, list::Q4_0);
    assert_same(&got, &weight.values(), "no map");
    weight.group = (0..64).map(|c| c % 2).collect();
    let map: Vec<i32> = weight.group.iter().map(|&g| g as i32).collect();
    mapped.ints("x.weight_g_idx", &[64], &map);
    let (dtype, got) = values(mapped.open(config()).unwrap().as_ref(), "x.weight");
    assert_eq!(dtype, list::F32);
    assert_same(&got, &weight.values(), "a map");
}

#[test]
fn compressed_tensors_of_bytes() {
    let mut random = Random(9);
    let (rows, cols) = (12, 64);
    let q: Vec<i8> = (0..rows * cols).map(|_| random.next() as i8).collect();
    let scales: Vec<f32> = (0..rows).map(|_| random.half()).collect();
    let bytes: Vec<u8> = q.iter().map(|&q| q as u8).collect();
    let with = |scale: &[usize], scales: &[f32]| {
        let mut m = Memory::new();
        m.add("x.weight", list::I8, &[rows, cols], bytes.clone());
        m.floats("x.weight_scale", list::F32, scale, scales);
        m.floats("x.input_scale", list::F32, &[1], &[3.0]);
        m
    };
    let want = |scale: &dyn Fn(usize) -> f32, zero: i32| -> Vec<f32> {
        q.iter().enumerate().map(|(i, &q)| scale(i / cols) * (i32::from(q) - zero) as f32).collect()
    };
    for format in ["int-quantized", "naive-quantized"] {
        let view =
            with(&[rows, 1], &scales).open(compressed(format, weights(8, "channel", None, true))).unwrap();
        let (dtype, got) = values(view.as_ref(), "x.weight");
        assert_eq!((dtype, view.tensors().len()), (list::Q8_0, 1));
        assert_same(&got, &want(&|r| scales[r], 0), format);
        let view =
            with(&[1], &scales[..1]).open(compressed(format, weights(8, "tensor", None, true))).unwrap();
        assert_same(&values(view.as_ref(), "x.weight").1, &want(&|_| scales[0], 0), format);
    }
    let mut m = with(&[rows, 1], &scales);
    m.add("x.weight_zero_point", list::I8, &[rows, 1], vec![253; rows]);
    let view = m.open(compressed("int-quantized", weights(8, "channel", None, false))).unwrap();
    let (dtype, got) = values(view.as_ref(), "x.weight");
    assert_eq!(dtype, list::F32);
    assert_same(&got, &want(&|r| scales[r], -3), "asymmetric");
}

fn e4m3(byte: u8) -> f32 {
    let mut value = [0f32];
    list::F8_E4M3.dequantize(Isa::scalar(), &[byte], &mut value).unwrap();
    value[0]
}

#[test]
fn floats_of_8_bits() {
    let (rows, cols) = (20, 36);
    let bytes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 256) as u8).collect();
    let mut random = Random(10);
    let scales: Vec<f32> = (0..rows * cols).map(|_| random.below(1000) as f32 * 1.1e-4).collect();
    let fp8 = |block: Option<[usize; 2]>| {
        json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block,
               "ignored_layers": ["lm_head"]})
    };
    let float = |strategy: &str, size: Option<usize>, block: Option<[usize; 2]>| {
        let mut all = weights(8, strategy, size, true);
        (all["type"], all["block_structure"]) = (json!("float"), json!(block));
        compressed("float-quantized", all)
    };
    for (config, name, shape, block) in [
        (fp8(None), "weight_scale", vec![], (rows, cols)),
        (fp8(None), "weight_scale_inv", vec![1], (rows, cols)),
        (fp8(None), "weight_scale", vec![rows, 1], (1, cols)),
        (fp8(Some([8, 16])), "weight_scale_inv", vec![3, 3], (8, 16)),
        (fp8(Some([128, 128])), "weight_scale_inv", vec![1, 1], (128, 128)),
        (float("tensor", None, None), "weight_scale", vec![1], (rows, cols)),
        (float("channel", None, None), "weight_scale", vec![rows, 1], (1, cols)),
        (float("group", Some(12), None), "weight_scale", vec![rows, 3], (1, 12)),
        (float("block", None, Some([8, 16])), "weight_scale", vec![3, 3], (8, 16)),
    ] {
        let n: usize = shape.iter().product();
        let per_row = cols.div_ceil(block.1);
        let mut m = Memory::new();
        m.add("x.weight", list::F8_E4M3, &[rows, cols], bytes.clone());
        m.floats(&format!("x.{name}"), list::F32, &shape, &scales[..n]);
        m.floats("y.weight", list::BF16, &[2, 2], &[1.0; 4]);
        m.floats("x.input_scale", list::F32, &[1], &[1.0]);
        let view = m.open(config.clone()).unwrap();
        let names: Vec<&str> = view.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["x.weight", "y.weight"]);
        let (dtype, got) = values(view.as_ref(), "x.weight");
        assert_eq!(dtype, list::F32);
        let want = |i: usize| scales[i / cols / block.0 * per_row + i % cols / block.1] * e4m3(bytes[i]);
        let want: Vec<f32> = (0..bytes.len()).map(want).collect();
        assert_same(&got, &want, &format!("{config}"));
        check_pieces(view.as_ref(), "x.weight", || random.below(700));
    }
}

#[test]
fn powers_of_two_keep_floats_of_8_bits_short() {
    let bytes: Vec<u8> = (0..=255).collect();
    for (dtype, scale) in [(list::F8_E4M3, 2f32.powi(-9)), (list::F8_E5M2, 2f32.powi(4))] {
        let mut m = Memory::new();
        m.add("x.weight", dtype, &[2, 128], bytes.clone());
        m.add("x.weight_scale_inv", list::F8_E8M0, &[1, 2], vec![(127 + scale.log2() as i32) as u8, 127]);
        let view = m.open(json!({"quant_method": "fp8", "weight_block_size": [128, 64]})).unwrap();
        let (got_type, got) = values(view.as_ref(), "x.weight");
        assert_eq!(got_type, list::BF16);
        let mut want = vec![0f32; 256];
        dtype.dequantize(Isa::scalar(), &bytes, &mut want).unwrap();
        want.iter_mut().enumerate().for_each(|(i, x)| *x *= if i % 128 < 64 { scale } else { 1.0 });
        assert_same(&got, &want, "powers of two");
    }
}

#[test]
fn mxfp4_passes_through_and_back() {
    let mut random = Random(11);
    let (experts, rows, blocks) = (3, 5, 4);
    let n = experts * rows * blocks;
    let numbers: Vec<u8> = (0..n * 16).map(|_| random.next() as u8).collect();
    let scales: Vec<u8> = (0..n).map(|i| if i == 0 { 255 } else { 110 + random.below(20) as u8 }).collect();
    let mut m = Memory::new();
    m.add("e.gate_up_proj_blocks", list::U8, &[experts, rows, blocks, 16], numbers.clone());
    m.floats("e.gate_up_proj_bias", list::BF16, &[experts, rows], &vec![0.0; experts * rows]);
    m.add("e.gate_up_proj_scales", list::U8, &[experts, rows, blocks], scales.clone());
    let view =
        m.open(json!({"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]})).unwrap();
    assert_eq!(view.tensors()[0].shape, [3, 5, 128]);
    let (dtype, got) = values(view.as_ref(), "e.gate_up_proj");
    assert_eq!(dtype, list::MXFP4);
    let e2m1 = [0.0f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (i, &value) in got.iter().enumerate().skip(32) {
        let nibble = numbers[i / 2] >> (i % 2 * 4) & 15;
        let sign = if nibble < 8 { 1.0 } else { -1.0 };
        let want = sign * e2m1[usize::from(nibble & 7)] * 2f32.powi(i32::from(scales[i / 32]) - 127);
        assert_eq!(value, want, "{i}");
    }
    check_pieces(view.as_ref(), "e.gate_up_proj", || random.below(100));
    let back = mxfp4::planes(view).unwrap();
    for (at, name) in
        ["e.gate_up_proj_blocks", "e.gate_up_proj_bias", "e.gate_up_proj_scales"].iter().enumerate()
    {
        let found = back.find(name).unwrap();
        assert_eq!(back.tensors()[found].shape, m.tensors[at].shape, "{name}");
        assert_eq!(back.bytes(found).unwrap(), &m.data[at][..], "{name}");
    }
    for name in ["e.gate_up_proj_blocks", "e.gate_up_proj_scales"] {
        check_pieces(back.as_ref(), name, || random.below(50));
    }
}

#[test]
fn experts_of_a_layer_have_one_type() {
    let mut random = Random(12);
    let expert = |i: usize| format!("model.layers.0.mlp.experts.{i}.up_proj");
    let zeros = [Some(8), None, Some(8)];
    let all: Vec<Weight> = zeros.map(|zero| Weight::random(&mut random, (32, 64, 4), 32, zero)).to_vec();
    let mut m = Memory::new();
    for (i, weight) in all.iter().enumerate() {
        weight.awq(&mut m, &expert(i));
    }
    all[0].awq(&mut m, "model.layers.0.mlp.up_proj");
    all[1].awq(&mut m, "model.layers.1.mlp.up_proj");
    let view = m.open(awq(32)).unwrap();
    for (i, weight) in all.iter().enumerate() {
        let (dtype, got) = values(view.as_ref(), &format!("{}.weight", expert(i)));
        assert_eq!(dtype, list::Q5_0);
        assert_same(&got, &weight.values(), "an expert");
    }
    assert_eq!(values(view.as_ref(), "model.layers.0.mlp.up_proj.weight").0, list::Q4_0);
}

/// Rows in the order that rotary pairs want them, one at a time, and pieces as conversions read them: neither reads
/// much more than there is.
#[test]
fn reading_in_any_way_reads_planes_about_once() {
    let weight = Weight::random(&mut Random(13), (1024, 2048, 4), 128, Some(8));
    let mut m = Memory::new();
    weight.gptq(&mut m, "x", list::F16, 1, false);
    let view = m.open(gptq(4, 128, true, "gptq")).unwrap();
    let whole = view.bytes(0).unwrap().into_owned();
    let planes: u64 = m.tensors.iter().map(|t| t.nbytes).sum();
    let row_bytes = whole.len() / 1024;
    m.read.store(0, Ordering::Relaxed);
    for i in 0..1024 {
        let row = i / 128 * 128 + i % 2 * 64 + i % 128 / 2;
        let mut bytes = vec![0; row_bytes];
        view.read(0, (row * row_bytes) as u64, &mut bytes).unwrap();
        assert!(bytes == whole[row * row_bytes..(row + 1) * row_bytes]);
    }
    let read = m.read.load(Ordering::Relaxed);
    assert!(read < 2 * planes, "row by row {read} bytes are read of {planes}");
    m.read.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (view, whole) = (&view, &whole);
            scope.spawn(move || {
                let piece = 128 * row_bytes;
                for first in (thread * piece..whole.len()).step_by(4 * piece) {
                    let mut bytes = vec![0; piece];
                    view.read(0, first as u64, &mut bytes).unwrap();
                    assert!(bytes == whole[first..first + piece]);
                }
            });
        }
    });
    let read = m.read.load(Ordering::Relaxed);
    assert!(read < 2 * planes, "in pieces {read} bytes are read of {planes}");
}

#[test]
fn turning_twice_is_nothing() {
    assert_eq!(turn(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_of_any_integer_method(
        seed: u64, rows in 1usize..5, cols in 1usize..6, bits in 0usize..4, size in 0usize..4, method in 0usize..3,
        symmetric: bool, pieces in 1usize..4000,
    ) {
        let mut random = Random(seed);
        let (rows, cols) = (rows * 32, cols * 32);
        let size = [32, 16, 64, cols][size].min(cols);
        let cols = cols.div_ceil(size) * size;
        let bits = match method { 0 => [2, 3, 4, 8][bits], 1 => 4, _ => [2, 4, 8, 8][bits] };
        let zero = symmetric.then_some(1 << (bits - 1));
        let weight = Weight::random(&mut random, (rows, cols, bits), size, zero);
        let mut m = Memory::new();
        let view: Arc<dyn Checkpoint> = match method {
            0 => { weight.gptq(&mut m, "x", list::F16, 1, true); m.open(gptq(bits, size as i64, symmetric, "gptq")) }
            1 => { weight.awq(&mut m, "x"); m.open(awq(size as i64)) }
            _ => {
                weight.compressed(&mut m, "x", list::F16, !symmetric);
                m.open(compressed("pack-quantized", weights(bits, "group", Some(size), symmetric)))
            }
        }.unwrap();
        assert_same(&values(view.as_ref(), "x.weight").1, &weight.values(), "any");
        check_pieces(view.as_ref(), "x.weight", || pieces);
    }
}
