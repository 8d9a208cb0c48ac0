//! From logits to a token: a chain of filters, then a draw.
//!
//! The order is the field's usual one: repetition penalty, top-k, top-p, min-p, temperature. A seed gives the same
//! draws on every machine.

/// How tokens are picked.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by this before the draw; 0 picks the likeliest token.
    pub temperature: f32,
    /// Only this many of the likeliest tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability stay (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest stay (Nguyen et al. 2024); 0 keeps all.
    pub min_p: f32,
    /// Logits of recent tokens are divided by this, or multiplied if negative (Keskar et al. 2019); 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many tokens count as recent.
    pub repeat_last_n: usize,
    /// Where the draws begin.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 42,
        }
    }
}

impl SamplerOptions {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        SamplerOptions { temperature: 0.0, ..Self::default() }
    }

    /// What is wrong with the numbers, if something is.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, x: f32, low: f32, high: f32| {
            if (low..=high).contains(&x) {
                Ok(())
            } else {
                Err(format!("{name} is {x}, not between {low} and {high}"))
            }
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top-p", self.top_p, 0.0, 1.0)?;
        within("min-p", self.min_p, 0.0, 1.0)?;
        within("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
    }
}

/// A sampler with its state of draws.
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
    /// Tokens with logits, then with probabilities; kept for its memory.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the beginning of its seed.
    pub fn new(options: SamplerOptions) -> Sampler {
        let state = options.seed;
        Sampler { options, state, candidates: Vec::new() }
    }

    /// The options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Picks a token; `history` are the tokens before it, the latest last. NaN logits are never picked unless
    /// there is nothing else.
    pub fn pick(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        let candidates = &mut self.candidates;
        candidates.clear();
        let ordered = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
        candidates.extend((0u32..).zip(logits.iter().map(|&x| ordered(x))));
        if self.options.repeat_penalty != 1.0 {
            let recent = &history[history.len().saturating_sub(self.options.repeat_last_n)..];
            penalize(candidates, recent, self.options.repeat_penalty);
        }
        if self.options.temperature <= 0.0 {
            return likeliest(candidates);
        }
        self.filter();
        self.draw()
    }

    /// Leaves the candidates that the filters keep, the likeliest first, as probabilities.
    fn filter(&mut self) {
        let options = &self.options;
        let candidates = &mut self.candidates;
        // Equal logits stay in the order of their tokens, so that the result does not depend on the sort.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = options.top_k;
        if k > 0 && k < candidates.len() {
            candidates.select_nth_unstable_by(k - 1, order);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(order);
        let highest = candidates.first().map_or(0.0, |c| c.1);
        let weight = |logit: f32, t: f32| if highest == logit { 1.0 } else { ((logit - highest) / t).exp() };
        if options.top_p < 1.0 {
            let total: f32 = candidates.iter().map(|c| weight(c.1, 1.0)).sum();
            let mut sum = 0.0;
            let enough = candidates.iter().position(|c| {
                sum += weight(c.1, 1.0);
                sum >= options.top_p * total
            });
            candidates.truncate(enough.map_or(candidates.len(), |at| at + 1));
        }
        if options.min_p > 0.0 {
            candidates.retain(|c| weight(c.1, 1.0) >= options.min_p);
        }
        for candidate in candidates.iter_mut() {
            candidate.1 = weight(candidate.1, options.temperature);
        }
    }

    fn draw(&mut self) -> u32 {
        let total: f32 = self.candidates.iter().map(|c| c.1).sum();
        let mut left = self.next_unit() * total;
        for &(token, weight) in &self.candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        self.candidates.last().map_or(0, |c| c.0)
    }

    /// The next number in [0, 1) of SplitMix64 (Steele, Lea & Flood 2014).
    fn next_unit(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }
}

fn penalize(candidates: &mut [(u32, f32)], recent: &[u32], penalty: f32) {
    for (i, token) in recent.iter().enumerate() {
        if recent[..i].contains(token) {
            continue;
        }
        if let Some(candidate) = candidates.get_mut(*token as usize) {
            candidate.1 = if candidate.1 > 0.0 { candidate.1 / penalty } else { candidate.1 * penalty };
        }
    }
}

fn likeliest(candidates: &[(u32, f32)]) -> u32 {
    let first = candidates.iter().copied().reduce(|best, c| if c.1 > best.1 { c } else { best });
    first.map_or(0, |c| c.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(options: SamplerOptions, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        (0..n).map(|_| sampler.pick(logits, &[])).collect()
    }

    #[test]
    fn zero_temperature_is_the_first_of_the_likeliest() {
        let logits = [0.0, 3.0, f32::NAN, 3.0, -1.0];
        assert_eq!(picks(SamplerOptions::greedy(), &logits, 3), [1, 1, 1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let all = SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, ..Default::default() };
        let probabilities = [0.5f32, 0.25, 0.125, 0.125];
        let logits = probabilities.map(f32::ln);
        let n = 20_000;
        let drawn = picks(all.clone(), &logits, n);
        for (token, p) in (0..).zip(probabilities) {
            let share = drawn.iter().filter(|&&t| t == token).count() as f32 / n as f32;
            // Five standard deviations of a binomial share.
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / n as f32).sqrt(), "{token}: {share} {p}");
        }
        assert_eq!(drawn, picks(all.clone(), &logits, n), "a seed repeats");
        assert_ne!(drawn, picks(SamplerOptions { seed: 7, ..all }, &logits, n));
    }

    #[test]
    fn filters_keep_what_they_should() {
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let base = SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, ..Default::default() };
        let kept = |options: SamplerOptions| {
            let mut tokens = picks(options, &logits, 2000);
            tokens.sort_unstable();
            tokens.dedup();
            tokens.len()
        };
        assert_eq!(kept(base.clone()), 4);
        assert_eq!(kept(SamplerOptions { top_k: 2, ..base.clone() }), 2);
        assert_eq!(kept(SamplerOptions { top_p: 0.65, ..base.clone() }), 2);
        assert_eq!(kept(SamplerOptions { top_p: 0.0, ..base.clone() }), 1);
        assert_eq!(kept(SamplerOptions { min_p: 0.6, ..base.clone() }), 2);
        assert_eq!(kept(SamplerOptions { temperature: 0.01, ..base }), 1);
    }

    #[test]
    fn repetition_is_penalized_once_and_only_when_recent() {
        let options = SamplerOptions { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplerOptions::greedy() };
        let mut sampler = Sampler::new(options);
        let logits = [4.0, 3.0, -1.0];
        assert_eq!(sampler.pick(&logits, &[0, 0]), 1);
        assert_eq!(sampler.pick(&logits, &[0, 2, 2]), 0, "the first is no longer recent");
        assert_eq!(sampler.pick(&[-1.0, -1.5], &[0]), 1, "a negative logit sinks");
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for (options, name) in [
            (SamplerOptions { temperature: -1.0, ..Default::default() }, "temperature"),
            (SamplerOptions { temperature: f32::NAN, ..Default::default() }, "temperature"),
            (SamplerOptions { top_p: 1.5, ..Default::default() }, "top-p"),
            (SamplerOptions { min_p: -0.1, ..Default::default() }, "min-p"),
            (SamplerOptions { repeat_penalty: 0.0, ..Default::default() }, "repeat-penalty"),
        ] {
            assert!(options.check().unwrap_err().contains(name));
        }
        assert!(SamplerOptions::default().check().is_ok());
    }
}
