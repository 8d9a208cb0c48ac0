use fonio_codec::{DType, list};
use fonio_simd::Isa;
use std::time::Instant;
fn load(p: &str) -> Vec<f32> {
    std::fs::read(p).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
fn time(t: DType, isa: Isa, x: &[f32], imp: Option<&[f32]>, b: &mut [u8]) -> f64 {
    let n = 1 << 14;
    let m = n / t.block_len() * t.block_bytes();
    let mut best = 1e9f64;
    for (x, b) in x.chunks(n).zip(b.chunks_mut(m)) {
        let t0 = Instant::now();
        t.quantize(isa, x, imp, b).unwrap();
        best = best.min(t0.elapsed().as_secs_f64() * 1e9 / x.len() as f64);
    }
    best
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let isa = args.get(3).map_or(Isa::detect(), |n| Isa::named(n).unwrap());
    let ref_ = std::fs::read_to_string("/tmp/k/ggml.txt").unwrap_or_default();
    let imp = load("/tmp/k/imp.f32");
    for d in args[1].split(',') {
        let mut x = load(&format!("/tmp/k/{d}.f32"));
        for t in list::ALL.iter().copied().filter(|t: &DType| {
            t.is_quantized()
                && t.can_quantize()
                && (args[2] == "all" || args[2].split(',').any(|n| n == t.name()))
        }) {
            let want = ref_
                .lines()
                .find(|l| l.starts_with(&format!("{d} {} ", t.name())))
                .map(|l| {
                    let v: Vec<f64> = l.split(' ').skip(2).map(|s| s.parse().unwrap()).collect();
                    (v[0], v[1])
                })
                .unwrap_or((1.0, 1.0));
            let mut b = vec![0u8; x.len() / t.block_len() * t.block_bytes()];
            let mut y = vec![0f32; x.len()];
            let ns = time(t, isa, &x, None, &mut b);
            t.dequantize(isa, &b, &mut y).unwrap();
            let e: f64 = x.iter().zip(&y).map(|(a, b)| ((*a as f64) - (*b as f64)).powi(2)).sum();
            let ns2 = time(t, isa, &x, Some(&imp), &mut b);
            t.dequantize(isa, &b, &mut y).unwrap();
            let e2: f64 = x
                .iter()
                .zip(&y)
                .enumerate()
                .map(|(i, (a, b))| ((*a as f64) - (*b as f64)).powi(2) * imp[i % 256] as f64)
                .sum();
            println!(
                "{d:8} {:5} ratio {:.4} weighted {:.4}  {ns:.2} ns {ns2:.2} ns  mse {:e}",
                t.name(),
                e / want.0,
                e2 / want.1,
                e / x.len() as f64
            );
        }
    }
}
