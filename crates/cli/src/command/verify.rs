//! `fonio verify`: whether files are sound.

use crate::args::{Context, ThreadArgs};
use crate::error::{NOT_SOUND, one_line, silent};
use crate::progress::Progress;
use crate::{model_path, output};
use fonio_checkpoint::{Checksums, Error as FileError};
use fonio_quantize::Error;
use fonio_quantize::verify::{self, Report};
use serde_json::{Value as Json, json};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// Files or folders
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let threads = self.threads.count()?;
        let mut all = Vec::new();
        let mut sound = true;
        for file in &self.files {
            let path = model_path::resolve(file)?;
            let progress = Progress::new(context, "verify", 0);
            let report =
                verify::run(&path, threads, context.isa, &|done, total| progress.at_of(done, total, ""));
            drop(progress);
            let found = match report {
                // What the operating system refuses says nothing about the file.
                Err(Error::Checkpoint(FileError::Io { file, source })) if source.kind() != ErrorKind::UnexpectedEof => {
                    return Err(anyhow::Error::new(source).context(file.display().to_string()));
                }
                Err(e @ Error::Checkpoint(FileError::Refused { .. })) => return Err(e.into()),
                // What cannot be read at all is as unsound as what has wrong values in it.
                other => other.map_err(|e| e.to_string()),
            };
            sound &= found.as_ref().is_ok_and(|r| r.problems.is_empty());
            if self.json {
                all.push(as_json(&path, &found));
            } else {
                output::write(as_text(&path, &found))?;
            }
        }
        if self.json {
            output::json(&json!({ "sound": sound, "files": all }))?;
        }
        if sound { Ok(()) } else { Err(silent(NOT_SOUND).into()) }
    }
}

fn as_text(path: &Path, found: &Result<Report, String>) -> String {
    let path = path.display();
    match found {
        Err(reason) => format!("{path}: not sound\n  {}\n", one_line(reason)),
        Ok(report) => {
            let model = report.architecture.map_or("no model".into(), |a| format!("a {a} model"));
            let checksums = match report.checksums {
                Checksums::None => "no checksums in this container".into(),
                Checksums::Valid(n) => format!("{n} checksums are right"),
            };
            let verdict = if report.problems.is_empty() { "sound" } else { "not sound" };
            let mut text = format!(
                "{path}: {verdict}: {}, {model}, {} tensors with {} values looked at, {checksums}\n",
                report.container, report.tensors, report.values
            );
            for problem in &report.problems {
                text += &format!("  {}\n", one_line(problem));
            }
            text
        }
    }
}

fn as_json(path: &Path, found: &Result<Report, String>) -> Json {
    match found {
        Err(reason) => json!({ "path": path.display().to_string(), "sound": false, "problems": [reason] }),
        Ok(report) => json!({
            "path": path.display().to_string(),
            "sound": report.problems.is_empty(),
            "container": report.container,
            "architecture": report.architecture,
            "tensors": report.tensors,
            "values": report.values,
            "checksums": match report.checksums { Checksums::None => None, Checksums::Valid(n) => Some(n) },
            "problems": report.problems,
        }),
    }
}
