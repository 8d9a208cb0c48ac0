//! llama.cpp's libraries in a process of their own: this program runs itself with a command that only it knows.

use super::super::process;
use super::engine::{PROMPT, START_CONTEXT};
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use serde_json::json;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

/// The command, as `cargo xtask bench` knows it.
pub const COMMAND: &str = "llama.cpp";
/// Asks the child whether it has the libraries.
const PROBE: &str = "probe";
/// Tokens that are decoded before time is taken.
const WARM: usize = 8;
/// llama.cpp's own default for a batch that is computed at once.
const BATCH: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Prefill,
    Decode,
    /// The prompt's likeliest continuation.
    Text,
}

const WHATS: [(&str, What); 3] = [("prefill", What::Prefill), ("decode", What::Decode), ("text", What::Text)];

/// What the child shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub file: PathBuf,
    pub what: What,
    pub tokens: usize,
    pub depth: usize,
    pub threads: usize,
    /// Whether weights are copied into layouts that suit the CPU.
    pub repack: bool,
}

/// The child's command line.
pub fn command(request: &Request) -> Result<Vec<OsString>, String> {
    own(request.arguments())
}

fn own(arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?;
    let mut command: Vec<OsString> = vec![program.into(), "bench".into(), COMMAND.into()];
    command.extend(arguments);
    Ok(command)
}

/// Whether a child can race, or why not. Libraries that cannot be loaded end the child, not this program.
pub fn probe() -> Result<(), String> {
    process::run(&own(vec![PROBE.into()])?, None).map(drop)
}

/// The libraries.
fn oracle() -> Result<&'static Oracle, String> {
    Oracle::find().ok_or_else(|| {
        let folder = fonio_conformance::home::oracles().join("llama.cpp");
        format!(
            "its libraries are not in {}: `cargo xtask fetch llama.cpp` gets them, or FONIO_ORACLES names the folder \
             above",
            folder.display()
        )
    })
}

impl Request {
    fn arguments(&self) -> Vec<OsString> {
        let what = WHATS.iter().find(|(_, what)| *what == self.what).map_or("", |(name, _)| name);
        let numbers = [self.tokens, self.depth, self.threads, self.repack.into()];
        let mut arguments: Vec<OsString> = vec![self.file.clone().into(), what.into()];
        arguments.extend(numbers.map(|n| n.to_string().into()));
        arguments
    }

    fn read(arguments: &[String]) -> Result<Request, String> {
        let wrong =
            || format!("{COMMAND}: FILE prefill|decode|text TOKENS DEPTH THREADS 0|1, not {arguments:?}");
        let [file, what, numbers @ ..] = arguments else { return Err(wrong()) };
        let (_, what) = WHATS.iter().find(|(name, _)| name == what).ok_or_else(wrong)?;
        let numbers: Vec<usize> = numbers.iter().map_while(|n| n.parse().ok()).collect();
        let &[tokens, depth, threads, repack] = &numbers[..] else { return Err(wrong()) };
        if tokens == 0 || threads == 0 || repack > 1 {
            return Err(wrong());
        }
        Ok(Request { file: file.into(), what: *what, tokens, depth, threads, repack: repack == 1 })
    }
}

/// What the child does: prints a JSON document with `tokens_per_second` or `text`.
pub fn child(arguments: &[String]) -> Result<(), String> {
    let oracle = oracle()?;
    if let [argument] = arguments
        && argument == PROBE
    {
        return Ok(());
    }
    let request = Request::read(arguments)?;
    let load = if request.repack { Model::load_repacked } else { Model::load };
    let model = load(oracle, &request.file).map_err(|e| e.to_string())?;
    let done = match request.what {
        What::Prefill => prefill(&model, &request).map(|rate| json!({ "tokens_per_second": rate })),
        What::Decode => decode(&model, &request).map(|rate| json!({ "tokens_per_second": rate })),
        What::Text => text(&model, &request).map(|text| json!({ "text": text })),
    };
    println!("{}", done.map_err(|e| e.to_string())?);
    Ok(())
}

type Done<T> = Result<T, fonio_conformance::llamacpp::Error>;

/// A sequence as llama.cpp's programs would make it by default.
fn sequence<'m>(model: &'m Model, request: &Request, positions: usize) -> Done<Context<'m>> {
    let options = ContextOptions {
        n_ctx: positions,
        n_batch: BATCH,
        threads: request.threads,
        flash_attention: true,
        last_only: true,
        f32_cache: false,
    };
    Context::new(model, &options)
}

/// Some tokens, not all the same.
fn some(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + 13) % model.vocab_size().max(1)) as u32).collect()
}

fn prefill(model: &Model, request: &Request) -> Done<f64> {
    let tokens = some(model, request.tokens);
    let before = some(model, request.depth);
    let mut context = sequence(model, request, request.depth + request.tokens)?;
    let mut rate = 0.0;
    // The first round brings the weights into memory.
    for _ in 0..2 {
        context.clear();
        if !before.is_empty() {
            context.extend_to_last(&before)?;
        }
        let start = Instant::now();
        context.extend_to_last(&tokens)?;
        rate = tokens.len() as f64 / start.elapsed().as_secs_f64();
    }
    Ok(rate)
}

/// Begins a few positions later than it is told, behind the tokens that make it warm: computing thousands of positions
/// again would take longer than what is measured.
fn decode(model: &Model, request: &Request) -> Done<f64> {
    let before = some(model, request.depth.max(1));
    let tokens = some(model, request.tokens);
    let mut context = sequence(model, request, before.len() + WARM + tokens.len())?;
    context.extend_to_last(&before)?;
    for &token in tokens.iter().cycle().take(WARM) {
        context.extend_to_last(&[token])?;
    }
    let start = Instant::now();
    for &token in &tokens {
        context.extend_to_last(&[token])?;
    }
    Ok(tokens.len() as f64 / start.elapsed().as_secs_f64())
}

fn text(model: &Model, request: &Request) -> Done<String> {
    let mut context = sequence(model, request, START_CONTEXT)?;
    let prompt = model.tokenize(PROMPT, true, false)?;
    let steps = context.greedy(&prompt, request.tokens)?;
    let tokens: Vec<u32> = steps.into_iter().map(|(token, _)| token).collect();
    Ok(String::from_utf8_lossy(&model.detokenize(&tokens, false)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_arrive_as_they_were_sent() {
        let request = Request {
            file: "/a b/c.gguf".into(),
            what: What::Decode,
            tokens: 64,
            depth: 4096,
            threads: 2,
            repack: true,
        };
        let sent: Vec<String> =
            request.arguments().into_iter().map(|argument| argument.into_string().unwrap()).collect();
        assert_eq!(Request::read(&sent).unwrap(), request);
        let command = command(&request).unwrap();
        assert_eq!((&command[1], &command[2]), (&"bench".into(), &COMMAND.into()));
        for (place, wrong) in [(1, "write"), (2, "0"), (3, "x"), (4, "0"), (5, "2")] {
            let mut sent = sent.clone();
            sent[place] = wrong.into();
            assert!(Request::read(&sent).is_err(), "{place}");
        }
        assert!(Request::read(&sent[..5]).is_err() && Request::read(&[]).is_err());
    }

    #[test]
    fn both_layouts_measure_and_say_the_same() {
        let Some(oracle) = Oracle::need() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiny.gguf");
        super::super::super::model("llama-tiny", "gguf", "Q4_0", &file).unwrap();
        let request =
            |what, tokens| Request { file: file.clone(), what, tokens, depth: 3, threads: 1, repack: true };
        for model in [Model::load(oracle, &file).unwrap(), Model::load_repacked(oracle, &file).unwrap()] {
            assert!(prefill(&model, &request(What::Prefill, 64)).unwrap() > 0.0);
            assert!(decode(&model, &request(What::Decode, 4)).unwrap() > 0.0);
            assert!(!text(&model, &request(What::Text, 4)).unwrap().is_empty());
        }
    }
}
