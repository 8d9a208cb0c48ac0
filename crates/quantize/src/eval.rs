//! What a model makes of a text: perplexity, and how far its predictions are from a reference's.
//!
//! Windows and scored positions are llama-perplexity's: the text is one sequence of tokens, cut into windows of
//! `context` tokens; a window begins with the beginning-of-text token where the model wants one, and the predictions
//! of its second half are scored.

use crate::Error;
use fonio_engine::{Engine, Session};
use fonio_kernel::exp;
use std::sync::Mutex;

/// Positions whose logits are in memory together.
const BATCH: usize = 64;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// How a model did.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Windows that were computed.
    pub windows: usize,
    /// Positions that were scored.
    pub positions: usize,
    /// The perplexity.
    pub perplexity: Estimate,
    /// The comparison, if there was a reference.
    pub divergence: Option<Divergence>,
}

/// How far predictions are from a reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The reference's perplexity.
    pub reference_perplexity: Estimate,
    /// Mean of ln(perplexity / the reference's).
    pub log_ratio: Estimate,
    /// Mean Kullback-Leibler divergence from the reference, in nats.
    pub mean: Estimate,
    /// Median of it.
    pub median: f64,
    /// 99 % of positions have less.
    pub p99: f64,
    /// 99.9 % of positions have less.
    pub p999: f64,
    /// The largest.
    pub max: f64,
    /// Share of positions whose likeliest token is the reference's.
    pub same_top: Estimate,
}

/// One scored position.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    loss: f64,
    reference_loss: f64,
    divergence: f64,
    same_top: bool,
}

/// Evaluates on a text. `progress` is told after each window how many of all are done, and the perplexity so far.
pub fn run(
    engine: &Engine,
    reference: Option<&Engine>,
    text: &str,
    context: usize,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<Evaluation, Error> {
    let tokenizer = engine.tokenizer()?;
    let bad = |e: fonio_text::Error| Error::Request(e.to_string());
    let tokens = tokenizer.encode(text, true, false).map_err(bad)?;
    if let Some(reference) = reference {
        if reference.spec().vocab_size != engine.spec().vocab_size {
            let (a, b) = (engine.spec().vocab_size, reference.spec().vocab_size);
            return Err(Error::Request(format!("the vocabularies differ: {a} and {b} tokens")));
        }
        if reference.tokenizer()?.encode(text, true, false).map_err(bad)? != tokens {
            return Err(Error::Request("the tokenizers give the text different tokens".into()));
        }
    }
    let most = engine.context_len().min(reference.map_or(usize::MAX, Engine::context_len));
    if context < 4 || context > most {
        return Err(Error::Request(format!("a window of {context} tokens is not between 4 and {most}")));
    }
    let windows = tokens.len() / context;
    if windows == 0 {
        let n = tokens.len();
        return Err(Error::Request(format!("the text has {n} tokens, a window needs {context}")));
    }
    let begin = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut session = engine.session()?;
    let mut reference_session = reference.map(Engine::session).transpose()?;
    let mut all: Vec<Position> = Vec::new();
    for (i, window) in tokens.chunks_exact(context).enumerate() {
        let mut window = window.to_vec();
        if let Some(begin) = begin {
            window[0] = begin;
        }
        score(&mut session, reference_session.as_mut(), &window, &mut all)?;
        let mean = all.iter().map(|p| p.loss).sum::<f64>() / all.len() as f64;
        progress(i + 1, windows, mean.exp());
    }
    Ok(summarize(windows, &all, reference.is_some()))
}

/// Scores the second half of a window.
fn score(
    session: &mut Session<'_>,
    mut reference: Option<&mut Session<'_>>,
    window: &[u32],
    all: &mut Vec<Position>,
) -> Result<(), Error> {
    let first = window.len() / 2;
    session.truncate(0);
    session.extend(&window[..first])?;
    if let Some(reference) = &mut reference {
        reference.truncate(0);
        reference.extend(&window[..first])?;
    }
    let vocab = session.engine().spec().vocab_size;
    let mut at = first;
    // The last token predicts what is not in the window.
    while at < window.len() - 1 {
        let batch = &window[at..(at + BATCH).min(window.len() - 1)];
        let targets = &window[at + 1..at + 1 + batch.len()];
        let mut ours = vec![0f32; batch.len() * vocab];
        session.score(batch, |i, row| ours[i * vocab..(i + 1) * vocab].copy_from_slice(row))?;
        let mut theirs = Vec::new();
        if let Some(reference) = &mut reference {
            theirs.resize(batch.len() * vocab, 0f32);
            reference.score(batch, |i, row| theirs[i * vocab..(i + 1) * vocab].copy_from_slice(row))?;
        }
        let scored = Mutex::new(vec![Position::default(); batch.len()]);
        session.engine().kernels().pool().each(
            batch.len(),
            1,
            || (),
            |(), range| {
                for i in range {
                    let row = i * vocab..(i + 1) * vocab;
                    let position = compare(&ours[row.clone()], theirs.get(row), targets[i] as usize);
                    scored.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[i] = position;
                }
            },
        );
        all.extend(scored.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        at += batch.len();
    }
    Ok(())
}

/// The logarithm of the sum of exponentials, and the place of the largest.
fn log_sum_exp(logits: &[f32]) -> (f64, usize) {
    let mut top = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[top] {
            top = i;
        }
    }
    let max = logits[top];
    let sum: f64 = logits.chunks(1024).map(|c| f64::from(c.iter().map(|&x| exp(x - max)).sum::<f32>())).sum();
    (f64::from(max) + sum.ln(), top)
}

fn compare(ours: &[f32], theirs: Option<&[f32]>, target: usize) -> Position {
    let (sum, top) = log_sum_exp(ours);
    let loss = sum - f64::from(ours[target]);
    let Some(theirs) = theirs else { return Position { loss, ..Position::default() } };
    let (their_sum, their_top) = log_sum_exp(theirs);
    let shift = (their_sum - sum) as f32;
    let max = theirs[their_top];
    let terms = theirs.chunks(1024).zip(ours.chunks(1024)).map(|(theirs, ours)| {
        let term = |(&t, &o): (&f32, &f32)| exp(t - max) * ((t - o) - shift);
        f64::from(theirs.iter().zip(ours).map(term).sum::<f32>())
    });
    // Rounding can take a divergence of nothing below zero.
    let divergence = (terms.sum::<f64>() * (f64::from(max) - their_sum).exp()).max(0.0);
    let reference_loss = their_sum - f64::from(theirs[target]);
    Position { loss, reference_loss, divergence, same_top: top == their_top }
}

fn estimate(values: impl ExactSizeIterator<Item = f64> + Clone) -> Estimate {
    let n = values.len() as f64;
    let value = values.clone().sum::<f64>() / n;
    let variance = values.map(|x| (x - value).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Estimate { value, error: (variance / n).sqrt() }
}

/// Perplexity from losses; the error follows from that of the mean loss.
fn perplexity(losses: impl ExactSizeIterator<Item = f64> + Clone) -> Estimate {
    let loss = estimate(losses);
    Estimate { value: loss.value.exp(), error: loss.error * loss.value.exp() }
}

fn summarize(windows: usize, all: &[Position], compared: bool) -> Evaluation {
    let divergence = compared.then(|| {
        let mut sorted: Vec<f64> = all.iter().map(|p| p.divergence).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
        Divergence {
            reference_perplexity: perplexity(all.iter().map(|p| p.reference_loss)),
            log_ratio: estimate(all.iter().map(|p| p.loss - p.reference_loss)),
            mean: estimate(all.iter().map(|p| p.divergence)),
            median: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
            same_top: estimate(all.iter().map(|p| f64::from(u8::from(p.same_top)))),
        }
    });
    let perplexity = perplexity(all.iter().map(|p| p.loss));
    Evaluation { windows, positions: all.len(), perplexity, divergence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_follows_its_definition() {
        let ours: Vec<f32> = (0..3000).map(|i| ((i * 37) % 101) as f32 * 0.07).collect();
        let theirs: Vec<f32> = (0..3000).map(|i| ((i * 53) % 97) as f32 * 0.08 - 20.0).collect();
        let soft = |x: &[f32]| {
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            x.iter().map(|&x| f64::from(x).exp() / sum).collect::<Vec<_>>()
        };
        let (q, p) = (soft(&ours), soft(&theirs));
        let want: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let got = compare(&ours, Some(&theirs), 5);
        // exp within 2^-22 and sums of 1,024 floats.
        assert!((got.divergence - want).abs() < want * 1e-5, "{} {want}", got.divergence);
        assert!((got.loss + q[5].ln()).abs() < 1e-5);
        assert!((got.reference_loss + p[5].ln()).abs() < 1e-5);
        assert!(!got.same_top);
        let same = compare(&ours, Some(&ours), 0);
        assert!(same.divergence < 1e-6 && same.same_top);
    }

    #[test]
    fn summaries_carry_their_errors() {
        let all: Vec<Position> = (0..1000)
            .map(|i| Position {
                loss: f64::from(i % 2),
                divergence: f64::from(i),
                same_top: i % 4 != 0,
                ..Position::default()
            })
            .collect();
        let e = summarize(1, &all, true);
        assert!((e.perplexity.value - 0.5f64.exp()).abs() < 1e-12);
        let d = e.divergence.unwrap();
        assert_eq!((d.p99, d.max, d.same_top.value), (989.0, 999.0, 0.75));
        assert!((d.same_top.error - (0.75f64 * 0.25 / 999.0).sqrt()).abs() < 1e-12);
    }
}
