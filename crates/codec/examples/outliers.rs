//! The error of QSF's types with outliers, on an f32 safetensors file or a bell curve.
//!
//!     cargo run --release -p fonio-codec --example outliers -- model.safetensors|bell [TYPE ...]
//!
//! Rows of 256. Prints, tab-separated: type, percent of outliers, root of the mean squared error in percent of the
//! weights' as chosen by [`outlier::split`] and with the largest magnitudes of each 64 rows instead, nanoseconds per
//! weight on one thread.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use fonio_codec::{DType, list, outlier};
use fonio_simd::Isa;
use safetensors::{Dtype, SafeTensors};
use std::error::Error;
use std::time::Instant;

const COLS: usize = 256;
const ROWS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: outliers model.safetensors|bell [TYPE ...]")?;
    let mut names: Vec<String> = args.collect();
    if names.is_empty() {
        names = ["2bit_64", "3bit_64", "4bit_64"].map(String::from).into();
    }
    let weights = if path == "bell" { bell(1 << 20) } else { load(&std::fs::read(path)?)? };
    let energy: f64 = weights.iter().map(|&x| f64::from(x).powi(2)).sum();
    for name in names {
        let dtype = DType::named(&name).ok_or("no such type")?;
        for percent in [0.0, 0.25, 0.5, 1.0, 2.0] {
            let start = Instant::now();
            let (mut mine, mut plain) = (0.0, 0.0);
            for piece in weights.chunks(ROWS * COLS) {
                mine += chosen(dtype, piece, percent / 100.0)?;
            }
            let ns = start.elapsed().as_secs_f64() * 1e9 / weights.len() as f64;
            for piece in weights.chunks(ROWS * COLS) {
                plain += largest(dtype, piece, percent / 100.0)?;
            }
            let rms = |error: f64| 100.0 * (error / energy).sqrt();
            println!("{dtype}\t{percent}\t{:.3}\t{:.3}\t{ns:.1}", rms(mine), rms(plain));
        }
    }
    Ok(())
}

fn error(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum()
}

fn chosen(dtype: DType, x: &[f32], fraction: f64) -> Result<f64, Box<dyn Error>> {
    let (isa, quota) = (Isa::detect(), outlier::quota(fraction, 0, x.len() as u64));
    let mut packed = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
    let outliers = outlier::split(isa, dtype, COLS, x, None, quota, &mut packed)?;
    let mut y = vec![0.0; x.len()];
    dtype.dequantize(isa, &packed, &mut y)?;
    for row in 0..x.len() / COLS {
        outliers.row(row).for_each(|(column, value)| y[row * COLS + column] += value);
    }
    Ok(error(x, &y))
}

fn largest(dtype: DType, x: &[f32], fraction: f64) -> Result<f64, Box<dyn Error>> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()));
    order.truncate(outlier::quota(fraction, 0, x.len() as u64));
    let (mut rest, mut y) = (x.to_vec(), vec![0.0; x.len()]);
    order.iter().for_each(|&i| rest[i] = 0.0);
    let mut packed = vec![0; x.len() / dtype.block_len() * dtype.block_bytes()];
    dtype.quantize(Isa::detect(), &rest, None, &mut packed)?;
    dtype.dequantize(Isa::detect(), &packed, &mut y)?;
    order.iter().for_each(|&i| y[i] = x[i]);
    Ok(error(x, &y))
}

/// About normally distributed numbers.
fn bell(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

/// Whole pieces of the matrices, at most 4 Mi weights.
fn load(file: &[u8]) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut weights = Vec::new();
    for (_, tensor) in SafeTensors::deserialize(file)?.tensors() {
        let len = tensor.shape().iter().product::<usize>() / (ROWS * COLS) * (ROWS * COLS);
        if tensor.dtype() == Dtype::F32 && tensor.shape().len() == 2 && weights.len() < 1 << 22 {
            let start = weights.len();
            weights.resize(start + len, 0.0);
            list::F32.dequantize(Isa::detect(), &tensor.data()[..len * 4], &mut weights[start..])?;
        }
    }
    Ok(weights)
}
