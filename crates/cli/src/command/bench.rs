//! `fonio bench`: tokens per second of prefill and of decoding.

use crate::args::{self, CacheArgs, Context, LoadArgs, ThreadArgs};
use crate::error::usage;
use crate::output;
use crate::residency::ResidencyArgs;
use fonio_engine::Engine;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Arguments {
    /// A file, a Hugging Face folder, or a name from a local store
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Tokens of the prefill; 0 for none
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens that are decoded; 0 for none
    #[arg(short = 'n', long = "gen", value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Positions that are in the cache before either begins
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// How often each is measured
    #[arg(short, long, value_name = "N", default_value_t = 3)]
    repetitions: usize,
    /// Threads that compute, several with commas; 0 for as many as the machine has
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "0")]
    threads: Vec<usize>,
    #[command(flatten)]
    residency: ResidencyArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Seconds of every repetition.
struct Measured {
    test: &'static str,
    tokens: usize,
    depth: usize,
    threads: usize,
    seconds: Vec<f64>,
}

impl Measured {
    fn per_second(&self) -> impl Iterator<Item = f64> {
        self.seconds.iter().map(|s| self.tokens as f64 / s)
    }

    /// Mean and standard deviation of tokens per second.
    fn summary(&self) -> (f64, f64) {
        let n = self.seconds.len() as f64;
        let mean = self.per_second().sum::<f64>() / n;
        let variance = self.per_second().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        (mean, variance.sqrt())
    }
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        if self.repetitions == 0 || (self.prompt == 0 && self.generate == 0) {
            return Err(usage("nothing to measure: -r, or both -p and -n, are 0").into());
        }
        // Decoding begins after one token at least.
        let positions =
            (self.depth.saturating_add(self.prompt)).max(self.depth.max(1).saturating_add(self.generate));
        let mut all = Vec::new();
        for &threads in &self.threads {
            let load = LoadArgs {
                threads: ThreadArgs { threads },
                context: Some(positions),
                residency: self.residency.clone(),
                cache: self.cache.clone(),
                draft_max: 0,
            };
            let engine = load.open(&self.model, context)?;
            let most = engine.spec().context_len;
            if positions > most {
                return Err(usage(format!(
                    "{positions} positions are more than the model's context of {most}: give smaller -p, -n or --depth"
                ))
                .into());
            }
            let threads = args::threads(threads)?;
            for (test, tokens) in [("prefill", self.prompt), ("decode", self.generate)] {
                if tokens > 0 {
                    let seconds = measure(&engine, test, tokens, self.depth, self.repetitions)?;
                    all.push(Measured { test, tokens, depth: self.depth, threads, seconds });
                }
            }
        }
        self.show(context, &all)
    }

    fn show(&self, context: &Context, all: &[Measured]) -> anyhow::Result<()> {
        if self.json {
            let results: Vec<_> = all
                .iter()
                .map(|m| {
                    let (mean, deviation) = m.summary();
                    json!({
                        "test": m.test, "tokens": m.tokens, "depth": m.depth, "threads": m.threads,
                        "tokens_per_second": mean, "deviation": deviation, "seconds": m.seconds,
                    })
                })
                .collect();
            let model = self.model.display().to_string();
            let cache = self.cache.types();
            return output::json(&json!({
                "model": model, "cpu": context.isa.name(), "results": results,
                "cache_type_k": cache.keys.name(), "cache_type_v": cache.values.name(),
            }));
        }
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|m| {
                let (mean, deviation) = m.summary();
                let (tokens, threads) = (m.tokens.to_string(), m.threads.to_string());
                vec![m.test.into(), tokens, threads, format!("{mean:.2} ± {deviation:.2}")]
            })
            .collect();
        let cpu = format!("TOKENS/S ({})", context.isa.name());
        let head = ["TEST", "TOKENS", "THREADS", &cpu];
        output::write(output::table(&head, &[false, true, true, true], &rows))
    }
}

/// Seconds of every round, without the first, which brings the weights into memory.
fn measure(
    engine: &Engine,
    test: &str,
    tokens: usize,
    depth: usize,
    repetitions: usize,
) -> anyhow::Result<Vec<f64>> {
    let vocab = engine.spec().vocab_size as u64;
    // Any tokens take the same time; these only must not be all the same.
    let some = |n: usize| (0..n as u64).map(|i| ((i * 7919 + 13) % vocab) as u32).collect::<Vec<u32>>();
    let sequence = some(tokens);
    let before = some(if test == "decode" { depth.max(1) } else { depth });
    let mut session = engine.session()?;
    let mut seconds = Vec::new();
    for round in 0..=repetitions {
        // A recurrent state cannot be cut; then all of it is computed again.
        let kept = session.truncate(before.len());
        if kept < before.len() {
            session.extend(&before[kept..])?;
        }
        let start = Instant::now();
        if test == "prefill" {
            session.extend(&sequence)?;
        } else {
            for &token in &sequence {
                session.extend(&[token])?;
            }
        }
        if round > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}
