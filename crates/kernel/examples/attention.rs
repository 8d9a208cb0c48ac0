//! How fast a token attends to what is in the cache.
//!
//!     cargo run --release -p fonio-kernel --example attention -- [POSITIONS] [THREADS] [ISA|all] [HEADSxKV_HEADSxDIM]
//!
//! Half-precision caches of 30 layers, one after the other, so that none is in a near processor cache. Prints, tab-separated:
//! instruction set, microseconds for each layer, and 10⁹ bytes of the cache per second, in the fastest of several runs.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use fonio_codec::list;
use fonio_kernel::{Attention, Kernels, KvShape, KvView};
use fonio_simd::Isa;
use std::time::Instant;

const LAYERS: usize = 30;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, or| args.get(i).and_then(|n| n.parse().ok()).unwrap_or(or);
    let (positions, threads) = (number(0, 4096), number(1, 2));
    let rounds = 7.max(60_000 / positions.max(1));
    let isas = match args.get(2).map(String::as_str) {
        Some("all") => Isa::available(),
        Some(name) => vec![Isa::named(name).unwrap_or_else(Isa::detect)],
        None => vec![Isa::detect()],
    };
    let shape: Vec<usize> =
        args.get(3).map_or(vec![9, 3, 64], |s| s.split('x').filter_map(|n| n.parse().ok()).collect());
    let [heads, kv_heads, dim] = shape[..] else { panic!("heads, key heads and values of a head") };
    let shape = KvShape::new(list::F16, kv_heads, dim).expect("halves hold any head");
    let len = shape.bytes(positions);
    // Halves of 0.25 or so.
    let layer = || (0..len).map(|i| if i % 2 == 1 { 0x34 } else { i as u8 }).collect();
    let caches: Vec<(Vec<u8>, Vec<u8>)> = (0..LAYERS).map(|_| (layer(), layer())).collect();
    let q: Vec<f32> = (0..heads * dim).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
    let mut out = vec![0.0; heads * dim];
    for isa in isas {
        let kernels = Kernels::new(threads, isa);
        let mut least = f64::MAX;
        for _ in 0..rounds {
            let start = Instant::now();
            for (keys, values) in &caches {
                let view = |shape, bytes| KvView { shape, bytes, head_dim: dim };
                let job = Attention {
                    heads,
                    keys: view(shape.turned(), keys),
                    values: view(shape, values),
                    start: positions - 1,
                    scale: 0.1,
                    softcap: None,
                    window: None,
                    sinks: None,
                };
                kernels.attend(&job, &q, &mut out);
            }
            least = least.min(start.elapsed().as_secs_f64() / LAYERS as f64);
        }
        let bytes = 2 * len;
        println!("{isa}\t{threads}\t{:.1}\t{:.2}", least * 1e6, bytes as f64 / least * 1e-9);
    }
}
