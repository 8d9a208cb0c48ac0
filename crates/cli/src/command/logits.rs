//! `fonio logits`: what a model predicts at each of a sequence of tokens, in a safetensors file, for comparison with
//! other implementations.

use crate::args::{Context, ModelArgs};
use crate::error::usage;
use crate::output;
use anyhow::Context as _;
use fonio_checkpoint::{Metadata, TensorPlan, WriteOptions};
use fonio_codec::list;
use fonio_engine::Observer;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// The tokens
    #[arg(long, value_name = "IDS", value_delimiter = ',', required_unless_present = "prompt")]
    tokens: Option<Vec<u32>>,
    /// The tokens of this text, with what the model wants before it
    #[arg(short, long, value_name = "TEXT", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// The file: tensor `logits`, F32 [tokens, vocabulary], and `tokens`, I64 [tokens]
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// Also write `embedding`, `layer.0` …, `final_norm`, each F32 [tokens, width]
    #[arg(long)]
    layers: bool,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Keeps what the layers put out; rows of later batches follow those of earlier ones.
#[derive(Default)]
struct Keep {
    wanted: bool,
    embedding: Vec<f32>,
    layers: Vec<Vec<f32>>,
    final_norm: Vec<f32>,
}

impl Observer for Keep {
    fn embedding(&mut self, x: &[f32]) {
        if self.wanted {
            self.embedding.extend_from_slice(x);
        }
    }
    fn layer(&mut self, index: usize, x: &[f32]) {
        if self.wanted {
            self.layers.resize(self.layers.len().max(index + 1), Vec::new());
            self.layers[index].extend_from_slice(x);
        }
    }
    fn final_norm(&mut self, x: &[f32]) {
        if self.wanted {
            self.final_norm.extend_from_slice(x);
        }
    }
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let engine = self.model.open(context)?;
        let tokens = match (&self.tokens, &self.prompt) {
            (Some(tokens), _) => tokens.clone(),
            (None, prompt) => {
                engine.tokenizer()?.encode(prompt.as_deref().unwrap_or_default(), true, false)?
            }
        };
        let vocab = engine.spec().vocab_size;
        if tokens.is_empty() {
            return Err(usage("no tokens: the text is empty and the model wants none before it").into());
        }
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(usage(format!("token {token}: the model has {vocab}")).into());
        }
        fonio_checkpoint::output::refuse_source(&self.output, engine.source().checkpoint().files())?;
        let mut keep = Keep { wanted: self.layers, ..Keep::default() };
        let mut logits = Vec::new();
        engine.session()?.observe(&tokens, |_, row| logits.extend_from_slice(row), &mut keep)?;

        let n = tokens.len() as u64;
        let mut plans = vec![
            TensorPlan::new("logits", list::F32, [n, vocab as u64]),
            TensorPlan::new("tokens", list::I64, [n]),
        ];
        let mut data =
            vec![floats(&logits), tokens.iter().flat_map(|&t| i64::from(t).to_le_bytes()).collect()];
        if self.layers {
            let layers = keep.layers.iter().enumerate().map(|(i, x)| (format!("layer.{i}"), x));
            let first = std::iter::once(("embedding".to_owned(), &keep.embedding));
            let last = std::iter::once(("final_norm".to_owned(), &keep.final_norm));
            for (name, x) in first.chain(layers).chain(last) {
                plans.push(TensorPlan::new(name, list::F32, [n, x.len() as u64 / n]));
                data.push(floats(x));
            }
        }
        let container =
            fonio_checkpoint::list::named("safetensors").context("safetensors is not built in")?;
        let create = container.create.context("safetensors cannot be written")?;
        let options = WriteOptions { force: self.force, ..WriteOptions::default() };
        let mut writer = create(&self.output, &Metadata::new(), &plans, &options)?;
        for bytes in data {
            writer.append(&bytes)?;
        }
        writer.finish()?;
        if self.json {
            let path = self.output.display().to_string();
            output::json(&json!({ "output": path, "tokens": tokens, "vocab_size": vocab }))?;
        } else {
            context.note(format_args!("{}: logits [{n}, {vocab}]", self.output.display()));
        }
        Ok(())
    }
}

fn floats(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}
