//! `fonio run`: a text and what a model makes of it.

use super::chat;
use super::tokenize::read_text;
use crate::args::{Context, LoadArgs, ModelArgs, SamplingArgs};
use crate::chat_prompt::ChatPrompt;
use crate::error::usage;
use crate::speculate::{self, SpeculateArgs};
use crate::{output, residency};
use fonio_checkpoint::output::AtomicFile;
use fonio_engine::{Engine, Finish, Generated, Limits, Mode, Sampler, Session};
use fonio_text::Message;
use serde_json::{Value as Json, json};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue. Without it and --file: a chat on a terminal, else the text comes from stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the text from a file
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Take the text as a question in the model's chat template, not as a beginning
    #[arg(long)]
    chat: bool,
    /// Instructions that a chat begins with; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Keep what the model computed of the text in FILE, and take it from there if it is there
    #[arg(long, value_name = "FILE", alias = "prompt-cache")]
    session: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    /// Of a CAWSF file, keep the K residuals that are worth most for the text in memory; see --route-rest
    #[arg(long, value_name = "K")]
    route: Option<usize>,
    /// What becomes of the residuals that --route does not keep
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Rest::Stream, requires = "route")]
    route_rest: Rest,
    /// Say how memory would be spent, and run nothing
    #[arg(long)]
    plan: bool,
    /// Tokens per second and more, on stderr
    #[arg(long)]
    stats: bool,
    /// One JSON document on stdout, after the end
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let options = self.sampling.options()?;
        let interactive = std::io::stdin().is_terminal() && !self.json;
        if self.prompt.is_none() && self.file.is_none() && interactive && !self.plan {
            let (sampling, speculate) = (&self.sampling, &self.speculate);
            return chat::talk(context, &self.model, sampling, speculate, self.system, self.stats);
        }
        let (draft, load) = self.speculate.prepare(&self.model.load, context)?;
        if self.plan && self.prompt.is_none() && self.file.is_none() {
            return residency::print(self.prepare(context, &load, None)?.plan(), self.json);
        }
        let text = match (&self.prompt, &self.file) {
            (Some(text), _) => text.clone(),
            (None, file) => read_text(file.as_deref())?,
        };
        let mut engine = self.prepare(context, &load, Some(&text))?;
        let mut stop = self.sampling.stop.clone();
        let prompt = self.encode(context, &engine, &text, &mut stop)?;
        if prompt.is_empty() {
            return Err(usage("the text is empty, and this model has no token to begin with")
                .hint("give some text with -p")
                .into());
        }
        if engine.plan().mode == Mode::Stream && self.model.load.context.is_none() {
            engine.shorten(prompt.len().saturating_add(self.sampling.max_tokens))?;
        }
        if self.plan {
            return residency::print(engine.plan(), self.json);
        }
        load.say(context, &engine);
        let draft = draft.map(started).transpose()?;
        let mut speculation = self.speculate.begin(draft.as_ref(), &engine)?;
        engine.start()?;
        let limits =
            Limits { max_tokens: self.sampling.max_tokens, stop, ignore_eos: self.sampling.ignore_eos };
        let mut session = engine.session()?;
        if let Some(file) = &self.session {
            saved(context, &mut session, file, &prompt)?;
        }
        let mut all = String::new();
        let mut failed = None;
        let mut sampler = Sampler::new(options);
        let done = session.generate_with(&prompt, &mut sampler, &limits, speculation.as_mut(), |piece| {
            if self.json {
                all.push_str(piece);
                return ControlFlow::Continue(());
            }
            match output::write(piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    failed = Some(e);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        if self.json {
            output::json(&as_json(&engine, &done, &all))?;
        } else {
            output::write("\n")?;
        }
        if done.finish == Finish::Context {
            context.note(format_args!("note: the context of {} tokens is full", engine.context_len()));
        }
        if self.stats || context.verbose {
            eprintln!("{}", stats(&engine, &done, session.cache_bytes()));
            residency::stats(&engine).into_iter().for_each(|line| eprintln!("{line}"));
        }
        Ok(())
    }
}

/// What becomes of residuals that are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Rest {
    /// They are read for every token: the text is the same
    Stream,
    /// They are left out: less is read, and the text is another
    LeaveOut,
}

impl Arguments {
    /// The text as tokens; what ends an answer in a chat is added to `stop`.
    fn encode(
        &self,
        context: &Context,
        engine: &Engine,
        text: &str,
        stop: &mut Vec<String>,
    ) -> anyhow::Result<Vec<u32>> {
        if !self.chat && self.system.is_none() {
            return Ok(engine.tokenizer()?.encode(text, true, false)?);
        }
        let chat = ChatPrompt::new(engine)?;
        if !chat.has_template() {
            context.note("note: the model has no chat template; roles are written out");
        }
        stop.extend(chat.stops().iter().map(|&s| s.to_owned()));
        let system = self.system.as_deref().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
        chat.encode(engine, &messages)
    }

    /// The model with what `text` makes of it.
    fn prepare(&self, context: &Context, load: &LoadArgs, text: Option<&str>) -> anyhow::Result<Engine> {
        let model = &self.model.model;
        let Some(k) = self.route else { return load.prepare(model, context, None) };
        let text = text.ok_or_else(|| usage("--route chooses by a text: give one with -p or -f"))?;
        let routed = super::route::routed(model, text, k, self.route_rest == Rest::LeaveOut)?;
        let all = routed.kept.len();
        let engine = load.prepare(model, context, Some(routed))?;
        let left_out = engine.model().left_out();
        if self.route_rest == Rest::LeaveOut {
            let bytes: u64 = left_out.iter().map(|(_, n)| n).sum();
            let n = left_out.len();
            let size = output::bytes(bytes);
            context.note(format_args!("note: {all} residuals are kept, {n} are left out ({size})"));
            if context.verbose {
                left_out.iter().for_each(|(name, n)| eprintln!("left out: {name} ({})", output::bytes(*n)));
            }
        }
        Ok(engine)
    }
}

/// A model whose weights begin to be kept as planned.
pub fn started(mut engine: Engine) -> anyhow::Result<Engine> {
    engine.start()?;
    Ok(engine)
}

/// Makes the session hold the prompt: with the help of the file, if it is of this model, and leaving it up to date.
fn saved(context: &Context, session: &mut Session<'_>, file: &Path, prompt: &[u32]) -> anyhow::Result<()> {
    match std::fs::read(file) {
        Ok(bytes) => {
            if let Err(e) = session.restore(&bytes) {
                let reason = e.to_string();
                return Err(usage(format!("{}: {reason}", file.display()))
                    .hint("give another --session, or remove the file")
                    .into());
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(anyhow::Error::from(e).context(file.display().to_string())),
    }
    let before = session.tokens().to_vec();
    session.sync(prompt)?;
    if before == prompt {
        context.note(format_args!("note: {} tokens taken from {}", prompt.len(), file.display()));
        return Ok(());
    }
    let mut out = AtomicFile::create(file, true)?;
    out.write(&session.save()?)?;
    out.commit()?;
    Ok(())
}

/// A generation in figures.
pub fn stats(engine: &Engine, done: &Generated, cache_bytes: usize) -> String {
    let rate = |n: usize, time: std::time::Duration| n as f64 / time.as_secs_f64().max(1e-9);
    format!(
        "prompt: {} tokens in {:.2} s ({:.1} tokens/s); generated: {} tokens in {:.2} s ({:.1} tokens/s); end: {}; \
         cache: {}; {} threads, {}{}",
        done.prompt_tokens,
        done.prompt_time.as_secs_f64(),
        rate(done.prompt_tokens, done.prompt_time),
        done.tokens,
        done.time.as_secs_f64(),
        rate(done.tokens, done.time),
        finish(done.finish),
        output::bytes(cache_bytes as u64),
        engine.options().threads,
        engine.options().isa.name(),
        speculate::stats(done),
    )
}

/// Why a generation ended, in a word.
fn finish(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfText => "end_of_text",
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
        Finish::Cancelled => "cancelled",
    }
}

fn as_json(engine: &Engine, done: &Generated, text: &str) -> Json {
    let read = engine.stats();
    json!({
        "text": text,
        "finish": finish(done.finish),
        "prompt_tokens": done.prompt_tokens,
        "prompt_seconds": done.prompt_time.as_secs_f64(),
        "tokens": done.tokens,
        "seconds": done.time.as_secs_f64(),
        "speculation": speculate::as_json(done),
        "residency": engine.plan().mode.name(),
        "read": {
            "bytes": read.bytes,
            "seconds": read.reading.as_secs_f64(),
            "waited_seconds": read.waiting.as_secs_f64(),
            "expert_hits": read.hits,
            "expert_misses": read.misses,
        },
    })
}
