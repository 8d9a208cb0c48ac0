//! `fonio man`: the manual.

use crate::args::Context;
use crate::output;
use anyhow::Context as _;
use clap::CommandFactory;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    /// Write one page for each command into this folder; without it, the main page to stdout
    dir: Option<PathBuf>,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let command = crate::Cli::command();
        let Some(dir) = self.dir else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            return output::write(page);
        };
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        clap_mangen::generate_to(command, &dir).with_context(|| dir.display().to_string())?;
        context.note(format_args!("the manual is in {}", dir.display()));
        Ok(())
    }
}
