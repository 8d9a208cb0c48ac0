//! `fonio eval`: perplexity, and the distance from a reference.

use crate::args::{Context, ModelArgs};
use crate::output;
use crate::progress::Progress;
use anyhow::Context as _;
use fonio_quantize::eval::{self, Estimate, Evaluation};
use serde_json::{Value as Json, json};
use std::path::PathBuf;

/// Tokens of a window, as llama-perplexity has it.
const WINDOW: usize = 512;

#[derive(clap::Args)]
pub struct Arguments {
    /// The text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Compare the predictions with this model's
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

impl Arguments {
    pub fn run(mut self, context: &Context) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.text).with_context(|| self.text.display().to_string())?;
        // A window is what --ctx says; models with a shorter context get their own.
        let window = self.model.load.context.take();
        let engine = self.model.open(context)?;
        let reference =
            self.reference.as_ref().map(|reference| self.model.load.open(reference, context)).transpose()?;
        let most = engine.context_len().min(reference.as_ref().map_or(usize::MAX, |r| r.context_len()));
        let window = window.unwrap_or(WINDOW.min(most));
        let progress = Progress::new(context, "eval", 0);
        let done = eval::run(&engine, reference.as_ref(), &text, window, &mut |done, all, perplexity| {
            progress.at_of(done as u64, all as u64, &format!("perplexity {perplexity:.3}"));
        })?;
        drop(progress);
        if self.json { output::json(&as_json(&done, window)) } else { output::write(as_text(&done, window)) }
    }
}

fn shown(e: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", e.value, e.error)
}

/// What people read.
pub fn as_text(e: &Evaluation, window: usize) -> String {
    let mut text = format!(
        "perplexity             {} ({} positions, {} windows of {window})\n",
        shown(e.perplexity, 4),
        e.positions,
        e.windows
    );
    if let Some(d) = &e.divergence {
        text += &format!("reference's perplexity {}\n", shown(d.reference_perplexity, 4));
        text += &format!("ln(ratio)              {}\n", shown(d.log_ratio, 6));
        text += &format!("KL divergence          {}\n", shown(d.mean, 6));
        text += &format!("  median {:.6}, 99 % {:.6}, 99.9 % {:.6}, max {:.6}\n", d.median, d.p99, d.p999, d.max);
        let same = Estimate { value: d.same_top.value * 100.0, error: d.same_top.error * 100.0 };
        text += &format!("same likeliest token   {} %\n", shown(same, 3));
    }
    text
}

fn as_json(e: &Evaluation, window: usize) -> Json {
    let estimate = |e: Estimate| json!({ "value": e.value, "error": e.error });
    json!({
        "windows": e.windows,
        "window": window,
        "positions": e.positions,
        "perplexity": estimate(e.perplexity),
        "divergence": e.divergence.as_ref().map(|d| json!({
            "reference_perplexity": estimate(d.reference_perplexity),
            "log_ratio": estimate(d.log_ratio),
            "mean": estimate(d.mean),
            "median": d.median,
            "p99": d.p99,
            "p999": d.p999,
            "max": d.max,
            "same_top": estimate(d.same_top),
        })),
    })
}
