//! What several benches need: the program, the folder of models, medians.

use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// CPUs that other programs may take before a run's figures say little.
pub const OTHERS: f64 = 0.25;

/// Where models made up are kept: `fonio-bench` in the user's cache folder.
pub fn folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("fonio-bench")
}

/// Builds the program and gives its path.
pub fn build() -> Result<PathBuf, String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--package", "fonio", "--message-format", "json"]);
    cargo.current_dir(fonio_conformance::home::workspace()).stderr(Stdio::inherit());
    let output = cargo.output().map_err(|e| format!("cargo build: {e}"))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(|line| {
        let message: Json = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    programs.next_back().filter(|_| output.status.success()).ok_or_else(|| "cargo build failed".into())
}

/// The last number that stands before `tokens/s`, `tokens per second`, `tok/s` or `t/s`.
pub fn rate(text: &str) -> Option<f64> {
    let units = ["tokens/s", "tokens per second", "tok/s", "t/s"];
    let ends = units.iter().flat_map(|unit| text.match_indices(unit).map(|(at, _)| at));
    let numbers = ends.filter_map(|end| {
        let word = text.get(..end)?.trim_end().rsplit(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
        Some((end, word.parse().ok()?))
    });
    numbers.max_by_key(|&(end, _)| end).map(|(_, number)| number)
}

/// The middle value, or the mean of the two in the middle. Not of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_found() {
        assert_eq!(rate("prompt 9 tokens/s\nload 1 s\n0.5685 tokens/s\n"), Some(0.5685));
        let timing = "eval time = 14070.00 ms / 8 runs ( 1758.75 ms per token, 0.57 tokens per second)";
        assert_eq!(rate(timing), Some(0.57));
        assert_eq!(rate("tg8: 12.5 t/s"), Some(12.5));
        assert_eq!((rate("8 tokens"), rate("tokens/s")), (None, None));
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}
