//! What routed R shards of a CAWSF file are worth, against the same number drawn at random:
//! `cargo run --release -p fonio-quantize --example route -- FILE REFERENCE TEXT K`. The text's first 300 characters are
//! the prompt; matrices whose shard is not taken are without R. The Kullback-Leibler divergence is from REFERENCE.

use fonio_checkpoint::cawsf::v2::{Kind, V2};
use fonio_engine::{Engine, Options, Routed};
use fonio_model::source::Source;
use fonio_quantize::{decompose, eval};
use std::collections::HashSet;
use std::error::Error;
use std::io::Write;
use std::path::Path;

/// Tokens of a window.
const WINDOW: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, reference, text, k] = &arguments[..] else { return Err("FILE REFERENCE TEXT K".into()) };
    let (path, k): (&Path, usize) = (Path::new(file), k.parse()?);
    let text = std::fs::read_to_string(text)?;
    let opened = V2::open(path)?;
    let routing = opened.routing().ok_or("no routing table")?;
    let prompt: String = text.chars().take(300).collect();
    let feature = decompose::feature(&Source::open(path)?, routing, &prompt)?;
    let zero = vec![0.0; feature.len()];
    let all: Vec<u32> =
        (0u32..).zip(opened.shards()).filter(|(_, s)| s.kind == Kind::R).map(|(at, _)| at).collect();
    let taken =
        |feature: &[f64]| routing.select(feature, k, None).iter().map(|c| c.shard).collect::<Vec<u32>>();
    let mut ways = vec![
        ("all".to_owned(), all.clone()),
        ("routed by the prompt".into(), taken(&feature)),
        ("routed without a prompt".into(), taken(&zero)),
    ];
    ways.extend(
        (1..=3).map(|seed| (format!("random {seed}"), shuffled(&all, seed).into_iter().take(k).collect())),
    );
    ways.push(("none".into(), Vec::new()));
    let reference = open(Path::new(reference), None)?;
    for (name, kept) in ways {
        let bytes: u64 = kept.iter().map(|at| opened.shards()[*at as usize].stored).sum();
        let names =
            kept.iter().filter_map(|at| Some(opened.matrix_of(&opened.shards()[*at as usize])?.1.to_owned()));
        let engine = open(path, Some(Routed { kept: names.collect::<HashSet<_>>(), leave_out: true }))?;
        let found = eval::run(&engine, Some(&reference), &text, WINDOW, &mut |_, _, _| ())?;
        let kl = found.divergence.map_or(f64::NAN, |d| d.mean.value);
        let mib = bytes as f64 / f64::from(1 << 20);
        writeln!(std::io::stdout(), "{name}: {} shards, {mib:.1} MiB, KL divergence {kl:.4}", kept.len())?;
    }
    Ok(())
}

fn open(path: &Path, routed: Option<Routed>) -> Result<Engine, Box<dyn Error>> {
    Ok(Engine::open(path, Options { routed, ..Options::default() })?)
}

/// Fisher and Yates, by a generator that is good enough for a shuffle.
fn shuffled(all: &[u32], seed: u64) -> Vec<u32> {
    let (mut all, mut state) = (all.to_vec(), seed);
    for i in (1..all.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(i, (state >> 33) as usize % (i + 1));
    }
    all
}
