//! `fonio chat`: a conversation.
//!
//! Every turn renders the whole conversation with the model's template; the session keeps the cache of what the new
//! tokens share with the old ones. When a conversation no longer fits the context, its oldest turns go.

use super::run::{started, stats};
use crate::args::{Context, ModelArgs, SamplingArgs};
use crate::chat_prompt::ChatPrompt;
use crate::error::usage;
use crate::speculate::SpeculateArgs;
use crate::{interrupt, model_path, output};
use fonio_engine::{Engine, Finish, Generated, Limits, Sampler, Session, Speculation};
use fonio_text::Message;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, history::History};
use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Lines that the history keeps.
const HISTORY: usize = 1000;
/// Tokens that are computed between two looks at Ctrl-C.
const STEP: usize = 64;

const HELP: &str = "/help           this list
/clear          begin a new conversation
/system [TEXT]  show or set the instructions, and begin anew
/stats          figures of the last answer
/retry          answer the last question once more
/exit           leave, as exit, quit or Ctrl-D do
A line that ends with \\ goes on in the next; \"\"\" begins and ends several lines. Ctrl-C stops an answer.";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Instructions that the conversation begins with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculate: SpeculateArgs,
    /// Tokens per second and more after each answer, on stderr
    #[arg(long)]
    stats: bool,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        talk(context, &self.model, &self.sampling, &self.speculate, self.system, self.stats)
    }
}

/// Talks until the user leaves.
pub fn talk(
    context: &Context,
    model: &ModelArgs,
    sampling: &SamplingArgs,
    speculate: &SpeculateArgs,
    system: Option<String>,
    stats: bool,
) -> anyhow::Result<()> {
    let sampler = Sampler::new(sampling.options()?);
    let (draft, load) = speculate.prepare(&model.load, context)?;
    let engine = load.open(&model.model, context)?;
    let draft = draft.map(started).transpose()?;
    let prompt = ChatPrompt::new(&engine)?;
    if !prompt.has_template() {
        context.note("note: the model has no chat template; roles are written out");
    }
    let mut stop = sampling.stop.clone();
    stop.extend(prompt.stops().iter().map(|&s| s.to_owned()));
    let limits = Limits { max_tokens: sampling.max_tokens, stop, ignore_eos: sampling.ignore_eos };
    let mut chat = Chat {
        context,
        engine: &engine,
        session: engine.session()?,
        prompt,
        sampler,
        speculation: speculate.begin(draft.as_ref(), &engine)?,
        limits,
        system,
        turns: Vec::new(),
        last: None,
    };
    let mut input = Input::new();
    if input.is_terminal() {
        context.note("/help lists commands, exit leaves");
    }
    while let Some(line) = input.read()? {
        match chat.command(line.trim())? {
            Next::Leave => break,
            Next::Read => continue,
            Next::Answer => {}
        }
        match chat.answer() {
            Ok(()) if stats || context.verbose => chat.show_stats(),
            Ok(()) => {}
            // One question too many for the context must not end the conversation.
            Err(e) if e.chain().any(|e| e.is::<output::Closed>()) => return Err(e),
            Err(e) => {
                crate::error::report(&e, context.color);
                chat.turns.pop();
            }
        }
    }
    input.save();
    Ok(())
}

/// A conversation and what it runs on.
struct Chat<'a> {
    context: &'a Context,
    engine: &'a Engine,
    session: Session<'a>,
    prompt: ChatPrompt,
    sampler: Sampler,
    speculation: Option<Speculation<'a>>,
    limits: Limits,
    system: Option<String>,
    /// Messages of user and assistant in turn.
    turns: Vec<Message>,
    last: Option<Generated>,
}

/// What follows a line.
enum Next {
    Leave,
    Read,
    Answer,
}

impl Chat<'_> {
    /// Does what a line says.
    fn command(&mut self, line: &str) -> anyhow::Result<Next> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => return Ok(Next::Read),
            "exit" | "quit" if rest.is_empty() => return Ok(Next::Leave),
            "/exit" | "/quit" | "/bye" => return Ok(Next::Leave),
            "/help" | "/?" => eprintln!("{HELP}"),
            "/clear" => self.turns.clear(),
            "/stats" => self.show_stats(),
            "/system" if rest.trim().is_empty() => {
                eprintln!("{}", self.system.as_deref().unwrap_or("no instructions"));
            }
            "/system" => {
                self.system = Some(rest.trim().to_owned());
                self.turns.clear();
            }
            "/retry" => {
                if self.turns.last().is_some_and(|m| m.role == "assistant") {
                    self.turns.pop();
                }
                if !self.turns.is_empty() {
                    return Ok(Next::Answer);
                }
                eprintln!("there is no question yet");
            }
            // A path or a fraction may begin with a slash too, but rarely alone and in letters.
            _ if word.starts_with('/') && rest.is_empty() && word[1..].chars().all(char::is_alphabetic) => {
                eprintln!("{word}: no such command; /help lists them");
            }
            _ => {
                self.turns.push(Message::new("user", line));
                return Ok(Next::Answer);
            }
        }
        Ok(Next::Read)
    }

    /// The tokens of the conversation; its oldest turns go until the answer has room.
    fn tokens(&mut self) -> anyhow::Result<Vec<u32>> {
        let all = self.engine.context_len();
        let room = self.limits.max_tokens.min(all / 4).max(1);
        let mut dropped = 0;
        loop {
            let system = self.system.as_deref().map(|text| Message::new("system", text));
            let messages: Vec<Message> = system.into_iter().chain(self.turns.iter().cloned()).collect();
            let tokens = self.prompt.encode(self.engine, &messages)?;
            if tokens.is_empty() {
                return Err(usage("the template makes no text of this conversation").into());
            }
            if tokens.len() + room <= all {
                if dropped > 0 {
                    self.context.note(format_args!(
                        "note: the context of {all} tokens is full; the oldest {dropped} messages are forgotten"
                    ));
                }
                return Ok(tokens);
            }
            if self.turns.len() < 3 {
                let message =
                    format!("{} tokens do not fit into the context of {all} with an answer", tokens.len());
                return Err(usage(message).hint("say less, or give more room with --ctx").into());
            }
            // A question goes with its answer.
            self.turns.drain(..2);
            dropped += 2;
        }
    }

    /// Answers the last message.
    fn answer(&mut self) -> anyhow::Result<()> {
        let tokens = self.tokens()?;
        let listening = interrupt::listen();
        let start = Instant::now();
        let computed = self.prefill(&tokens)?;
        let before = start.elapsed();
        if interrupt::pressed() {
            drop(listening);
            self.turns.pop();
            eprintln!();
            return Ok(());
        }
        let mut text = String::new();
        let mut failed = None;
        let speculation = self.speculation.as_mut();
        let (sampler, limits) = (&mut self.sampler, &self.limits);
        let done = self.session.generate_with(&tokens, sampler, limits, speculation, |piece| {
            text.push_str(piece);
            failed = output::write(piece).err();
            if failed.is_some() || interrupt::pressed() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        drop(listening);
        if let Some(e) = failed {
            return Err(e);
        }
        output::write("\n")?;
        match done.finish {
            Finish::Context => self.context.note("note: the context is full"),
            Finish::Length => {
                let n = self.limits.max_tokens;
                self.context.note(format_args!("note: cut off after {n} tokens; -n allows more"));
            }
            _ => {}
        }
        self.turns.push(Message::new("assistant", text));
        let prompt_tokens = computed + done.prompt_tokens;
        self.last = Some(Generated { prompt_tokens, prompt_time: before + done.prompt_time, ..done });
        Ok(())
    }

    /// Computes all but the last token, in steps, so that Ctrl-C is heard. Tells how many were not in the cache.
    fn prefill(&mut self, tokens: &[u32]) -> anyhow::Result<usize> {
        let most = tokens.len() - 1;
        let shared = self.session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count().min(most);
        self.session.truncate(shared);
        for part in tokens[shared..most].chunks(STEP) {
            if interrupt::pressed() {
                break;
            }
            self.session.extend(part)?;
        }
        Ok(most - shared)
    }

    fn show_stats(&self) {
        match &self.last {
            Some(done) => eprintln!("{}", stats(self.engine, done, self.session.cache_bytes())),
            None => eprintln!("there is no answer yet"),
        }
    }
}

/// Where lines come from: an editor with history on a terminal, else stdin as it is.
struct Input {
    editor: Option<DefaultEditor>,
    history: Option<PathBuf>,
}

impl Input {
    fn new() -> Input {
        let mut editor = None;
        if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            editor = DefaultEditor::new().ok();
        }
        let history = model_path::state().map(|folder| folder.join("history.txt"));
        if let (Some(editor), Some(file)) = (&mut editor, &history) {
            // Without a history there is only less comfort.
            let _ = editor.history_mut().set_max_len(HISTORY);
            let _ = editor.load_history(file);
        }
        Input { editor, history }
    }

    fn is_terminal(&self) -> bool {
        self.editor.is_some()
    }

    /// A message, which may have several lines; `None` at the end.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
        let Some(mut text) = self.line("> ")? else { return Ok(None) };
        if let Some(begun) = text.trim_start().strip_prefix("\"\"\"").map(str::to_owned) {
            text = begun;
            while !text.trim_end().ends_with("\"\"\"") {
                let Some(more) = self.line("… ")? else { break };
                text.push('\n');
                text.push_str(&more);
            }
            let end = text.trim_end();
            text = end.strip_suffix("\"\"\"").unwrap_or(end).to_owned();
        } else {
            while text.ends_with('\\') {
                text.pop();
                text.push('\n');
                let Some(more) = self.line("… ")? else { break };
                text.push_str(&more);
            }
        }
        if let Some(editor) = &mut self.editor
            && !text.trim().is_empty()
        {
            let _ = editor.add_history_entry(text.as_str());
        }
        Ok(Some(text))
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Option<String>> {
        let Some(editor) = &mut self.editor else {
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                return Ok(None);
            }
            return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()));
        };
        loop {
            match editor.readline(prompt) {
                Ok(line) => return Ok(Some(line)),
                Err(ReadlineError::Eof) => return Ok(None),
                // Ctrl-C on an unfinished line throws it away.
                Err(ReadlineError::Interrupted) => eprintln!("exit or Ctrl-D leaves"),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn save(&mut self) {
        if let (Some(editor), Some(file)) = (&mut self.editor, &self.history) {
            // A history that cannot be kept is no reason to fail.
            let _ = file.parent().map(std::fs::create_dir_all);
            let _ = editor.save_history(file);
        }
    }
}
