//! `fonio models`: the architectures.

use crate::args::Context;
use crate::output;
use fonio_checkpoint::list as containers;
use fonio_model::arch::{self, Architecture};
use serde_json::json;

#[derive(clap::Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// As the table of README.md
    #[arg(long)]
    markdown: bool,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        if self.json {
            let written = containers::ALL.iter().filter(|c| c.create.is_some()).map(|c| c.name);
            let written: Vec<&str> = written.collect();
            let list: Vec<_> = arch::ALL
                .iter()
                .map(|a| {
                    json!({
                        "name": a.name, "model_types": a.model_types, "models": a.models, "runs": true,
                        "converts_to": written, "without_config": a.guess.is_some(),
                        "llama_cpp": a.llama_cpp,
                    })
                })
                .collect();
            return output::json(&json!({ "architectures": list }));
        }
        if self.markdown {
            return output::write(markdown());
        }
        let rows: Vec<Vec<String>> = arch::ALL
            .iter()
            .map(|a| vec![a.name.into(), a.model_types.join(", "), notes(a), a.models.into()])
            .collect();
        let head = ["ARCHITECTURE", "MODEL_TYPE", "NOTES", "MODELS"];
        let text = output::table(&head, &[false; 4], &rows);
        output::write(
            text + "\nAll run and convert between GGUF and Hugging Face folders, both ways.\n\
                    no config: recognized by its tensors alone; fonio only: llama.cpp does not know it.\n",
        )
    }
}

fn notes(a: &Architecture) -> String {
    let notes = [("no config", a.guess.is_some()), ("fonio only", !a.llama_cpp)];
    notes.iter().filter(|(_, yes)| *yes).map(|(text, _)| *text).collect::<Vec<_>>().join(", ")
}

/// The table that README.md shows.
fn markdown() -> String {
    let mut text = String::from(
        "| models | GGUF | Hugging Face | without config.json | runs in llama.cpp |\n|---|---|---|---|---|\n",
    );
    for a in arch::ALL {
        let yes = |yes: bool| if yes { "yes" } else { "" };
        let types: Vec<String> = a.model_types.iter().map(|t| format!("`{t}`")).collect();
        let (types, guess, there) = (types.join(", "), yes(a.guess.is_some()), yes(a.llama_cpp));
        text += &format!("| {} | `{}` | {types} | {guess} | {there} |\n", a.models, a.name);
    }
    text
}
