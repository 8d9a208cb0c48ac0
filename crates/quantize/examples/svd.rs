//! How long a truncated singular value decomposition takes: `cargo run --release -p fonio-quantize --example svd -- 2048 64`.
//! `docs/formats/cawsf.md` has figures, and how to compare them with LAPACK's.

use fonio_kernel::Pool;
use fonio_quantize::decompose::{Machine, low_rank};
use fonio_simd::Isa;
use std::io::Write;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|n| n.parse().ok());
    let (n, rank): (usize, usize) = (numbers.next().unwrap_or(2048), numbers.next().unwrap_or(64));
    // Any noise will do: the time depends on the shape alone.
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let a: Vec<f32> = (0..n * n).map(|_| noise()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Pool::new(threads);
    let start = Instant::now();
    let found = low_rank(Machine { pool: &pool, isa: Isa::detect() }, &a, n, rank, 0)?;
    let seconds = start.elapsed().as_secs_f64();
    writeln!(std::io::stdout(), "{n} × {n}, rank {}: {seconds:.3} s on {threads} threads", found.rank)?;
    Ok(())
}
