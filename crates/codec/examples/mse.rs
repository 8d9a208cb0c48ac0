//! The error and the speed of every quantizer on the matrices of a safetensors file of f32 weights, or on a bell curve.
//!
//!     cargo run --release -p fonio-codec --example mse -- model.safetensors|bell [ISA] [TYPE ...]
//!
//! Each matrix is taken flat, in rows of 256. Prints, tab-separated: type, bits per weight, mean squared error, root of
//! the mean squared error in percent of the weights', the same for plain rounding between least and largest where the
//! type is QSF's, nanoseconds per weight on one thread (the least of many runs of 16,384 weights) without and with
//! importance.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use fonio_codec::{DType, list, qsf};
use fonio_simd::Isa;
use safetensors::{Dtype, SafeTensors};
use std::error::Error;
use std::time::Instant;

const CHUNK: usize = 1 << 14;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let path = args.next().ok_or("usage: mse model.safetensors [ISA] [TYPE ...]")?;
    let named = args.peek().and_then(|name| Isa::named(name));
    let isa = named.unwrap_or_else(Isa::detect);
    let names: Vec<String> = args.skip(usize::from(named.is_some())).collect();
    let weights = if path == "bell" { bell(1 << 20) } else { load(&std::fs::read(path)?)? };
    let energy = weights.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / weights.len() as f64;
    let ramp: Vec<f32> = (0..256).map(|i| (i % 16 + 1) as f32).collect();
    let wanted = |t: &DType| names.is_empty() || names.iter().any(|n| n.eq_ignore_ascii_case(t.name()));
    for dtype in list::ALL.iter().copied().filter(|t| t.is_quantized() && t.can_quantize()).filter(wanted) {
        let mut packed = vec![0; weights.len() / dtype.block_len() * dtype.block_bytes()];
        let mut unpacked = vec![0.0; weights.len()];
        let weighted_ns = quantize(dtype, isa, &weights, Some(&ramp), &mut packed)?;
        let ns = quantize(dtype, isa, &weights, None, &mut packed)?;
        dtype.dequantize(isa, &packed, &mut unpacked)?;
        let squares = weights.iter().zip(&unpacked).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        let mse = squares.sum::<f64>() / weights.len() as f64;
        let percent = |mse: f64| 100.0 * (mse / energy).sqrt();
        let plain = plain(dtype, &weights).map_or("-".into(), |mse| format!("{:.3}", percent(mse)));
        let (bits, rms) = (dtype.bits_per_weight(), percent(mse));
        println!("{dtype}\t{bits:.4}\t{mse:.4e}\t{rms:.3}\t{plain}\t{ns:.2}\t{weighted_ns:.2}");
    }
    Ok(())
}

/// Normally distributed numbers.
fn bell(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut one = || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..n).map(|_| one()).collect()
}

/// The mean squared error of evenly spaced levels between the least and the largest value of each block, or around zero
/// up to the largest magnitude.
fn plain(dtype: DType, weights: &[f32]) -> Option<f64> {
    let (kind, len) = qsf::kind(dtype)?;
    let half = |x: f32| half::f16::from_f32(x).to_f32();
    let error = |block: &[f32]| -> f64 {
        let lo = block.iter().copied().fold(f32::MAX, f32::min);
        let hi = block.iter().copied().fold(f32::MIN, f32::max);
        let most = hi.max(-lo);
        // The least level, how many steps there are above it, and the step.
        let (first, steps, step) = match kind {
            "2bit" => (half(lo), 3.0, half((hi - lo) / 3.0)),
            "3bit" => (half(lo), 7.0, half((hi - lo) / 7.0)),
            "4bit" => (half(lo), 15.0, half((hi - lo) / 15.0)),
            "2bit_sym" => (-3.0 * half(most / 3.0), 3.0, 2.0 * half(most / 3.0)),
            "4bit_sym" => (-7.0 * half(most / 7.0), 14.0, half(most / 7.0)),
            "8bit" => (-127.0 * half(most / 127.0), 254.0, half(most / 127.0)),
            _ => (-half(most), 2.0, half(most)),
        };
        let level = |x: f32| if step > 0.0 { ((x - first) / step).round().clamp(0.0, steps) } else { 0.0 };
        block.iter().map(|&x| f64::from(first + step * level(x) - x).powi(2)).sum()
    };
    Some(weights.chunks(len).map(error).sum::<f64>() / weights.len() as f64)
}

fn load(file: &[u8]) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut weights = Vec::new();
    for (_, tensor) in SafeTensors::deserialize(file)?.tensors() {
        let len: usize = tensor.shape().iter().product();
        if tensor.dtype() == Dtype::F32 && tensor.shape().len() == 2 && len > 256 && len.is_multiple_of(256) {
            let start = weights.len();
            weights.resize(start + len, 0.0);
            list::F32.dequantize(Isa::detect(), tensor.data(), &mut weights[start..])?;
        }
    }
    Ok(weights)
}

/// Quantizes everything; nanoseconds per weight in the fastest chunk.
fn quantize(
    dtype: DType,
    isa: Isa,
    weights: &[f32],
    importance: Option<&[f32]>,
    packed: &mut [u8],
) -> Result<f64, Box<dyn Error>> {
    let chunk_bytes = CHUNK / dtype.block_len() * dtype.block_bytes();
    let mut least = f64::MAX;
    for (values, bytes) in weights.chunks(CHUNK).zip(packed.chunks_mut(chunk_bytes)) {
        let start = Instant::now();
        dtype.quantize(isa, values, importance, bytes)?;
        least = least.min(start.elapsed().as_secs_f64() * 1e9 / values.len() as f64);
    }
    Ok(least)
}
