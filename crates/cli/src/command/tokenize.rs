//! `fonio tokenize`: text to tokens and back.

use crate::args::Context;
use crate::error::{one_line, usage};
use crate::{model_path, output};
use anyhow::Context as _;
use fonio_model::source::Source;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// A file, a Hugging Face folder, or a name from a local store
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text; without it and without --file, stdin
    text: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["text", "decode"])]
    file: Option<PathBuf>,
    /// Only the ids, with commas between them, as logits --tokens takes them
    #[arg(long)]
    ids: bool,
    /// Leave out what the model wants before and after every text
    #[arg(long)]
    no_special: bool,
    /// Texts of control tokens, such as <|im_start|>, become these tokens
    #[arg(long)]
    parse_special: bool,
    /// Turn these ids into text
    #[arg(long, value_name = "IDS", conflicts_with = "text", value_delimiter = ',')]
    decode: Option<Vec<u32>>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        let tokenizer = Source::open(&model_path::resolve(&self.model)?)?.tokenizer()?;
        if let Some(ids) = &self.decode {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
                return Err(usage(format!("token {id}: the vocabulary has {}", tokenizer.vocab_size())).into());
            }
            let text = tokenizer.decode(ids, self.no_special);
            return if self.json { output::json(&json!({ "text": text, "ids": ids })) } else { output::line(text) };
        }
        let text = match (self.text, &self.file) {
            (Some(text), _) => text,
            (None, file) => read_text(file.as_deref())?,
        };
        let ids = tokenizer.encode(&text, !self.no_special, self.parse_special)?;
        if self.ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            return output::line(ids.join(","));
        }
        let piece = |&id: &u32| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
        if self.json {
            let pieces: Vec<String> = ids.iter().map(piece).collect();
            return output::json(&json!({ "text": text, "ids": ids, "pieces": pieces }));
        }
        let mut out = String::new();
        for id in &ids {
            out += &format!("{id:>8}  {}\n", one_line(&format!("{:?}", piece(id))));
        }
        output::write(out)
    }
}

/// All of a file, or of stdin.
pub fn read_text(file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string()),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("stdin")?;
            Ok(text)
        }
    }
}
