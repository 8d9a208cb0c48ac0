//! The `fonio` program: a thin layer over the library crates. It reads arguments and the environment, shows progress
//! on stderr and results on stdout, and turns errors into exit codes. Everything else is in the crates below.
#![forbid(unsafe_code)]

mod args;
mod chat_prompt;
mod command;
#[cfg(feature = "grain")]
mod embedded;
mod error;
mod folder_out;
mod interrupt;
mod model_path;
mod ndsq;
mod output;
mod progress;
mod residency;
mod speculate;

use args::Global;
use clap::Parser;
use std::process::ExitCode;

/// From a checkpoint to a small file that runs well on your machine.
#[derive(Parser)]
#[command(name = "fonio", version, max_term_width = 110, propagate_version = true)]
#[command(
    after_help = "MODEL is a file (.gguf, .safetensors), a Hugging Face folder, or a name: of fonio's own \
    store, of the Hugging Face cache (org/name), or of Ollama's store (name:tag).\n\n\
    Exit codes: 0 done, 1 failed, 2 a request that makes no sense, 3 a file that is not sound, 130 interrupted."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = match cli.global.context() {
        Ok(context) => context,
        Err(e) => return error::report(&e, false),
    };
    let done = interrupt::install().and_then(|()| cli.command.run(&context));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => error::report(&e, context.color),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
