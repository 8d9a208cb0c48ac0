//! How fast products are: with one row of activations, as in decoding, or with many, as in prefill.
//!
//!     cargo run --release -p fonio-kernel --example matmul -- [TOKENS[xCOLUMNS]] [THREADS] [ISA|all] [TYPE ...]
//!
//! Two weights of each quantized type, and of those of 16 bits, one of 512 Ki values and one of 128 Mi (256 KiB and 64 MiB
//! at four bits), 2048 columns or as many as are given; of many tokens one of 4 Mi. Prints, tab-separated: type,
//! instruction set, threads, and for each weight 10⁹ products of a weight and an activation per second, and 10⁹ packed bytes
//! per second, in the fastest of the runs of 0.7 seconds.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use fonio_codec::{DType, list};
use fonio_kernel::{Kernels, Matrix, Product};
use fonio_simd::Isa;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sizes: Vec<usize> =
        args.first().map_or(vec![], |sizes| sizes.split('x').filter_map(|n| n.parse().ok()).collect());
    let (tokens, cols) = (sizes.first().copied().unwrap_or(1), sizes.get(1).copied().unwrap_or(2048));
    let threads = args.get(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let isas = match args.get(2).map(String::as_str) {
        Some("all") => Isa::available(),
        Some(name) => vec![Isa::named(name).unwrap_or_else(Isa::detect)],
        None => vec![Isa::detect()],
    };
    let wanted = |t: &DType| args.len() < 4 || args[3..].iter().any(|n| n.eq_ignore_ascii_case(t.name()));
    for &dtype in list::ALL.iter().filter(|t| (t.is_quantized() || t.name().ends_with("16")) && wanted(t)) {
        for &isa in &isas {
            let kernels = Kernels::new(threads, isa);
            print!("{dtype}\t{isa}\t{threads}");
            for &values in if tokens == 1 { &[1 << 19, 1 << 27][..] } else { &[1 << 22] } {
                let (products, bytes) = speed(&kernels, dtype, (values / cols, cols), tokens);
                print!("\t{products:.2}\t{bytes:.2}");
            }
            println!();
        }
    }
}

/// 10⁹ products and 10⁹ bytes per second.
fn speed(kernels: &Kernels, dtype: DType, (rows, cols): (usize, usize), tokens: usize) -> (f64, f64) {
    let row_bytes = cols / dtype.block_len() * dtype.block_bytes();
    // Any bytes are valid blocks; small ones make no scale infinite.
    let bytes: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 7 % 61) as u8).collect();
    let weight = Matrix::new(dtype, rows, cols, &bytes).expect("whole rows");
    let x: Vec<f32> = (0..tokens * cols).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let mut out = vec![0.0; tokens * rows];
    let mut least = f64::MAX;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.7 {
        let start = Instant::now();
        kernels.matmul(&x, &mut [Product { weight, out: &mut out }]);
        least = least.min(start.elapsed().as_secs_f64());
    }
    ((tokens * rows * cols) as f64 / least * 1e-9, bytes.len() as f64 / least * 1e-9)
}
