//! The error and the speed of every quantizer on the matrices of a safetensors file of f32 weights.
//!
//!     cargo run --release -p fonio-codec --example mse -- model.safetensors [ISA] [TYPE ...]
//!
//! Each matrix is taken flat, in rows of 256. Prints, tab-separated: type, bits per weight, mean squared error,
//! nanoseconds per weight on one thread (the least of many runs of 16,384 weights) without and with importance.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use fonio_codec::{DType, list};
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
    let weights = load(&std::fs::read(path)?)?;
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
        println!("{dtype}\t{:.4}\t{mse:.4e}\t{ns:.2}\t{weighted_ns:.2}", dtype.bits_per_weight());
    }
    Ok(())
}

fn load(file: &[u8]) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut weights = Vec::new();
    for (_, tensor) in SafeTensors::deserialize(file)?.tensors() {
        let len: usize = tensor.shape().iter().product();
        if tensor.dtype() == Dtype::F32 && tensor.shape().len() == 2 && len.is_multiple_of(256) {
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
