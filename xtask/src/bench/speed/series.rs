//! Figures of repeated runs: medians, spread, and how they compare.

use super::super::common;
use serde_json::{Value as Json, json};

/// What is measured of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Tokens per second.
    Rate,
    /// Seconds of the whole process.
    Wall,
    /// Bytes that it had in memory at most.
    Peak,
}

impl Measure {
    /// As it is called in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Measure::Rate => "tokens_per_second",
            Measure::Wall => "wall_seconds",
            Measure::Peak => "peak_rss_bytes",
        }
    }

    /// As it stands in the table.
    pub fn title(self) -> &'static str {
        match self {
            Measure::Rate => "tokens/s",
            Measure::Wall => "wall, s",
            Measure::Peak => "peak, MiB",
        }
    }

    /// A value in the table's unit, with three digits.
    pub fn show(self, value: f64) -> String {
        let value = if self == Measure::Peak { value / f64::from(1 << 20) } else { value };
        let places = match value {
            100.0.. => 0,
            10.0.. => 1,
            1.0.. => 2,
            _ => 3,
        };
        format!("{value:.places$}")
    }

    /// How many times as good `ours` is as `theirs`.
    pub fn ratio(self, ours: f64, theirs: f64) -> f64 {
        if self == Measure::Rate { ours / theirs } else { theirs / ours }
    }
}

/// The values of one engine's runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle value; none of no runs.
    pub fn median(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| common::median(self.0.clone()))
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Median and spread.
    pub fn show(&self, measure: Measure) -> String {
        let Some(median) = self.median() else { return "–".into() };
        let [median, min, max] = [median, self.min(), self.max()].map(|value| measure.show(value));
        if self.0.len() == 1 { median } else { format!("{median} ({min}–{max})") }
    }

    pub fn json(&self) -> Json {
        let spread = (!self.0.is_empty()).then(|| (self.min(), self.max()));
        json!({
            "median": self.median(),
            "min": spread.map(|(min, _)| min),
            "max": spread.map(|(_, max)| max),
            "values": self.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread() {
        let series = Series(vec![12.0, 10.0, 11.0, 20.0]);
        assert_eq!((series.median(), series.min(), series.max()), (Some(11.5), 10.0, 20.0));
        assert_eq!(series.show(Measure::Rate), "11.5 (10.0–20.0)");
        assert_eq!(Series(vec![0.1234]).show(Measure::Wall), "0.123");
        assert_eq!((Series::default().median(), Series::default().show(Measure::Rate).as_str()), (None, "–"));
        assert_eq!(Series::default().json()["min"], Json::Null);
        assert_eq!(series.json()["median"], 11.5);
    }

    #[test]
    fn more_than_one_is_better_whatever_is_measured() {
        assert_eq!(Measure::Rate.ratio(30.0, 20.0), 1.5);
        assert_eq!(Measure::Wall.ratio(0.1, 0.5), 5.0);
        assert_eq!(Measure::Peak.ratio(100.0, 200.0), 2.0);
    }

    #[test]
    fn units_are_the_tables() {
        assert_eq!(Measure::Peak.show(273.4 * 1_048_576.0), "273");
        assert_eq!(Measure::Rate.show(9.876), "9.88");
    }
}
