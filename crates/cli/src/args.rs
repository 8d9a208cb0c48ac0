//! Arguments that several commands share, and what they mean.

use crate::error::usage;
use crate::output;
use crate::residency::ResidencyArgs;
use clap::{Args, ValueEnum};
use fonio_checkpoint::Resumed;
use fonio_codec::{DType, list};
use fonio_engine::{CacheTypes, Engine, Mode, Options, Routed, SamplerOptions};
use fonio_model::source::Source;
use fonio_simd::Isa;
use std::io::IsTerminal;
use std::path::PathBuf;

/// When output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If stderr is a terminal and NO_COLOR is not set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Arguments of every command.
#[derive(Args)]
pub struct Global {
    /// No progress and no notes on stderr, only errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// More on stderr; for run and chat, the figures of --stats
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Colours on stderr
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
}

/// What every command knows.
pub struct Context {
    /// Nothing but errors on stderr.
    pub quiet: bool,
    /// More on stderr.
    pub verbose: bool,
    /// Whether stderr is coloured.
    pub color: bool,
    /// Instructions that computations use.
    pub isa: Isa,
}

impl Global {
    /// Looks at the arguments and the environment.
    pub fn context(&self) -> anyhow::Result<Context> {
        let color = match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
                !unwanted && std::io::stderr().is_terminal()
            }
        };
        Ok(Context { quiet: self.quiet, verbose: self.verbose, color, isa: isa()? })
    }
}

/// The instruction set of `FONIO_CPU`, or the best.
fn isa() -> anyhow::Result<Isa> {
    let Some(name) = std::env::var_os("FONIO_CPU").filter(|v| !v.is_empty()) else {
        return Ok(Isa::detect());
    };
    let name = name.to_string_lossy();
    if let Some(isa) = Isa::named(&name) {
        return Ok(isa);
    }
    let known: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    Err(usage(format!("FONIO_CPU={name}: this CPU has {}", known.join(", "))).into())
}

impl Context {
    /// Says what had to be assumed about a model.
    pub fn assumed(&self, source: &Source) {
        if let Some(words) = source.assumed() {
            self.note(format_args!("note: {words}"));
        }
    }

    /// Says what of an output was there already.
    pub fn resumed(&self, resumed: Resumed) {
        if let Some(note) = resumed.note {
            self.note(format_args!("note: {note}"));
        }
        if resumed.bytes > 0 {
            let bytes = output::bytes(resumed.bytes);
            self.note(format_args!("note: gone on after {bytes} that an earlier conversion had written"));
        }
    }

    /// Says something on stderr, unless quiet is wanted.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// Threads.
#[derive(Args, Clone)]
pub struct ThreadArgs {
    /// Threads that compute; 0 for as many as the machine has
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

impl ThreadArgs {
    /// How many threads.
    pub fn count(&self) -> anyhow::Result<usize> {
        threads(self.threads)
    }
}

/// How many threads `wanted` means.
pub fn threads(wanted: usize) -> anyhow::Result<usize> {
    match wanted {
        0 => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        1..=1024 => Ok(wanted),
        _ => Err(usage(format!("--threads {wanted}: at most 1024")).into()),
    }
}

/// A model and how it is opened.
#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A file, a Hugging Face folder, or a name from a local store
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// How a model is opened.
#[derive(Args, Clone)]
pub struct LoadArgs {
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// Positions that a sequence has place for [default: the model's own]
    #[arg(short = 'c', long = "ctx", alias = "ctx-size", value_name = "N")]
    pub context: Option<usize>,
    #[command(flatten)]
    pub residency: ResidencyArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Most tokens that are guessed at once.
    #[arg(skip)]
    pub draft_max: usize,
}

/// What a cache of keys and values is kept in.
#[derive(Args, Clone)]
pub struct CacheArgs {
    /// Type of cached keys
    #[arg(long, value_name = "TYPE", default_value = "F16", value_parser = cache_type)]
    cache_type_k: DType,
    /// Type of cached values
    #[arg(long, value_name = "TYPE", default_value = "F16", value_parser = cache_type)]
    cache_type_v: DType,
}

impl CacheArgs {
    /// Both types.
    pub fn types(&self) -> CacheTypes {
        CacheTypes { keys: self.cache_type_k, values: self.cache_type_v }
    }
}

fn cache_type(name: &str) -> Result<DType, String> {
    match DType::named(name) {
        Some(dtype) if dtype.can_quantize() => Ok(dtype),
        Some(dtype) => Err(format!("{dtype} can be read but not made")),
        None => {
            let known: Vec<&str> = list::ALL.iter().filter(|t| t.can_quantize()).map(|t| t.name()).collect();
            Err(format!("types are {}", known.join(", ")))
        }
    }
}

impl LoadArgs {
    /// Opens a model with these arguments.
    pub fn open(&self, model: &std::path::Path, context: &Context) -> anyhow::Result<Engine> {
        let mut engine = self.prepare(model, context, None)?;
        self.say(context, &engine);
        engine.start()?;
        Ok(engine)
    }

    /// As [`LoadArgs::open`], without reading what will be held in memory; with the residuals of some weights alone.
    pub fn prepare(
        &self,
        model: &std::path::Path,
        context: &Context,
        routed: Option<Routed>,
    ) -> anyhow::Result<Engine> {
        let path = crate::model_path::resolve(model)?;
        if self.context == Some(0) {
            return Err(usage("--ctx 0: a sequence needs place for tokens").into());
        }
        let options = Options {
            threads: self.threads.count()?,
            isa: context.isa,
            residency: self.residency.wanted(),
            routed,
            cache: self.cache.types(),
            context: self.context,
            draft_max: self.draft_max,
            ..Options::default()
        };
        let engine = Engine::prepare(&path, options)?;
        context.assumed(engine.source());
        let own = engine.spec().context_len;
        if self.context.is_some_and(|wanted| wanted > own) {
            context.note(format_args!(
                "note: the model was trained for {own} positions; beyond them it may talk nonsense"
            ));
        }
        Ok(engine)
    }
}

impl LoadArgs {
    /// Says what was chosen where nobody said it.
    pub fn say(&self, context: &Context, engine: &Engine) {
        let (plan, wanted) = (engine.plan(), self.residency.wanted());
        if plan.mode == Mode::Stream && wanted.mode.is_none() && wanted.budget.is_none() {
            context.note(format_args!(
                "note: the model does not fit into memory and is read from the file for every token"
            ));
        }
        if self.context.is_none() && plan.context < engine.spec().context_len {
            context.note(format_args!(
                "note: the budget has place for {} positions; -c says another number",
                plan.context
            ));
        }
    }
}

impl ModelArgs {
    /// Opens the model.
    pub fn open(&self, context: &Context) -> anyhow::Result<Engine> {
        self.load.open(&self.model, context)
    }
}

/// How tokens are picked and when that ends.
#[derive(Args, Clone)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(
        short = 'n',
        long,
        visible_alias = "tokens",
        alias = "n-predict",
        value_name = "N",
        default_value_t = 256
    )]
    pub max_tokens: usize,
    /// How far from the likeliest token a draw may go; 0 always takes the likeliest
    #[arg(short, long, alias = "temp", value_name = "T", default_value_t = 0.7)]
    pub temperature: f32,
    /// Draw among this many likeliest tokens; 0 for all
    #[arg(short = 'k', long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    pub top_p: f32,
    /// Draw among tokens at least this times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Make recent tokens less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// How many tokens are recent
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub repeat_last_n: usize,
    /// Where the draws begin; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// End at this text, which is not shown; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on when the model says that it is done
    #[arg(long)]
    pub ignore_eos: bool,
}

impl SamplingArgs {
    /// The sampler's options, checked.
    pub fn options(&self) -> anyhow::Result<SamplerOptions> {
        let options = SamplerOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
        };
        options.check().map_err(usage)?;
        Ok(options)
    }
}
