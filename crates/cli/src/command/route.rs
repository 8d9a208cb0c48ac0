//! `fonio route`: which shards of a CAWSF file a prompt takes.

use crate::args::Context;
use crate::error::{failed, usage};
use crate::{model_path, output};
use fonio_checkpoint::cawsf::v2::{self, V2};
use fonio_checkpoint::cawsf::{Cawsf, Choice, File, Scope, Shard};
use fonio_engine::Routed;
use fonio_model::source::Source;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// A CAWSF file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The text whose words are compared with the shards' keys
    #[arg(short, long)]
    prompt: String,
    /// Shards at most
    #[arg(short, long, default_value_t = 8)]
    k: usize,
    /// What the shards may cost together, in MiB; one that would pass it is skipped [default: no budget]
    #[arg(long, value_name = "MIB")]
    budget: Option<f64>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        if self.k == 0 {
            return Err(usage("-k 0: that takes no shard").into());
        }
        if let Some(budget) = self.budget.filter(|b| !b.is_finite() || *b < 0.0) {
            return Err(usage(format!("--budget {budget}: a number of MiB")).into());
        }
        let path = model_path::resolve(&self.file)?;
        let budget = self.budget.filter(|b| *b > 0.0);
        let file = match File::open(&path)? {
            File::V1(file) => file,
            File::V2(file) => return self.second(&path, &file, budget),
        };
        // 0 is no budget, as the format's first tool has it.
        let chosen = file.routing()?.select(&self.prompt, self.k, budget);
        let chosen = chosen.into_iter().map(|c| described(&file, c)).collect::<anyhow::Result<Vec<_>>>()?;
        let total: f64 = chosen.iter().map(|(c, ..)| f64::from(c.cost)).sum();
        if self.json {
            let shards: Vec<_> = chosen
                .iter()
                .map(|(choice, shard, scope)| {
                    json!({
                        "shard": choice.shard, "kind": shard.kind.name(), "scope": scope.id, "name": scope.name,
                        "bytes": shard.size, "cost": choice.cost, "cosine": choice.cosine,
                    })
                })
                .collect();
            return output::json(&json!({
                "path": path.display().to_string(),
                "prompt": self.prompt,
                "k": self.k,
                "budget": self.budget,
                "cost": total,
                "shards": shards,
            }));
        }
        let rows: Vec<Vec<String>> = chosen
            .iter()
            .map(|(choice, shard, scope)| {
                vec![
                    choice.shard.to_string(),
                    shard.kind.name().into(),
                    scope.id.to_string(),
                    format!("{:.6}", choice.cosine),
                    format!("{:.6}", choice.cost),
                    scope.name.clone(),
                ]
            })
            .collect();
        let head = ["SHARD", "KIND", "SCOPE", "COSINE", "MIB", "MATRIX"];
        output::write(output::table(&head, &[true, false, true, true, true, false], &rows))?;
        output::line(format_args!("\n{} shards, {total:.6} MiB", chosen.len()))
    }
}

/// Which residuals of a file of version 2 a text takes, to run the model with them.
pub fn routed(model: &Path, text: &str, k: usize, leave_out: bool) -> anyhow::Result<Routed> {
    let path = model_path::resolve(model)?;
    let File::V2(file) = File::open(&path)? else {
        return Err(
            usage(format!("{}: a CAWSF file of version 1 holds no model that runs", path.display())).into()
        );
    };
    let routing = table(&path, &file)?;
    let feature = fonio_quantize::decompose::feature(&Source::open(&path)?, routing, text)?;
    let chosen = routing.select(&feature, k, None);
    let of = |choice: &v2::Choice| {
        let (_, name) = file.matrix_of(file.shards().get(choice.shard as usize)?)?;
        Some(name.to_owned())
    };
    Ok(Routed { kept: chosen.iter().filter_map(of).collect(), leave_out })
}

fn table<'a>(path: &Path, file: &'a V2) -> anyhow::Result<&'a v2::Routing> {
    file.routing().ok_or_else(|| {
        failed(format!("{}: has no routing table", path.display()))
            .hint("`fonio convert` makes one where a calibration text is run and R is not off")
            .into()
    })
}

impl Arguments {
    /// Version 2: what shards are worth follows from the prompt's embeddings.
    fn second(&self, path: &Path, file: &V2, budget: Option<f64>) -> anyhow::Result<()> {
        let routing = table(path, file)?;
        let feature = fonio_quantize::decompose::feature(&Source::open(path)?, routing, &self.prompt)?;
        let chosen = routing.select(&feature, self.k, budget);
        let total: f64 = chosen.iter().map(|c| f64::from(c.cost)).sum();
        let described = |choice: &v2::Choice| {
            let shard = file.shards().get(choice.shard as usize);
            let of = shard.and_then(|s| Some((s, file.matrix_of(s)?)));
            of.ok_or_else(|| failed(format!("there is no shard {}", choice.shard)))
        };
        if self.json {
            let shards = chosen.iter().map(|choice| {
                let (shard, (scope, name)) = described(choice)?;
                Ok(json!({
                    "shard": choice.shard, "kind": shard.kind.name(), "scope": scope, "name": name,
                    "bytes": shard.stored, "cost": choice.cost, "worth": choice.worth, "rate": choice.rate(),
                }))
            });
            return output::json(&json!({
                "path": path.display().to_string(),
                "prompt": self.prompt,
                "k": self.k,
                "budget": self.budget,
                "cost": total,
                "shards": shards.collect::<anyhow::Result<Vec<_>>>()?,
            }));
        }
        let rows = chosen.iter().map(|choice| {
            let (shard, (scope, name)) = described(choice)?;
            Ok(vec![
                choice.shard.to_string(),
                shard.kind.name().into(),
                scope.to_string(),
                format!("{:.6}", choice.worth),
                format!("{:.6}", choice.cost),
                name.to_owned(),
            ])
        });
        let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
        let head = ["SHARD", "KIND", "SCOPE", "WORTH", "MIB", "MATRIX"];
        output::write(output::table(&head, &[true, false, true, true, true, false], &rows))?;
        output::line(format_args!("\n{} shards, {total:.6} MiB", chosen.len()))
    }
}

/// The choice, its shard and its matrix; the container checked that both are there.
fn described(file: &Cawsf, choice: Choice) -> anyhow::Result<(Choice, Shard, &Scope)> {
    let shard = file.shards()?.get(choice.shard as usize).copied();
    let found = shard.and_then(|shard| Some((choice, shard, file.scope(shard.scope)?)));
    found.ok_or_else(|| failed(format!("there is no shard {}", choice.shard)).into())
}
