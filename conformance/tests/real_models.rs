//! Real models against llama.cpp: logits over natural text, and greedy continuations.
//!
//! llama.cpp computes with activations rounded to eight bits in blocks, and so does fonio, in its own way; two sound
//! schemes differ by a mean KL divergence of up to about 0.004 nats and in under 3 % of the likeliest tokens.

use fonio_conformance::compare::{self, CHUNK, Continuation, Runner};
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle};
use fonio_engine::{Engine, Error, Options, Session};

const PROSE: &str = include_str!("../text/prose.txt");
const PROMPTS: &str = include_str!("../text/prompts.txt");
/// Tokens of a window of text, and windows: 4,096 tokens.
const WINDOWS: (usize, usize) = (512, 8);
const MAX_MEAN_KL: f64 = 0.004;
const MIN_SAME_TOP: f64 = 0.97;
const MAX_PERPLEXITY_RATIO: f64 = 1.005;
/// Tokens of each greedy continuation.
const STEPS: usize = 32;
/// The margin between llama.cpp's two likeliest tokens below which neither is right. For small differences d of the
/// logits, the KL divergence is half the variance of d: at the allowed 0.004 its deviation is 0.09, and that of the
/// difference of two logits √2 times that, 0.127. Half as much again on top, for a difference that is half as large
/// again as usual.
const TIE: f32 = 0.19;

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
        eprintln!("{apart}");
        assert_eq!(apart.len(), WINDOWS.0 * WINDOWS.1);
        assert!(apart.mean_kl() <= MAX_MEAN_KL, "{apart}");
        assert!(apart.same_top() >= MIN_SAME_TOP, "{apart}");
        let ratio = apart.perplexity() / apart.reference_perplexity();
        assert!((1.0 / MAX_PERPLEXITY_RATIO..=MAX_PERPLEXITY_RATIO).contains(&ratio), "{apart}");
    }

    fn check_greedy(&self) {
        let (mut reference, mut ours) = self.sides();
        let (mut whole, mut compared) = (0, 0);
        for prompt in PROMPTS.lines() {
            let tokens = self.tokens(prompt);
            let theirs = compare::greedy(&mut reference, &tokens, STEPS).unwrap();
            let result =
                compare::continuation(&theirs, &compare::greedy(&mut ours, &tokens, STEPS).unwrap(), TIE);
            eprintln!("{prompt}: {result:?}");
            match result {
                Continuation::Same => (whole, compared) = (whole + 1, compared + STEPS),
                Continuation::Tie { same, .. } => compared += same,
                Continuation::Different { .. } => panic!("{prompt}: {result:?}"),
            }
        }
        let prompts = PROMPTS.lines().count();
        eprintln!("{whole} of {prompts} continuations whole, {compared} tokens compared");
        assert!(prompts >= 10 && 2 * whole > prompts, "ties ended {} of {prompts}", prompts - whole);
    }
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
    let Some(both) = Both::open(home::GEMMA3) else { return };
    both.check_logits();
}

#[test]
fn gemma3_greedy() {
    let Some(both) = Both::open(home::GEMMA3) else { return };
    both.check_greedy();
}
