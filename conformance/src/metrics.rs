//! How far two models' logits are apart: KL divergence, same-top-1, perplexity.
//!
//! A row of logits `x` stands for the distribution `p = exp(x − lse(x))`, `lse(x) = max + ln Σ exp(x − max)`. All sums
//! are in f64, so their rounding (about 1e-13 for a vocabulary of 262,144) is far below every bound in use.

/// `ln Σ exp(x)`.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    max + row.iter().map(|&x| (x as f64 - max).exp()).sum::<f64>().ln()
}

/// The index of the largest value, the lowest on a tie, and its distance to the second largest.
///
/// # Panics
/// On fewer than two values or on a NaN.
pub fn top_and_margin(row: &[f32]) -> (usize, f32) {
    assert!(row.len() >= 2 && row.iter().all(|x| !x.is_nan()), "no order among these logits");
    let (mut best, mut second) = (0, f32::NEG_INFINITY);
    for (i, &x) in row.iter().enumerate().skip(1) {
        if x > row[best] {
            second = row[best];
            best = i;
        } else {
            second = second.max(x);
        }
    }
    (best, row[best] - second)
}

/// The measures of one position.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// `Σ p_ref (ln p_ref − ln p_ours)`, in nats.
    pub kl: f64,
    /// Whether both have the same most likely token.
    pub same_top: bool,
    /// The distance between the reference's two largest logits.
    pub margin: f32,
    /// `lse` of the reference's and of our row.
    log_sums: [f64; 2],
}

/// Compares the rows of one position.
///
/// # Panics
/// When the rows differ in length or hold a NaN.
pub fn position(reference: &[f32], ours: &[f32]) -> Position {
    assert_eq!(reference.len(), ours.len(), "rows of different vocabularies");
    let log_sums = [log_sum_exp(reference), log_sum_exp(ours)];
    let [lse_ref, lse_ours] = log_sums;
    let mut kl = 0f64;
    for (&r, &o) in reference.iter().zip(ours) {
        let (ln_ref, ln_ours) = (r as f64 - lse_ref, o as f64 - lse_ours);
        // exp(-60) = 9e-27: over any vocabulary such terms are below f64's rounding of the sum.
        if ln_ref > -60.0 {
            kl += ln_ref.exp() * (ln_ref - ln_ours);
        }
    }
    let (top, margin) = top_and_margin(reference);
    Position { kl, same_top: top == top_and_margin(ours).0, margin, log_sums }
}

/// The measures of many positions.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    kl: Vec<f64>,
    margins: Vec<f32>,
    same_top: usize,
    scored: usize,
    nll: [f64; 2],
}

impl Comparison {
    /// Adds a position. `next` is the token that follows it in the text, if any: it counts for perplexity.
    ///
    /// # Panics
    /// As [`position`], or when `next` is not in the vocabulary.
    pub fn add(&mut self, reference: &[f32], ours: &[f32], next: Option<u32>) {
        let p = position(reference, ours);
        self.kl.push(p.kl);
        self.margins.push(p.margin);
        self.same_top += usize::from(p.same_top);
        if let Some(next) = next {
            self.scored += 1;
            self.nll[0] += p.log_sums[0] - reference[next as usize] as f64;
            self.nll[1] += p.log_sums[1] - ours[next as usize] as f64;
        }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.kl.len()
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.kl.is_empty()
    }

    /// Mean KL divergence, in nats.
    pub fn mean_kl(&self) -> f64 {
        self.kl.iter().sum::<f64>() / self.kl.len() as f64
    }

    /// The KL divergence that the fraction `q` of the positions does not exceed.
    pub fn kl_quantile(&self, q: f64) -> f64 {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((q * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The fraction of positions with the same most likely token.
    pub fn same_top(&self) -> f64 {
        self.same_top as f64 / self.kl.len() as f64
    }

    /// The most positions whose likeliest token changes, if logits differ at random and as little as a mean KL
    /// divergence of `kl` nats says: expectation and three deviations.
    ///
    /// For small differences the divergence is half their variance, so the difference of two logits has the variance
    /// 4·`kl`. A margin m is below it with a probability of ½·erfc(m / √(8·`kl`)).
    pub fn most_changed(&self, kl: f64) -> f64 {
        let changed = |&m: &f32| 0.5 * libm::erfc(f64::from(m) / (8.0 * kl).sqrt());
        let expected: f64 = self.margins.iter().map(changed).sum();
        expected + 3.0 * expected.sqrt()
    }

    /// The number of positions whose likeliest token is another.
    pub fn changed(&self) -> usize {
        self.kl.len() - self.same_top
    }

    /// Perplexity of the reference.
    pub fn reference_perplexity(&self) -> f64 {
        (self.nll[0] / self.scored as f64).exp()
    }

    /// Perplexity of the other side.
    pub fn perplexity(&self) -> f64 {
        (self.nll[1] / self.scored as f64).exp()
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} positions: KL mean {:.6}, 99 % {:.5}, max {:.5}; same top {:.2} %; perplexity {:.4} against {:.4} ({:+.3} %)",
            self.len(),
            self.mean_kl(),
            self.kl_quantile(0.99),
            self.kl_quantile(1.0),
            100.0 * self.same_top(),
            self.perplexity(),
            self.reference_perplexity(),
            100.0 * (self.perplexity() / self.reference_perplexity() - 1.0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distributions() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), shifted by constants that must not matter:
        // KL = 1/2 ln 2 − 1/4 ln 2 = ln(2) / 4.
        let ln2 = std::f32::consts::LN_2;
        let (p, q) = ([ln2 + 7.0, 7.0, 7.0], [-3.0, ln2 - 3.0, -3.0]);
        let at = position(&p, &q);
        assert!((at.kl - std::f64::consts::LN_2 / 4.0).abs() < 1e-6, "{at:?}");
        assert!(!at.same_top);
        assert_eq!(position(&p, &p).kl, 0.0);
        let mut c = Comparison::default();
        c.add(&p, &q, Some(0));
        c.add(&p, &p, None);
        assert!((c.reference_perplexity() - 2.0).abs() < 1e-6 && (c.perplexity() - 4.0).abs() < 1e-6, "{c}");
        assert_eq!((c.len(), c.same_top()), (2, 0.5));
        assert!((c.mean_kl() - std::f64::consts::LN_2 / 8.0).abs() < 1e-6);
        // Both margins are ln 2; with kl = (ln 2)² / 8, each changes with a probability of erfc(1) / 2 = 0.0786496.
        assert_eq!(c.changed(), 1);
        let most = c.most_changed(std::f64::consts::LN_2.powi(2) / 8.0);
        assert!((most - 0.1572992 - 3.0 * 0.1572992f64.sqrt()).abs() < 1e-5, "{most}");
        assert_eq!((c.kl_quantile(0.0), c.kl_quantile(1.0)), (0.0, at.kl));
    }

    #[test]
    fn far_away_logits() {
        let row = [0.0f32, -200.0, f32::NEG_INFINITY];
        assert_eq!(position(&row, &row).kl, 0.0);
        assert!(position(&[0.0, -1.0], &[0.0, f32::NEG_INFINITY]).kl.is_infinite());
        assert_eq!(top_and_margin(&[1.0, 3.0, 3.0, 2.0]), (1, 0.0));
        assert_eq!(top_and_margin(&[5.0, 3.5]), (0, 1.5));
    }
}
