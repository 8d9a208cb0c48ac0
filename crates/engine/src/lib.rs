//! The door to inference: an [`Engine`] is a model with its tokenizer and threads, a [`Session`] one sequence of
//! tokens with its cache, a [`Sampler`] what picks the next one.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod generate;
mod residency;
mod sampler;
mod saved;
mod session;
mod speculate;

pub use fonio_kernel::Kernels;
pub use fonio_model::cache::{CacheTypes, Mark};
pub use fonio_model::{Error, Observer, Routed};
pub use fonio_weights::{Part, Plan as WeightPlan, Sized as SizedPart, Stats};
pub use generate::{Finish, Generated, Limits};
pub use residency::{Budget, Mode, Plan, Residency, available_bytes, resident_bytes};
pub use sampler::{Sampler, SamplerOptions};
pub use session::Session;
pub use speculate::{DraftModel, Drafter, NGrams, Speculation};

use fonio_model::Model;
use fonio_model::source::Source;
use fonio_model::spec::ModelSpec;
use fonio_simd::Isa;
use fonio_text::{ChatTemplate, Tokenizer};
use fonio_weights::Policy;
use std::path::Path;
use std::sync::OnceLock;

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that compute.
    pub threads: usize,
    /// Their instruction set.
    pub isa: Isa,
    /// How weights are kept.
    pub residency: Residency,
    /// Which residuals of weights that are sums are kept, if not all.
    pub routed: Option<Routed>,
    /// Types of the cache.
    pub cache: CacheTypes,
    /// Positions of a session; the model's own context if `None`.
    pub context: Option<usize>,
    /// Tokens that are computed together.
    pub batch: usize,
    /// Most tokens that will be proposed at once in speculative decoding: their logits take memory.
    pub draft_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            isa: Isa::detect(),
            residency: Residency::default(),
            routed: None,
            cache: CacheTypes::default(),
            context: None,
            batch: 512,
            draft_max: 0,
        }
    }
}

/// A model that is ready to run, with its tokenizer.
pub struct Engine {
    source: Source,
    model: Model,
    kernels: Kernels,
    /// The options as they were given, and as the plan has them.
    asked: Options,
    options: Options,
    policy: Policy,
    plan: Plan,
    tokenizer: OnceLock<Tokenizer>,
}

impl Engine {
    /// Opens a model file or a Hugging Face folder.
    pub fn open(path: &Path, options: Options) -> Result<Engine, Error> {
        let mut engine = Engine::prepare(path, options)?;
        engine.start()?;
        Ok(engine)
    }

    /// Opens a model and plans how memory is spent; nothing is read before [`Engine::start`].
    pub fn prepare(path: &Path, mut options: Options) -> Result<Engine, Error> {
        let source = Source::open(path)?;
        let (spec, checkpoint) = (source.spec().clone(), source.checkpoint().clone());
        let model = Model::load_routed(spec, checkpoint, options.routed.clone())?;
        let kernels = Kernels::new(options.threads, options.isa);
        let tokenizer = OnceLock::new();
        if options.residency != Residency::default() {
            // It takes memory that a budget has to count. That it can't be made is said when it is used.
            let _ = source.tokenizer().map(|made| tokenizer.set(made));
        }
        let (policy, plan) = residency::choose(&model, &options)?;
        let asked = options.clone();
        (options.batch, options.context) = (plan.batch, Some(plan.context));
        Ok(Engine { source, model, kernels, asked, options, policy, plan, tokenizer })
    }

    /// Plans anew for a sequence of no more than `context` positions, before [`Engine::start`]: what its cache does not
    /// need, weights may have.
    pub fn shorten(&mut self, context: usize) -> Result<(), Error> {
        let options = Options { context: Some(context.min(self.spec().context_len)), ..self.asked.clone() };
        (self.policy, self.plan) = residency::choose(&self.model, &options)?;
        (self.options.batch, self.options.context) = (self.plan.batch, Some(self.plan.context));
        Ok(())
    }

    /// Begins to keep the weights as planned.
    pub fn start(&mut self) -> Result<(), Error> {
        Ok(self.model.weights_mut().start(self.policy)?)
    }

    /// How memory is spent.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Figures of what was read from files since the start.
    pub fn stats(&self) -> Stats {
        self.model.weights().stats()
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The threads.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The options that it was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The tokenizer, made when it is first asked for.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let made = self.source.tokenizer()?;
        Ok(self.tokenizer.get_or_init(|| made))
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, Error> {
        self.source.chat_template(self.tokenizer()?)
    }

    /// Positions that a session has place for.
    pub fn context_len(&self) -> usize {
        self.options.context.unwrap_or(self.spec().context_len)
    }

    /// A new, empty sequence.
    pub fn session(&self) -> Result<Session<'_>, Error> {
        Session::new(self)
    }
}
