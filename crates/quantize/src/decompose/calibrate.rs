//! What a model's matrices see of a text: which inputs are large, and what the text's windows look like to a router.

use super::product::Machine;
use super::random::mix;
use crate::Error;
use fonio_checkpoint::Checkpoint;
use fonio_checkpoint::cawsf::v2::{Routing, projected};
use fonio_engine::{Engine, Observer};
use fonio_model::source::Source;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// The text that is used where none is given: prose, instructions, figures, code, and some other languages.
pub const DEFAULT_TEXT: &str = include_str!("calibration.txt");
/// Tokens of a window, and most windows of a text.
const WINDOW: usize = 64;
const MOST: usize = 256;
/// Length of a router's feature.
const DIM: usize = 64;
/// Where tokens' embeddings are.
const EMBEDDING: &str = "token_embd.weight";
/// Every column counts at least this share of the mean: a text is only a sample.
const FLOOR: f64 = 0.01;

/// What was seen.
pub struct Activations {
    /// For each matrix, for each window, the mean square of each input.
    squares: HashMap<String, Vec<Vec<f32>>>,
    /// For each stack of experts' matrices, what each of them saw.
    experts: HashMap<String, Vec<Expert>>,
    /// For each window, its feature as a router sees it.
    features: Vec<Vec<f64>>,
    seed: u64,
}

/// What an expert's matrix saw. Its windows are not told apart but for how many tokens it got: there are many experts,
/// and most windows have few tokens for each.
#[derive(Clone, Default)]
struct Expert {
    /// Of all tokens, the sum of each input's square.
    sums: Vec<f64>,
    tokens: usize,
    /// For each window up to the last that it saw, the share of the window's tokens.
    usage: Vec<f32>,
}

struct Collector<'a> {
    cols: &'a HashMap<&'a str, usize>,
    tokens: usize,
    window: usize,
    sums: HashMap<String, (Vec<f64>, usize)>,
    experts: &'a mut HashMap<String, Vec<Expert>>,
}

impl Observer for Collector<'_> {
    fn input(&mut self, tensor: &str, x: &[f32]) {
        let Some(&cols) = self.cols.get(tensor) else { return };
        let entry = self.sums.entry(tensor.to_owned()).or_insert_with(|| (vec![0.0; cols], 0));
        // Many models park a huge activation at the first position; it says nothing about the text.
        let skip = usize::from(x.len() == self.tokens * cols && self.tokens > 1);
        for row in x.chunks_exact(cols).skip(skip) {
            entry.0.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
            entry.1 += 1;
        }
    }

    fn expert_input(
        &mut self,
        tensor: &str,
        expert: usize,
        positions: &mut dyn Iterator<Item = usize>,
        x: &[f32],
    ) {
        let Some(&cols) = self.cols.get(tensor) else { return };
        let stack = self.experts.entry(tensor.to_owned()).or_default();
        if stack.len() <= expert {
            stack.resize_with(expert + 1, Expert::default);
        }
        let (seen, skip) = (&mut stack[expert], usize::from(self.tokens > 1));
        seen.sums.resize(cols, 0.0);
        seen.usage.resize(self.window + 1, 0.0);
        for (_, row) in positions.zip(x.chunks_exact(cols)).filter(|(at, _)| *at >= skip) {
            seen.sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
            seen.tokens += 1;
            seen.usage[self.window] += 1.0 / (self.tokens - skip) as f32;
        }
    }
}

impl Activations {
    /// Runs the model over a text and looks at the inputs of these tensors, given by their numbers. `progress` is told
    /// how many windows of all are done.
    pub fn collect(
        engine: &Engine,
        tensors: &[usize],
        text: &str,
        seed: u64,
        progress: &dyn Fn(usize, usize),
        cancel: Option<&AtomicBool>,
    ) -> Result<Activations, Error> {
        let bad = |e: fonio_text::Error| Error::Request(e.to_string());
        let tokenizer = engine.tokenizer()?;
        let tokens = tokenizer.encode(text, false, false).map_err(bad)?;
        let begin = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let size = WINDOW.min(engine.context_len().saturating_sub(1)).max(1);
        let windows: Vec<&[u32]> =
            tokens.chunks(size).filter(|w| w.len() >= size.min(8)).take(MOST).collect();
        if windows.is_empty() {
            return Err(Error::Request(format!("the calibration text has {} tokens", tokens.len())));
        }
        let checkpoint = engine.source().checkpoint().as_ref();
        let infos = tensors.iter().filter_map(|at| checkpoint.tensors().get(*at));
        let cols: HashMap<&str, usize> = infos.map(|t| (t.name.as_str(), t.row_len() as usize)).collect();
        let mut found =
            Activations { squares: HashMap::new(), experts: HashMap::new(), features: Vec::new(), seed };
        let mut session = engine.session()?;
        for (i, window) in windows.iter().enumerate() {
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                return Err(Error::Cancelled);
            }
            let all: Vec<u32> = begin.into_iter().chain(window.iter().copied()).collect();
            let (tokens, experts) = (all.len(), &mut found.experts);
            let mut collector = Collector { cols: &cols, tokens, window: i, sums: HashMap::new(), experts };
            session.truncate(0);
            session.observe(&all, |_, _| (), &mut collector)?;
            for (name, (sums, n)) in collector.sums {
                let mean = sums.iter().map(|s| (s / n.max(1) as f64) as f32).collect();
                found.squares.entry(name).or_default().push(mean);
            }
            let rows = embeddings(engine.source(), EMBEDDING, window)?;
            found.features.push(projected(seed, DIM, rows.iter().map(Vec::as_slice)));
            progress(i + 1, windows.len());
        }
        Ok(found)
    }

    /// A number that is another one if anything that was seen is.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut names: Vec<&String> = self.squares.keys().collect();
        names.sort_unstable();
        let mut sum = self.seed;
        let mut add = |bits: u64| sum = mix(sum ^ bits).wrapping_add(0x9e37_79b9_7f4a_7c15);
        for name in names {
            name.bytes().for_each(|b| add(b.into()));
            self.squares[name].iter().flatten().for_each(|v| add(v.to_bits().into()));
        }
        let mut stacks: Vec<(&String, &Vec<Expert>)> = self.experts.iter().collect();
        stacks.sort_unstable_by_key(|(name, _)| *name);
        for (name, stack) in stacks {
            name.bytes().for_each(|b| add(b.into()));
            for expert in stack {
                expert.sums.iter().for_each(|v| add(v.to_bits()));
                expert.usage.iter().for_each(|v| add(v.to_bits().into()));
            }
        }
        self.features.iter().flatten().for_each(|v| add(v.to_bits()));
        sum
    }

    /// How much each input of a matrix counts, 1 on the whole: of a tensor, or of one of a stack of experts. `None` for
    /// what saw nothing.
    pub fn importance(&self, tensor: &str, matrix: usize) -> Option<Vec<f32>> {
        let Some(windows) = self.squares.get(tensor) else {
            return relative(&self.experts.get(tensor)?.get(matrix)?.sums);
        };
        let mut sums = vec![0f64; windows.first()?.len()];
        for window in windows {
            sums.iter_mut().zip(window).for_each(|(s, v)| *s += f64::from(*v));
        }
        relative(&sums)
    }

    /// For each window, the share of the output's energy of a matrix whose columns have the energies `all` that one has
    /// whose columns have the energies `part`; of an expert's matrix, times the share of the window's tokens that it
    /// got. `None` for a matrix that was not seen in each window, and for a stack that never was.
    pub(super) fn shares(&self, tensor: &str, matrix: usize, part: &[f64], all: &[f64]) -> Option<Vec<f64>> {
        if let Some(windows) = self.squares.get(tensor).filter(|w| w.len() == self.features.len()) {
            let energy = |columns: &[f64], window: &[f32]| {
                columns.iter().zip(window).map(|(e, s)| e * f64::from(*s)).sum::<f64>()
            };
            return Some(windows.iter().map(|w| energy(part, w) / energy(all, w).max(1e-30)).collect());
        }
        let stack = self.experts.get(tensor)?;
        let mut shares = vec![0f64; self.features.len()];
        if let Some(expert) = stack.get(matrix).filter(|expert| expert.tokens > 0) {
            let squares = expert.sums.iter().map(|s| s / expert.tokens as f64);
            let energy =
                |columns: &[f64]| columns.iter().zip(squares.clone()).map(|(e, s)| e * s).sum::<f64>();
            let share = energy(part) / energy(all).max(1e-30);
            shares.iter_mut().zip(&expert.usage).for_each(|(to, used)| *to = share * f64::from(*used));
        }
        Some(shares)
    }

    /// A routing table without entries, and the windows' features less their mean.
    pub(super) fn routing(&self) -> (Routing, Vec<Vec<f64>>) {
        let n = self.features.len().max(1) as f64;
        let mean: Vec<f32> =
            (0..DIM).map(|d| (self.features.iter().map(|f| f[d]).sum::<f64>() / n) as f32).collect();
        let centred = |f: &Vec<f64>| f.iter().zip(&mean).map(|(v, m)| v - f64::from(*m)).collect();
        let features = self.features.iter().map(centred).collect();
        (Routing { seed: self.seed, embedding: EMBEDDING.into(), mean, entries: Vec::new() }, features)
    }
}

/// Sums relative to their mean, and a floor; nothing of what is not there.
fn relative(sums: &[f64]) -> Option<Vec<f32>> {
    let mean = sums.iter().sum::<f64>() / sums.len() as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    Some(sums.iter().map(|s| (s / mean + FLOOR) as f32).collect())
}

/// Rows of an embedding.
fn embeddings(source: &Source, name: &str, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
    let checkpoint: &dyn Checkpoint = source.checkpoint().as_ref();
    let missing = || Error::Request(format!("the model has no tensor {name:?}"));
    let at = checkpoint.find(name).ok_or_else(missing)?;
    let info = checkpoint.info(at).ok_or_else(missing)?;
    let bad = |reason: String| Error::Tensor { tensor: name.to_owned(), reason };
    let len = info.dtype.bytes_for(info.row_len()).unwrap_or(0);
    let isa = fonio_simd::Isa::detect();
    let row = |token: &u32| {
        let mut bytes = vec![0; len as usize];
        checkpoint.read(at, u64::from(*token) * len, &mut bytes)?;
        let mut values = vec![0f32; info.row_len() as usize];
        info.dtype.dequantize(isa, &bytes, &mut values).map_err(|e| bad(e.to_string()))?;
        Ok(values)
    };
    tokens.iter().map(row).collect()
}

/// What a router sees of a prompt.
pub fn feature(source: &Source, routing: &Routing, prompt: &str) -> Result<Vec<f64>, Error> {
    let bad = |e: fonio_text::Error| Error::Request(e.to_string());
    let tokens = source.tokenizer()?.encode(prompt, false, false).map_err(bad)?;
    let rows = embeddings(source, &routing.embedding, &tokens)?;
    Ok(routing.feature(rows.iter().map(Vec::as_slice)))
}

/// Squares of each column's values, summed.
pub(super) fn column_energies(machine: Machine<'_>, values: &[f32], cols: usize) -> Vec<f64> {
    const BLOCK: usize = 64;
    let mut out = vec![0f64; cols];
    super::product::pieces(machine.pool, &mut out, BLOCK, |i, out| {
        for row in values.chunks_exact(cols) {
            let row = &row[i * BLOCK..][..out.len()];
            out.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        }
    });
    out
}
