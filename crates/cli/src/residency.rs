//! Arguments that say where weights are kept, and the plan as people see it.

use crate::error::failed;
use crate::output;
use clap::{Args, ValueEnum};
use fonio_engine::{Budget, Engine, Mode, Part, Plan, Residency, available_bytes};
use serde_json::{Value as Json, json};

/// Where weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kept {
    /// In the file, mapped into memory
    Mmap,
    /// In memory, read at the start
    Resident,
    /// Read from the file for every token, but for what the budget has place for
    Stream,
}

/// Where weights are kept and how much memory may be used.
#[derive(Args, Clone)]
pub struct ResidencyArgs {
    /// Where weights are kept [default: mmap if the model fits into memory or the budget, else stream]
    #[arg(long, value_enum, value_name = "HOW")]
    residency: Option<Kept>,
    /// The same as --residency resident
    #[arg(long, conflicts_with = "residency")]
    no_mmap: bool,
    /// Memory for weights, cache and activations together: 512MiB, 2GB, 50% of what is free, or bytes; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = budget)]
    budget: Option<Budget>,
}

impl ResidencyArgs {
    /// What they ask for.
    pub fn wanted(&self) -> Residency {
        let mode = self.residency.map(|kept| match kept {
            Kept::Mmap => Mode::Mmap,
            Kept::Resident => Mode::Resident,
            Kept::Stream => Mode::Stream,
        });
        let mode = if self.no_mmap { Some(Mode::Resident) } else { mode };
        Residency { mode, budget: self.budget.filter(|b| *b != Budget::Bytes(0)) }
    }

    /// Leaves `bytes` of a budget to something else.
    pub fn leave(&mut self, bytes: u64) -> anyhow::Result<()> {
        let limit = match self.wanted().budget {
            None => return Ok(()),
            Some(Budget::Bytes(limit)) => limit,
            Some(Budget::Part(part)) => match available_bytes() {
                Some(free) => (free as f64 * part) as u64,
                // That a part cannot be had is said where the model is opened.
                None => return Ok(()),
            },
        };
        let left = limit.checked_sub(bytes).filter(|&left| left > 0).ok_or_else(|| {
            let (limit, bytes) = (output::bytes(limit), output::bytes(bytes));
            failed(format!("the budget is {limit}, the draft model alone needs {bytes}"))
        })?;
        self.budget = Some(Budget::Bytes(left));
        Ok(())
    }
}

fn budget(text: &str) -> Result<Budget, String> {
    if text == "0" {
        return Ok(Budget::Bytes(0));
    }
    let Some(percent) = text.strip_suffix('%') else { return output::size(text).map(Budget::Bytes) };
    match percent.trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Budget::Part(percent / 100.0)),
        _ => Err("a part is more than 0% and at most 100%".into()),
    }
}

/// The plan as lines.
pub fn show(plan: &Plan) -> String {
    let bytes = output::bytes;
    let mut lines = vec![format!("weights: {}, {}", bytes(plan.weight_bytes), plan.mode.name())];
    if let Some(budget) = plan.budget_bytes {
        lines[0] += &format!(", budget {} (at least {})", bytes(budget), bytes(plan.least_bytes));
    }
    lines.push(format!("program: {}", bytes(plan.program_bytes)));
    lines.push(format!("cache: {} for {} positions", bytes(plan.cache_bytes), plan.context));
    lines.push(format!("activations: {} for {} tokens at once", bytes(plan.activation_bytes), plan.batch));
    if plan.mode == Mode::Mmap {
        return lines.join("\n");
    }
    let held: u64 = plan.weights.held.iter().map(|p| p.nbytes).sum();
    lines.push(format!("held: {} ({})", bytes(held), names(&plan.weights, true)));
    if plan.mode == Mode::Stream {
        let (n, size) = plan.weights.frames;
        lines.push(format!(
            "streamed: {} for each token ({}) through {n} places of {}",
            bytes(plan.weights.streamed_bytes()),
            names(&plan.weights, false),
            bytes(size)
        ));
        let (n, size) = plan.weights.expert_frames;
        if n > 0 {
            let all = plan.weights.experts.len();
            lines.push(format!("experts: {all} of {}, {n} of them kept", bytes(size)));
        }
        lines.push(format!("together: {}", bytes(plan.nbytes())));
    }
    lines.join("\n")
}

/// Kinds of parts and how many of each.
fn names(plan: &fonio_engine::WeightPlan, held: bool) -> String {
    let parts = if held { &plan.held } else { &plan.streamed };
    let count = |is: fn(&Part) -> bool| parts.iter().filter(|p| is(&p.part)).count();
    let kinds = [
        ("layers", count(|p| matches!(p, Part::Layer(_)))),
        ("experts", count(|p| matches!(p, Part::Expert { .. }))),
        ("slices of the head", count(|p| matches!(p, Part::Head(_)))),
    ];
    let named: Vec<String> =
        kinds.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
    if named.is_empty() { "nothing".into() } else { named.join(", ") }
}

/// The plan as JSON; sizes are bytes.
pub fn as_json(plan: &Plan) -> Json {
    let parts = |parts: &[fonio_engine::SizedPart]| -> Vec<Json> {
        parts.iter().map(|p| json!({ "part": p.part.to_string(), "bytes": p.nbytes })).collect()
    };
    json!({
        "residency": plan.mode.name(),
        "budget": plan.budget_bytes,
        "least_budget": plan.least_bytes,
        "program": plan.program_bytes,
        "cache": plan.cache_bytes,
        "activations": plan.activation_bytes,
        "weights": plan.weight_bytes,
        "context": plan.context,
        "batch": plan.batch,
        "held": parts(&plan.weights.held),
        "streamed": parts(&plan.weights.streamed),
        "streamed_per_token": plan.weights.streamed_bytes(),
        "places": { "count": plan.weights.frames.0, "bytes": plan.weights.frames.1 },
        "experts": plan.weights.experts.len(),
        "expert_places": { "count": plan.weights.expert_frames.0, "bytes": plan.weights.expert_frames.1 },
    })
}

/// Prints the plan.
pub fn print(plan: &Plan, as_json_document: bool) -> anyhow::Result<()> {
    if as_json_document { output::json(&as_json(plan)) } else { output::write(&(show(plan) + "\n")) }
}

/// What reading took, in figures; nothing if nothing was read.
pub fn stats(engine: &Engine) -> Option<String> {
    let stats = engine.stats();
    if engine.plan().mode != Mode::Stream {
        return None;
    }
    let seconds = stats.reading.as_secs_f64();
    let mut text = format!(
        "read: {} in {seconds:.2} s ({}/s{}), waited {:.2} s",
        output::bytes(stats.bytes),
        output::bytes((stats.bytes as f64 / seconds.max(1e-9)) as u64),
        if engine.model().weights().is_direct() { "" } else { ", through the page cache" },
        stats.waiting.as_secs_f64(),
    );
    if stats.hits + stats.misses > 0 {
        let rate = 100.0 * stats.hits as f64 / (stats.hits + stats.misses) as f64;
        text += &format!("; experts: {} hits, {} misses ({rate:.1} %)", stats.hits, stats.misses);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared() {
        let mut args = ResidencyArgs { residency: None, no_mmap: false, budget: Some(Budget::Bytes(1000)) };
        args.leave(400).unwrap();
        assert_eq!(args.wanted().budget, Some(Budget::Bytes(600)));
        assert!(args.leave(600).is_err());
        for unlimited in [None, Some(Budget::Bytes(0))] {
            args.budget = unlimited;
            args.leave(600).unwrap();
            assert_eq!(args.wanted().budget, None);
        }
    }

    #[test]
    fn budgets_are_sizes_or_parts() {
        assert_eq!(budget("600MiB"), Ok(Budget::Bytes(600 << 20)));
        assert_eq!(budget("2147483648"), Ok(Budget::Bytes(1 << 31)));
        assert_eq!(budget("0"), Ok(Budget::Bytes(0)));
        assert_eq!(budget("50%"), Ok(Budget::Part(0.5)));
        for bad in ["0%", "101%", "x%", "-5", "", "NaN%"] {
            assert!(budget(bad).is_err(), "{bad}");
        }
    }
}
