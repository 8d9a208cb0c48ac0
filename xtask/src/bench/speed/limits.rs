//! What the machine can do at most: bytes from memory, products of bytes, multiply-adds of numbers.
//!
//! The loops use the vectors that fonio's kernels use, so that a share of a limit says what the kernels leave. Matrix
//! units that no [`Simd`] has (AMX) are not counted: a rival that uses them may be beyond 100 %.

use super::super::process;
use fonio_simd::{Isa, Simd, VectorTask};
use serde_json::{Value as Json, json};
use std::ffi::OsString;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// The limits of a number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub threads: usize,
    /// Bytes per second that are read from memory.
    pub read: f64,
    /// Operations per second of dot products of bytes: a multiplication and an addition are two.
    pub bytes: f64,
    /// The same for `f32`.
    pub floats: f64,
}

/// Independent sums: more than the latency of a multiply-add times what a core begins in a cycle (4 or 5 by 2), and few
/// enough for 16 registers.
const CHAINS: usize = 12;
/// Rounds of one measurement of arithmetic: some hundredths of a second with vectors.
const ROUNDS: usize = 20_000_000;
/// Each is measured so often, and the best counts: others can only take time away.
const TIMES: usize = 3;
const GIB: usize = 1 << 30;

/// The command that measures, as `cargo xtask bench` knows it.
pub const COMMAND: &str = "limits";

/// Measures for each number of threads, in a process of its own, and says how many CPUs others kept busy meanwhile.
pub fn measure(threads: &[usize]) -> Result<(Vec<Limits>, f64), String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?;
    let mut command: Vec<OsString> = vec![program.into(), "bench".into(), COMMAND.into()];
    command.extend(threads.iter().map(|n| n.to_string().into()));
    let run = process::run(&command, None)?;
    Ok((read(&run.stdout)?, run.others))
}

/// What the child does: prints a JSON document.
pub fn child(arguments: &[String]) -> Result<(), String> {
    let threads: Option<Vec<usize>> =
        arguments.iter().map(|n| n.parse().ok().filter(|n| (1..=1024).contains(n))).collect();
    let threads = threads.ok_or_else(|| format!("{COMMAND}: THREADS..., not {arguments:?}"))?;
    let isa = Isa::detect();
    // Pages that were never written are all the same page of zeros.
    let buffer = vec![1.0f32; buffer_bytes() / size_of::<f32>()];
    let limits = threads.into_iter().map(|threads| Limits {
        threads,
        read: reading(isa, &buffer, threads),
        bytes: best(threads, |_| isa.vector(ByteDots(ROUNDS))),
        floats: best(threads, |_| isa.vector(MultiplyAdds(ROUNDS))),
    });
    println!("{}", Json::from_iter(limits.map(|limits| limits.json())));
    Ok(())
}

fn read(text: &str) -> Result<Vec<Limits>, String> {
    let wrong = || format!("the limits are not what was expected: {}", text.trim_end());
    let all: Vec<Json> = serde_json::from_str(text).map_err(|_| wrong())?;
    let limits = all.iter().map(|one| {
        Some(Limits {
            threads: one["threads"].as_u64()?.try_into().ok()?,
            read: one["read_bytes_per_second"].as_f64()?,
            bytes: one["int8_operations_per_second"].as_f64()?,
            floats: one["f32_operations_per_second"].as_f64()?,
        })
    });
    limits.collect::<Option<_>>().ok_or_else(wrong)
}

fn reading(isa: Isa, buffer: &[f32], threads: usize) -> f64 {
    let part = buffer.len().div_ceil(threads);
    best(threads, |thread| {
        let own = buffer.chunks(part).nth(thread).unwrap_or_default();
        black_box(isa.vector(Sum(own)));
        size_of_val(own) as f64
    })
}

/// Several times the largest cache, but no more than a quarter of what is free.
fn buffer_bytes() -> usize {
    let cache = (0..8).filter_map(|i| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()
    });
    let wanted = (cache.max().unwrap_or(0) * 1024 * 4).max(GIB);
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = info.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    });
    wanted.min(free.map_or(GIB, |kib| kib * 1024 / 4))
}

/// The best rate of `work` on all threads at once; it says how much it has done.
fn best(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    (0..TIMES).map(|_| together(threads, &work)).fold(0.0, f64::max)
}

/// From when all threads are there until the last one is done.
fn together(threads: usize, work: &(impl Fn(usize) -> f64 + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread: usize| {
        barrier.wait();
        let start = Instant::now();
        let done = work(thread);
        (done, start, Instant::now())
    };
    let runs: Vec<(f64, Instant, Instant)> = std::thread::scope(|scope| {
        let run = &run;
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
    });
    let start = runs.iter().map(|run| run.1).min();
    let end = runs.iter().map(|run| run.2).max();
    let seconds = start.zip(end).map_or(0.0, |(start, end)| (end - start).as_secs_f64());
    runs.iter().map(|run| run.0).sum::<f64>() / seconds.max(1e-9)
}

struct Sum<'a>(&'a [f32]);

impl VectorTask for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 8];
        for block in self.0.chunks_exact(8 * S::LANES) {
            for (sum, x) in sums.iter_mut().zip(block.chunks_exact(S::LANES)) {
                *sum = s.add(*sum, s.load(x));
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}

struct ByteDots(usize);

impl VectorTask for ByteDots {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (a, w) = (black_box(0x0303_0303), s.splat_i(0x0101_0101));
        // Chains that begin alike would be computed once.
        let mut chains: [S::I; CHAINS] =
            std::array::from_fn(|i| s.load_i(&black_box([i as i32; 16])[..S::LANES]));
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.lane_dots::<false>(*chain, w, a);
            }
        }
        black_box(chains.map(|chain| s.sum(s.to_f32(chain))));
        (2 * 4 * S::LANES * CHAINS * self.0) as f64
    }
}

struct MultiplyAdds(usize);

impl VectorTask for MultiplyAdds {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        // Each value comes nearer to 1 and stays an ordinary number.
        let (x, y) = (s.splat(black_box(0.5)), s.splat(black_box(0.5)));
        let mut chains: [S::F; CHAINS] = std::array::from_fn(|i| s.splat(black_box(i as f32)));
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.fma(*chain, x, y);
            }
        }
        black_box(chains.map(|chain| s.sum(chain)));
        (2 * S::LANES * CHAINS * self.0) as f64
    }
}

impl Limits {
    pub fn json(&self) -> Json {
        json!({
            "threads": self.threads,
            "read_bytes_per_second": self.read,
            "int8_operations_per_second": self.bytes,
            "f32_operations_per_second": self.floats,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_arrive_as_they_were_measured() {
        let limits = Limits { threads: 2, read: 1.5, bytes: 2.5, floats: 3.5 };
        assert_eq!(read(&Json::from_iter([limits.json(), limits.json()]).to_string()), Ok(vec![limits; 2]));
        assert!(read("[{}]").unwrap_err().contains("[{}]") && read("").is_err());
        assert!(child(&["x".into()]).is_err() && child(&["0".into()]).is_err());
    }

    #[test]
    fn sums_are_read_from_first_to_last() {
        let values: Vec<f32> = (0..1024).map(|i| i as f32).collect();
        for isa in Isa::available() {
            assert_eq!(isa.vector(Sum(&values)), 1023.0 * 512.0, "{isa}");
        }
    }

    #[test]
    fn work_is_counted_and_takes_time() {
        for isa in Isa::available() {
            // Eight or 16 lanes; a lane of bytes has four.
            let (bytes, floats) = (isa.vector(ByteDots(1000)), isa.vector(MultiplyAdds(1000)));
            assert!(floats == 192_000.0 || floats == 384_000.0, "{isa}: {floats}");
            assert_eq!(bytes, 4.0 * floats, "{isa}");
        }
        // Loops that a compiler threw away would be done at once: no core begins more than four vectors a cycle, or
        // has more than 8 GHz.
        let rate = best(1, |_| Isa::detect().vector(MultiplyAdds(1_000_000)));
        assert!(rate < 8e9 * 4.0 * 32.0, "{rate}");
        let rate = best(1, |_| Isa::detect().vector(ByteDots(1_000_000)));
        assert!(rate < 8e9 * 4.0 * 128.0, "{rate}");
    }

    #[test]
    fn threads_add_up() {
        let rate = together(2, &|thread| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            thread as f64 + 1.0
        });
        assert!((1.0..=150.0).contains(&rate), "three in 20 ms or more: {rate}");
        assert!(buffer_bytes() >= 1 << 20);
    }
}
