//! Commands: a file each, and its module and what it is called here.

mod apply;
mod bench;
mod chat;
mod completions;
mod convert;
#[cfg(feature = "grain")]
mod demo;
mod eval;
mod export;
mod inspect;
mod logits;
mod man;
mod models;
mod route;
mod run;
mod tokenize;
mod types;
mod verify;

use crate::args::Context;

macro_rules! commands {
    ($($(#[doc = $about:literal])+ $(#[cfg($when:meta)])? $(#[command($($option:tt)*)])? $module:ident $name:ident,)*) => {
        /// What fonio is asked to do.
        #[derive(clap::Subcommand)]
        pub enum Command {
            $($(#[doc = $about])+ $(#[cfg($when)])? $(#[command($($option)*)])? $name($module::Arguments),)*
        }

        impl Command {
            /// Does it.
            pub fn run(self, context: &Context) -> anyhow::Result<()> {
                match self {
                    $($(#[cfg($when)])? Command::$name(arguments) => arguments.run(context),)*
                }
            }
        }
    };
}

commands! {
    /// See all of it at work, on a tiny embedded model
    #[cfg(feature = "grain")]
    demo Demo,
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
    /// Rank and select the shards of a CAWSF file for a prompt
    route Route,
    /// Multiply a matrix of a CAWSF file with a vector, straight from its shards
    apply Apply,
    /// Write the dense matrices of a file: a folder, a .gguf file, or one matrix
    #[command(visible_alias = "export-gguf")]
    export Export,
    /// List the architectures that fonio knows
    models Models,
    /// List the types of weights and the recipes that fonio knows
    types Types,
    /// Write completions for a shell
    completions Completions,
    /// Write the manual as man pages
    man Man,
}
