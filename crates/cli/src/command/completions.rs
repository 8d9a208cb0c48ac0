//! `fonio completions`: what a shell needs to complete fonio's arguments.

use crate::args::Context;
use crate::output;
use clap::CommandFactory;

#[derive(clap::Args)]
pub struct Arguments {
    /// The shell
    shell: clap_complete::Shell,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "fonio", &mut text);
        output::write(text)
    }
}
