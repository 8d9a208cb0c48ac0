//! Routing keys: what R shards are worth, and how that depends on the prompt.
//!
//! For each window of the calibration text a shard's worth is the energy of its contribution in that of its matrix's
//! output, `Σ ‖R_c‖² · E[x_c²] / Σ ‖W_c‖² · E[x_c²]` over columns, as if columns were uncorrelated. A ridge regression
//! (Hoerl and Kennard 1970) predicts it from the window's feature, which is cheap to compute for a prompt. How much the
//! regression shrinks is what leaves the least error of windows that are left out.

use fonio_checkpoint::cawsf::v2::Entry;

/// The regression's part that all shards share.
pub(super) struct Ridge {
    /// Features of the windows, centred.
    features: Vec<Vec<f64>>,
    /// Candidates: how much to shrink, and `(F·Fᵀ + λ)⁻¹`.
    inverses: Vec<Vec<f64>>,
    /// `F·Fᵀ`
    gram: Vec<f64>,
}

/// Shrinkage in units of the features' mean square. The last leaves next to nothing of a key.
const SHRINK: [f64; 6] = [0.03, 0.1, 0.3, 1.0, 3.0, 1000.0];

impl Ridge {
    pub(super) fn new(features: Vec<Vec<f64>>) -> Ridge {
        let n = features.len();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let gram: Vec<f64> = (0..n * n).map(|i| dot(&features[i / n], &features[i % n])).collect();
        let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n.max(1) as f64;
        let shrunk = |factor: f64| {
            let mut a = gram.clone();
            (0..n).for_each(|i| a[i * n + i] += factor * mean + 1e-12);
            inverse(a, n)
        };
        let inverses = SHRINK.iter().map(|f| shrunk(*f)).collect();
        Ridge { features, inverses, gram }
    }

    /// Which candidate has the least error in the shards' worths when each window in turn is left out.
    fn best(&self, worths: &[Vec<f64>]) -> usize {
        let n = self.features.len();
        let error = |inverse: &Vec<f64>| {
            // Predictions of the windows themselves are H·y with H = K·(K + λ)⁻¹.
            let hat: Vec<f64> = (0..n * n)
                .map(|i| (0..n).map(|j| self.gram[i / n * n + j] * inverse[j * n + i % n]).sum())
                .collect();
            let of = |worth: &Vec<f64>| {
                let mean = worth.iter().sum::<f64>() / n as f64;
                let left = |i: usize| {
                    let predicted: f64 = (0..n).map(|j| hat[i * n + j] * (worth[j] - mean)).sum();
                    ((worth[i] - mean - predicted) / (1.0 - hat[i * n + i]).max(1e-6)).powi(2)
                };
                (0..n).map(left).sum::<f64>() / (mean * mean).max(1e-30)
            };
            worths.iter().map(of).sum::<f64>()
        };
        let errors: Vec<f64> = self.inverses.iter().map(error).collect();
        (0..errors.len()).min_by(|a, b| errors[*a].total_cmp(&errors[*b])).unwrap_or(0)
    }

    /// Entries of shards (number, cost in MiB) with these worths in each window.
    pub(super) fn entries(&self, shards: &[(u32, f32)], worths: &[Vec<f64>]) -> Vec<Entry> {
        let n = self.features.len();
        let inverse = &self.inverses[self.best(worths)];
        let dim = self.features.first().map_or(0, Vec::len);
        let entry = |((shard, cost), worth): (&(u32, f32), &Vec<f64>)| {
            let mean = worth.iter().sum::<f64>() / n.max(1) as f64;
            let weights: Vec<f64> =
                (0..n).map(|i| (0..n).map(|j| inverse[i * n + j] * (worth[j] - mean)).sum()).collect();
            let value =
                |d: usize| self.features.iter().zip(&weights).map(|(f, w)| f[d] * w).sum::<f64>() as f32;
            Entry { shard: *shard, cost: *cost, worth: mean as f32, key: (0..dim).map(value).collect() }
        };
        shards.iter().zip(worths).map(entry).collect()
    }
}

/// The inverse of a symmetric positive definite matrix, by Gauss and Jordan's method.
fn inverse(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    let mut out: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for i in 0..n {
        let scale = 1.0 / a[i * n + i];
        for c in 0..n {
            a[i * n + c] *= scale;
            out[i * n + c] *= scale;
        }
        for r in (0..n).filter(|r| *r != i) {
            let factor = a[r * n + i];
            for c in 0..n {
                a[r * n + c] -= factor * a[i * n + c];
                out[r * n + c] -= factor * out[i * n + c];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    #[test]
    fn what_depends_on_the_prompt_is_found_and_noise_is_not() {
        let mut random = Random::new(1, 0);
        let mut features: Vec<Vec<f64>> =
            (0..40).map(|_| (0..8).map(|_| f64::from(random.normal())).collect()).collect();
        for d in 0..8 {
            let mean = features.iter().map(|f| f[d]).sum::<f64>() / 40.0;
            features.iter_mut().for_each(|f| f[d] -= mean);
        }
        let real: Vec<f64> = features.iter().map(|f| 0.5 + 0.1 * f[2] - 0.05 * f[5]).collect();
        let ridge = Ridge::new(features.clone());
        let entries = ridge.entries(&[(3, 2.0)], &[real]);
        assert_eq!((entries[0].shard, entries[0].cost), (3, 2.0));
        assert!((entries[0].worth - 0.5).abs() < 1e-6);
        let want = [0.0, 0.0, 0.1, 0.0, 0.0, -0.05, 0.0, 0.0];
        assert!(entries[0].key.iter().zip(want).all(|(k, w)| (k - w).abs() < 0.01), "{:?}", entries[0].key);
        let noise: Vec<f64> = (0..40).map(|_| 0.5 + 0.1 * f64::from(random.normal())).collect();
        let entries = ridge.entries(&[(0, 1.0)], &[noise]);
        assert!(entries[0].key.iter().map(|k| k * k).sum::<f32>().sqrt() < 0.05, "{:?}", entries[0].key);
    }

    #[test]
    fn inverses() {
        let a = vec![4.0, 1.0, 0.5, 1.0, 3.0, 0.2, 0.5, 0.2, 2.0];
        let b = inverse(a.clone(), 3);
        for i in 0..9 {
            let v: f64 = (0..3).map(|j| a[i / 3 * 3 + j] * b[j * 3 + i % 3]).sum();
            assert!((v - f64::from(u8::from(i / 3 == i % 3))).abs() < 1e-12);
        }
    }
}
