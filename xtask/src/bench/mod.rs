//! Measurements that are too long or too particular for tests.

mod common;
mod disk;
mod limit;
mod process;
mod speed;
mod stream;
mod synthetic;

use fonio_codec::DType;
use std::path::Path;
use std::time::Instant;

const USAGE: &str = "usage: cargo xtask bench COMMAND
  speed [OPTION]... [CASE]...
        fonio beside its rivals on the same file: prefill, decoding, start; runs alternate, medians are compared.
        llama.cpp takes part if its libraries are there (cargo xtask fetch llama.cpp)
        --rival NAME=COMMAND  race with this one too, in which {model}, {work} (prefill, decode, start), {n} (tokens),
                              {threads} and {depth} (positions in the cache before) stand for themselves and which
                              prints how many tokens/s it reaches; may be given several times
        --rival-text NAME=COMMAND
                              the likeliest continuation of {prompt} by {n} tokens, to compare before the race
        --work WORK,...       prefill, decode, decode-4096, start [default: what each case has]
        --threads N,...       numbers of threads [default: 2,1]
        --rounds N            runs of each [default: 5]
        --dir DIR             where models made up are kept [default: fonio-bench in the user's cache folder]
        --fonio PROGRAM       race with this one [default: a release build]
        --plot FILE           a picture of the ratios, as SVG
        --json                one JSON document on stdout instead of a Markdown table
        --check               a missed target is an error
  stream [OPTION]... [CASE]...
        models that are larger than memory: what streaming takes, and how near it comes to the disk
        --dir DIR        where models made up are kept [default: fonio-bench in the user's cache folder]
        --fonio PROGRAM  measure this one [default: a release build]
        --rival COMMAND  race with this one, in which {model} and {tokens} stand for themselves and which prints
                         how many tokens/s it decodes
        --rounds N       runs of each in a race [default: 3]
        --threads N      threads of fonio [default: as many as the machine has]
        --json           one JSON document on stdout
  model NAME CONTAINER TYPE FILE
        make a model up";

/// Runs what the arguments say.
pub fn run(arguments: &[String]) -> Result<(), String> {
    match arguments.split_first() {
        Some((command, rest)) if command == "speed" => speed::run(rest),
        Some((command, rest)) if command == "stream" => stream::run(rest),
        Some((command, rest)) if command == speed::llamacpp::COMMAND => speed::llamacpp::child(rest),
        Some((command, rest)) if command == speed::limits::COMMAND => speed::limits::child(rest),
        Some((command, [name, container, dtype, path])) if command == "model" => {
            model(name, container, dtype, Path::new(path))
        }
        _ => Err(USAGE.into()),
    }
}

/// Makes a model, and says how long that took.
fn model(name: &str, container: &str, dtype: &str, path: &Path) -> Result<(), String> {
    let shape = synthetic::Shape::named(name).ok_or_else(|| {
        let known: Vec<_> = synthetic::SHAPES.iter().map(|s| s.name).collect();
        format!("no model is called {name}: there are {}", known.join(", "))
    })?;
    let dtype = DType::named(dtype).ok_or_else(|| format!("no type is called {dtype}"))?;
    let started = Instant::now();
    let bytes = shape.write(container, dtype, path)?;
    let rate = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    eprintln!("made {}: {bytes} bytes, {rate:.0} MB/s", path.display());
    Ok(())
}
