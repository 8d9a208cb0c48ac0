//! Commands: a file each, a line each here.

use crate::args::Context;

macro_rules! commands {
    ($($(#[$attribute:meta])* $module:ident $name:ident,)*) => {
        $(mod $module;)*

        /// What fonio is asked to do.
        #[derive(clap::Subcommand)]
        pub enum Command {
            $($(#[$attribute])* $name($module::Arguments),)*
        }

        impl Command {
            /// Does it.
            pub fn run(self, context: &Context) -> anyhow::Result<()> {
                match self {
                    $(Command::$name(arguments) => arguments.run(context),)*
                }
            }
        }
    };
}

commands! {
    /// Convert a model: another container, smaller types
    #[command(visible_alias = "quantize")]
    convert Convert,
    /// Continue a text, or answer one with --chat
    run Run,
    /// Talk with a model
    chat Chat,
    /// Show what is in a model file
    inspect Inspect,
    /// Turn text into tokens, or tokens into text
    tokenize Tokenize,
    /// Check that files are sound
    verify Verify,
    /// Write a model's logits for a sequence of tokens
    logits Logits,
    /// Measure perplexity on a text, and the distance from a reference
    eval Eval,
    /// Measure speed
    bench Bench,
    /// List the architectures that fonio knows
    models Models,
    /// List the types of weights and the recipes that fonio knows
    types Types,
    /// Write completions for a shell
    completions Completions,
    /// Write the manual as man pages
    man Man,
}
