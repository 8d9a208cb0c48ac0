//! A CAWSF file with only some of another's R shards, to measure what they are worth:
//! `cargo run --release -p fonio-quantize --example shards -- IN OUT K routed PROMPT`, or `random SEED`, or `all`.
//! A shard that is left out leaves its matrix without R; `fonio eval OUT --reference IN` says what that costs.

use fonio_checkpoint::cawsf::v2::{Content, Kind, V2, Writer};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::{Checkpoint, Term};
use fonio_model::source::Source;
use fonio_quantize::decompose::feature;
use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output, k, how, more @ ..] = &arguments[..] else { return Err("IN OUT K HOW".into()) };
    let file = V2::open(Path::new(input))?;
    let all: Vec<u32> = (0u32..).zip(file.shards()).filter(|(_, s)| s.kind == Kind::R).map(|(at, _)| at).collect();
    let word = more.first().map_or("", String::as_str);
    let k: usize = k.parse()?;
    let kept: Vec<u32> = match how.as_str() {
        "all" => all,
        "random" => {
            // Fisher and Yates, by a generator that is good enough for a shuffle.
            let (mut all, mut state): (Vec<u32>, u64) = (all, word.parse::<u64>()? * 2 + 1);
            for i in (1..all.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                all.swap(i, (state >> 33) as usize % (i + 1));
            }
            all.into_iter().take(k).collect()
        }
        _ => {
            let routing = file.routing().ok_or("no routing table")?;
            let feature = feature(&Source::open(Path::new(input))?, routing, word)?;
            routing.select(&feature, k, None).iter().map(|c| c.shard).collect()
        }
    };
    let bytes: u64 = kept.iter().map(|at| file.shards()[*at as usize].stored).sum();
    copy(&file, &kept, Path::new(output))?;
    writeln!(std::io::stdout(), "{} R shards, {bytes} bytes", kept.len())?;
    Ok(())
}

fn copy(file: &V2, kept: &[u32], output: &Path) -> Result<(), Box<dyn Error>> {
    let mut writer = Writer::create(output, true, Packing::Zstd)?;
    let mut books: HashMap<usize, u32> = HashMap::new();
    for (at, info) in file.tensors().iter().enumerate() {
        let terms = file.terms(at);
        if terms.is_empty() {
            writer.whole(&info.name, info.dtype, &info.shape)?;
            writer.append(&file.bytes(at)?)?;
            continue;
        }
        let r = file.shards_of(at).iter().any(|s| kept.contains(&(*s as u32)));
        if let Some(Term::Vectors { tables, .. }) = terms.last().filter(|_| r)
            && !books.contains_key(tables)
        {
            let shape = file.info(*tables).ok_or("no tables")?.shape.clone();
            books.insert(*tables, writer.codebook(shape[0], shape[1], shape[2], &file.bytes(*tables)?)?);
        }
        let scope = writer.sum(&info.name, info.shape[0], info.shape[1])?;
        for term in terms {
            let numbers = |plane: usize| -> Result<Vec<u32>, fonio_checkpoint::Error> {
                Ok(file.bytes(plane)?.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
            };
            let shape = |plane: usize, dim: usize| file.info(plane).map_or(0, |p| p.shape[dim]);
            match *term {
                Term::Product { left, right } => {
                    let rank = shape(right, 0);
                    let (left, right) = (file.bytes(left)?, file.bytes(right)?);
                    writer.shard(scope, Content::LowRank { rank, left: &left, right: &right })?;
                }
                Term::Band { plane, first } => {
                    let (n, values) = (shape(plane, 0), file.bytes(plane)?);
                    writer.shard(scope, Content::Band { n, first, values: &values })?;
                }
                Term::Sparse { starts, columns, values } => {
                    let (starts, columns, values) = (numbers(starts)?, numbers(columns)?, file.bytes(values)?);
                    let content = Content::Sparse { starts: &starts, columns: &columns, values: &values };
                    writer.shard(scope, content)?;
                }
                Term::Vectors { codes, tables } if r => {
                    let codes = file.bytes(codes)?;
                    writer.shard(scope, Content::Vectors { codebook: books[&tables], codes: &codes })?;
                }
                _ => {}
            }
        }
    }
    writer.finish(file.metadata(), None)?;
    Ok(())
}
