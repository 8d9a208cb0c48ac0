//! Arguments that say how tokens are guessed before they are computed.

use crate::args::{Context, LoadArgs};
use clap::{Args, ValueEnum};
use fonio_engine::{DraftModel, Engine, Generated, Mode, NGrams, Options, Residency, Speculation};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

/// Tokens that are guessed at once where nobody says how many: looking them up costs nothing, computing them does.
const MOST_LOOKED_UP: usize = 16;
const MOST_DRAFTED: usize = 8;
/// Positions of a draft model within a budget, where nobody says how many.
const DRAFT_POSITIONS: usize = 4096;

/// What guesses without a second model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Drafts {
    /// Runs of tokens that were in the text before
    Ngram,
}

/// What guesses, and how much.
#[derive(Args, Clone)]
pub struct SpeculateArgs {
    /// Guess tokens and compute several at once: the same text, and faster where guesses are right
    #[arg(long, value_enum, value_name = "HOW", group = "drafter")]
    speculate: Option<Drafts>,
    /// The same as --speculate ngram
    #[arg(long, group = "drafter")]
    lookup: bool,
    /// As --speculate, with the guesses of a smaller model that has the same vocabulary
    #[arg(long, value_name = "MODEL", group = "drafter")]
    draft: Option<PathBuf>,
    /// Most tokens that are guessed at once [default: 16, with --draft 8]
    #[arg(long, value_name = "N", requires = "drafter", value_parser = clap::value_parser!(u16).range(1..=256))]
    draft_max: Option<u16>,
}

impl SpeculateArgs {
    /// Most tokens that are guessed at once; 0 if none are.
    fn most(&self) -> usize {
        let most = match (&self.draft, self.speculate, self.lookup) {
            (Some(_), ..) => MOST_DRAFTED,
            (None, Some(Drafts::Ngram), _) | (None, None, true) => MOST_LOOKED_UP,
            (None, None, false) => return 0,
        };
        self.draft_max.map_or(most, usize::from)
    }

    /// The draft model, not started yet, and how the model is opened beside it.
    pub fn prepare(&self, load: &LoadArgs, context: &Context) -> anyhow::Result<(Option<Engine>, LoadArgs)> {
        let mut load = LoadArgs { draft_max: self.most(), ..load.clone() };
        let Some(draft) = &self.draft else { return Ok((None, load)) };
        let draft = open(draft, &load, context)?;
        let plan = draft.plan();
        load.residency.leave(plan.nbytes() - plan.program_bytes)?;
        Ok((Some(draft), load))
    }

    /// What guesses for `engine`, if something is to.
    pub fn begin<'a>(
        &self,
        draft: Option<&'a Engine>,
        engine: &Engine,
    ) -> anyhow::Result<Option<Speculation<'a>>> {
        Ok(match (draft, self.most()) {
            (_, 0) => None,
            (Some(draft), most) => Some(Speculation::new(DraftModel::new(draft, engine)?, most)),
            (None, most) => Some(Speculation::new(NGrams::new(), most)),
        })
    }
}

/// A draft model, with the threads and cache of the model. A budget is only kept if its weights are memory that can be
/// counted.
fn open(model: &Path, load: &LoadArgs, context: &Context) -> anyhow::Result<Engine> {
    let limited = load.residency.wanted().budget.is_some();
    let options = Options {
        threads: load.threads.count()?,
        isa: context.isa,
        residency: Residency { mode: limited.then_some(Mode::Resident), budget: None },
        cache: load.cache.types(),
        ..Options::default()
    };
    let mut draft = Engine::prepare(&crate::model_path::resolve(model)?, options)?;
    context.assumed(draft.source());
    // Beyond the positions that it was trained for a model guesses badly, if at all.
    let most = load.context.or(limited.then_some(DRAFT_POSITIONS));
    most.map_or(Ok(()), |most| draft.shorten(most))?;
    Ok(draft)
}

/// What came of guesses, behind other figures.
pub fn stats(done: &Generated) -> String {
    if done.proposed == 0 {
        return String::new();
    }
    let share = 100.0 * done.accepted as f64 / done.proposed as f64;
    format!("; guessed: {} tokens, {} accepted ({share:.1} %)", done.proposed, done.accepted)
}

/// The same as JSON.
pub fn as_json(done: &Generated) -> Json {
    json!({ "proposed": done.proposed, "accepted": done.accepted })
}
