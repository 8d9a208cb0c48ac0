//! Real models against llama.cpp: logits over natural text, and greedy continuations.
//!
//! llama.cpp computes with activations rounded to eight bits in blocks, and so does fonio, in its own way; two sound
//! schemes differ by a mean KL divergence of up to about 0.004 nats. How many likeliest tokens may change follows from
//! that and from the reference's margins.

use fonio_conformance::compare::{self, CHUNK, Runner};
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use fonio_engine::{Engine, Error, Options, Session};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_simd::Isa;
use std::path::Path;

const PROSE: &str = include_str!("../text/prose.txt");
const PROMPTS: &str = include_str!("../text/prompts.txt");
/// Tokens of a window of text, and windows: 4,096 tokens.
const WINDOWS: (usize, usize) = (4096, 1);
const MAX_MEAN_KL: f64 = 0.004;
const MAX_PERPLEXITY_RATIO: f64 = 1.005;
/// Decided steps of each greedy continuation that are compared, and the most steps that it may take to find them.
const DECIDED: usize = 32;
const MAX_STEPS: usize = 64;
/// The margin between llama.cpp's two likeliest tokens below which neither is right. For small differences d of the
/// logits, the KL divergence is half the variance of d: at the allowed mean of 0.004, d has a deviation of
/// √0.008 = 0.089, and the difference of two logits √2 times that, 0.126. What is within three deviations is a tie.
const TIE: f32 = 0.38;

/// fonio as a side of the comparison.
struct Ours<'a>(Session<'a>);

impl Runner for Ours<'_> {
    type Error = Error;

    fn reset(&mut self) -> Result<(), Error> {
        self.0.truncate(0);
        Ok(())
    }

    fn extend(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.0.score(tokens, each)
    }

    fn extend_to_last(&mut self, tokens: &[u32], last: &mut dyn FnMut(&[f32])) -> Result<(), Error> {
        last(self.0.extend(tokens)?);
        Ok(())
    }
}

/// The same file in llama.cpp and in fonio.
struct Both {
    reference: Model,
    ours: Engine,
}

impl Both {
    fn open(name: &str) -> Option<Both> {
        let oracle = Oracle::need()?;
        let path = home::need(name, home::model(name))?;
        let options = Options { threads: 2, context: Some(WINDOWS.0), batch: CHUNK, ..Options::default() };
        Some(Both {
            reference: Model::load(oracle, &path).unwrap(),
            ours: Engine::open(&path, options).unwrap(),
        })
    }

    fn sides(&self) -> (Context<'_>, Ours<'_>) {
        let options = ContextOptions { n_ctx: WINDOWS.0, n_batch: CHUNK, ..ContextOptions::default() };
        (Context::new(&self.reference, &options).unwrap(), Ours(self.ours.session().unwrap()))
    }

    /// Both tokenizers must agree on the text, so that the rest compares the models alone.
    fn tokens(&self, text: &str) -> Vec<u32> {
        let tokens = self.reference.tokenize(text, true, false).unwrap();
        assert_eq!(
            self.ours.tokenizer().unwrap().encode(text, true, false).unwrap(),
            tokens,
            "tokens of a text"
        );
        tokens
    }

    fn check_logits(&self) {
        let tokens = self.tokens(PROSE);
        let (mut reference, mut ours) = self.sides();
        let apart =
            compare::windows(&mut reference, &mut ours, &tokens, WINDOWS, self.reference.leading_bos());
        eprintln!("{apart}; at most {:.0} may change", apart.most_changed(MAX_MEAN_KL));
        check(&apart);
    }

    /// Against llama.cpp computing the same weights without rounding activations; and llama.cpp as it usually computes
    /// against that too, which must not be closer than fonio is.
    fn check_exact_logits(&self, exact: &Model) {
        let tokens = self.tokens(PROSE);
        let options = ContextOptions { n_ctx: WINDOWS.0, n_batch: CHUNK, ..ContextOptions::default() };
        let options = ContextOptions { f32_cache: true, ..options };
        let (mut rounded, mut ours) = self.sides();
        let mut exact = Context::new(exact, &options).unwrap();
        let leading = self.reference.leading_bos();
        let apart = compare::windows(&mut exact, &mut ours, &tokens, WINDOWS, leading);
        let theirs = compare::windows(&mut exact, &mut rounded, &tokens, WINDOWS, leading);
        eprintln!("fonio: {apart}\nllama.cpp: {theirs}");
        check(&apart);
        assert!(apart.mean_kl() <= theirs.mean_kl(), "fonio: {apart}; llama.cpp: {theirs}");
    }

    /// Walks along llama.cpp's greedy continuations: wherever it is sure of the next token, fonio picks the same.
    fn check_greedy(&self) {
        let (mut reference, mut ours) = self.sides();
        assert!(PROMPTS.lines().count() >= 10);
        let mut wrong = Vec::new();
        for prompt in PROMPTS.lines() {
            let tokens = self.tokens(prompt);
            let mut theirs = compare::greedy(&mut reference, &tokens, MAX_STEPS).unwrap();
            let enough = theirs.iter().enumerate().filter(|(_, step)| step.1 >= TIE).nth(DECIDED - 1);
            theirs.truncate(enough.map_or(MAX_STEPS, |(i, _)| i + 1));
            let steps: Vec<u32> = theirs.iter().map(|s| s.0).collect();
            let picks = compare::follow(&mut ours, &tokens, &steps).unwrap();
            let agreement = compare::agreement(&theirs, &picks, TIE);
            eprintln!("{prompt}: {agreement:?}");
            if agreement.differs.is_some() || agreement.decided < DECIDED {
                wrong.push(format!("{prompt}: {agreement:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn check(apart: &fonio_conformance::metrics::Comparison) {
    assert_eq!(apart.len(), WINDOWS.0 * WINDOWS.1);
    assert!(apart.mean_kl() <= MAX_MEAN_KL, "{apart}");
    let most = apart.most_changed(MAX_MEAN_KL);
    assert!(
        apart.changed() as f64 <= most,
        "{} likeliest tokens of {most} changed: {apart}",
        apart.changed()
    );
    let ratio = apart.perplexity() / apart.reference_perplexity();
    assert!((1.0 / MAX_PERPLEXITY_RATIO..=MAX_PERPLEXITY_RATIO).contains(&ratio), "{apart}");
}

/// The file with every weight widened to `F32`.
fn widened(name: &str, out: &Path) -> Option<()> {
    let source = Source::open(&home::need(name, home::model(name))?).unwrap();
    let target = Target::named("F32").unwrap();
    let metadata = source.complete_metadata().unwrap();
    let plan = Plan::new(source.checkpoint().as_ref(), source.spec(), metadata, &target, &[]).unwrap();
    let settings = Settings {
        threads: 2,
        isa: Isa::detect(),
        write: Default::default(),
        progress: &|_, _| {},
        cancel: None,
    };
    let gguf = fonio_checkpoint::list::named("gguf").unwrap();
    convert::run(source.checkpoint().as_ref(), &plan, gguf, out, &settings).unwrap();
    Some(())
}

#[test]
fn smollm2_logits() {
    let Some(both) = Both::open(home::SMOLLM2) else { return };
    both.check_logits();
}

#[test]
fn smollm2_greedy() {
    let Some(both) = Both::open(home::SMOLLM2) else { return };
    both.check_greedy();
}

#[test]
fn gemma3_logits() {
    // The heavy tails of Gemma's activations cost llama.cpp more than the bound by itself: its blocks of 256 share a
    // scale. So the reference is llama.cpp without that rounding.
    let Some(both) = Both::open(home::GEMMA3) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("widened.gguf");
    let Some(()) = widened(home::GEMMA3, &file) else { return };
    both.check_exact_logits(&Model::load(Oracle::need().unwrap(), &file).unwrap());
}

#[test]
fn gemma3_greedy() {
    let Some(both) = Both::open(home::GEMMA3) else { return };
    both.check_greedy();
}
