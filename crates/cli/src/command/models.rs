//! `fonio models`: the architectures.

use crate::args::Context;
use crate::output;
use fonio_model::arch;
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
            let list: Vec<_> = arch::ALL
                .iter()
                .map(|a| json!({ "name": a.name, "model_types": a.model_types, "models": a.models }))
                .collect();
            return output::json(&json!({ "architectures": list }));
        }
        let rows: Vec<Vec<String>> =
            arch::ALL.iter().map(|a| vec![a.name.into(), a.model_types.join(", "), a.models.into()]).collect();
        output::write(output::table(&["ARCHITECTURE", "MODEL_TYPE", "MODELS"], &[false; 3], &rows))
    }
}
