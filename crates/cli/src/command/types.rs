//! `fonio types`: types of weights, and recipes.

use crate::args::Context;
use crate::output;
use fonio_codec::list;
use fonio_quantize::recipe;
use serde_json::json;

#[derive(clap::Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        if self.json {
            let types: Vec<_> = list::ALL
                .iter()
                .map(|t| {
                    json!({
                        "name": t.name(),
                        "bits_per_weight": t.bits_per_weight(),
                        "block_values": t.block_len(),
                        "block_bytes": t.block_bytes(),
                        "can_quantize": t.can_quantize(),
                    })
                })
                .collect();
            let recipes: Vec<_> =
                recipe::ALL.iter().map(|r| json!({ "name": r.name, "base": r.base.name() })).collect();
            return output::json(&json!({ "types": types, "recipes": recipes }));
        }
        let rows: Vec<Vec<String>> = list::ALL
            .iter()
            .map(|t| {
                let made = if t.can_quantize() { "read, write" } else { "read" };
                let (len, bytes) = (t.block_len().to_string(), t.block_bytes().to_string());
                vec![t.name().into(), format!("{:.4}", t.bits_per_weight()), len, bytes, made.into()]
            })
            .collect();
        let head = ["TYPE", "BITS/WEIGHT", "BLOCK", "BYTES", "CAN"];
        output::write(output::table(&head, &[false, true, true, true, false], &rows))?;
        let names: Vec<&str> = recipe::ALL.iter().map(|r| r.name).collect();
        output::line(format_args!("\nRecipes for convert --quant: {}", names.join(", ")))
    }
}
