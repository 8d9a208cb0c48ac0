//! Chat templates: the Jinja sources that models bring, rendered as `transformers` does.
//!
//! A template is code from a stranger. It sees the messages and nothing else: no files, no other templates, no objects
//! of this process. What it may use is bounded: source size, nesting, instructions (fuel), bytes made on the way
//! (every operation that makes strings or lists is charged, see [`crate::sandbox`]), bytes of output, and it runs on
//! a thread of its own whose stack fits the deepest value that its fuel can build.
//!
//! Source: `transformers/utils/chat_template_utils.py` (settings and helper functions), Jinja 3.1.

use std::sync::Arc;

use minijinja::machinery::{
    CompiledTemplate, Instruction, TemplateConfig, Token, eval, make_string_output, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, context};

use crate::Error;
use crate::sandbox::{self, Ledger};

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A chat template, checked and ready to render.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
}

/// The largest template known has 17 kB.
const MAX_SOURCE: usize = 128 << 10;
/// Text between tags is emitted at one instruction a piece, so its length counts.
const MAX_RAW: usize = 32 << 10;
/// Instructions: as many as leave this many bytes if all of them emit the longest piece of text …
const RAW_BUDGET: u64 = 64 << 20;
const MAX_FUEL: u64 = 200_000;
/// … and these for each message that the caller brings.
const FUEL_PER_MESSAGE: u64 = 2_000;
const MAX_MESSAGES: usize = 20_000;
/// Bytes that a rendering may make on the way, besides this many for each byte that the caller brings.
const MAX_BYTES: usize = 64 << 20;
const BYTES_PER_BYTE: usize = 64;
/// Tokens between two braces.
const MAX_TAG: u64 = 4096;
/// A repetition in the source is computed when it is compiled.
const MAX_REPEAT: u64 = 100;
const MAX_MACRO_DEPTH: usize = 64;
/// Reserved, not used, unless values are nested as deep as fuel allows: about 100 bytes of stack a level to drop.
const STACK: usize = 256 << 20;

/// ChatML, for models that bring no template but know its tokens.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn failed(error: minijinja::Error) -> Error {
    // The engine's message with the place; its chain of causes is where `raise_exception` puts the model's words.
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Error::Template(text)
}

impl ChatTemplate {
    /// Checks a template's source.
    ///
    /// # Errors
    /// `Limit` if it is too long, `Template` if it does not parse or uses something that is not offered.
    pub fn new(source: &str) -> Result<ChatTemplate, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Limit {
                what: "the chat template",
                value: source.len() as u64,
                limit: MAX_SOURCE as u64,
            });
        }
        let source: Arc<str> = without_generation_marks(source).into();
        let template = ChatTemplate { source };
        check_tokens(&template.source)?;
        on_own_stack(|| compile(&template.source).map(|_| ()))?;
        Ok(template)
    }

    /// The ChatML template.
    pub fn chatml() -> ChatTemplate {
        ChatTemplate { source: CHATML.into() }
    }

    /// The source that is rendered.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `extra` holds further variables (`tools`, `enable_thinking`, …) that the template may
    /// read; they come before nothing of the conversation.
    ///
    /// # Errors
    /// `Template` with the template's own words if it refuses the conversation, `Limit` if it uses too much.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, Error> {
        let messages = serde_json::to_value(messages).map_err(|e| Error::Template(e.to_string()))?;
        self.render_values(&messages, add_generation_prompt, bos, eos, extra)
    }

    /// Like [`render`](Self::render), with messages as JSON: they may hold tool calls, images and other parts.
    ///
    /// # Errors
    /// As for `render`.
    pub fn render_values(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, Error> {
        let count = messages.as_array().map_or(0, Vec::len);
        if count > MAX_MESSAGES {
            return Err(Error::Limit {
                what: "the number of messages",
                value: count as u64,
                limit: MAX_MESSAGES as u64,
            });
        }
        let size = sandbox::json_size(messages)
            + extra.iter().map(|(k, v)| k.len() + sandbox::json_size(v)).sum::<usize>();
        let budget = size.saturating_mul(BYTES_PER_BYTE).saturating_add(MAX_BYTES);
        on_own_stack(|| {
            let root = Value::from(Serde(extra));
            let conversation = context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt,
                bos_token => bos,
                eos_token => eos,
                // Templates ask whether there are tools; absent and none are one to most, not to all.
                ..root
            };
            run(&self.source, conversation, budget, count as u64)
        })
    }
}

/// Runs `work` on a thread with a deep stack: nested values are dropped and printed by recursion.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
        let handle =
            thread.spawn_scoped(scope, work).map_err(|e| Error::Template(format!("no thread: {e}")))?;
        handle.join().unwrap_or_else(|_| Err(Error::Template("the template engine failed".into())))
    })
}

fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)
}

/// Compiles, and puts charged versions in the place of the operators that make strings and lists.
fn compile(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let config =
        TemplateConfig { syntax_config: syntax()?, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    let mut compiled = CompiledTemplate::new("chat template", source, &config).map_err(failed)?;
    let programs = std::iter::once(&mut compiled.instructions).chain(compiled.blocks.values_mut());
    for program in programs {
        let mut at = 0;
        while let Some(instruction) = program.get_mut(at) {
            match instruction {
                Instruction::StringConcat => {
                    *instruction = Instruction::CallFunction(sandbox::CONCAT, Some(2))
                }
                Instruction::Add => *instruction = Instruction::CallFunction(sandbox::ADD, Some(2)),
                Instruction::Mul => *instruction = Instruction::CallFunction(sandbox::MUL, Some(2)),
                _ => {}
            }
            at += 1;
        }
    }
    Ok(compiled)
}

fn longest_raw(compiled: &CompiledTemplate<'_>) -> usize {
    let programs = std::iter::once(&compiled.instructions).chain(compiled.blocks.values());
    let lengths = programs.flat_map(|program| {
        (0..)
            .map_while(|at| program.get(at))
            .map(|i| if let Instruction::EmitRaw(text) = i { text.len() } else { 0 })
    });
    lengths.max().unwrap_or(0)
}

fn run(source: &str, root: Value, budget: usize, messages: u64) -> Result<String, Error> {
    let compiled = compile(source)?;
    let raw = longest_raw(&compiled);
    if raw > MAX_RAW {
        return Err(Error::Limit {
            what: "text in the chat template",
            value: raw as u64,
            limit: MAX_RAW as u64,
        });
    }
    let ledger = Arc::new(Ledger::new(budget));
    let mut env: Environment<'_> = sandbox::environment(&ledger);
    env.set_recursion_limit(MAX_MACRO_DEPTH);
    let base = (RAW_BUDGET / (raw as u64 + 1)).min(MAX_FUEL);
    env.set_fuel(Some(base + FUEL_PER_MESSAGE * messages));
    let mut text = String::new();
    // Not capped again: what is written is charged where it is a value, and bounded by fuel where it is source text.
    let mut out = make_string_output(&mut text);
    let done = eval(&env, &compiled.instructions, root, &compiled.blocks, &mut out, AutoEscape::None);
    match done {
        Ok(_) => {}
        Err(_) if ledger.exceeded() => {
            let limit = budget as u64;
            return Err(Error::Limit { what: "the memory of a chat template", value: limit + 1, limit });
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(text)
}

/// Refuses what is costly to compile: long repetitions of constants, which are computed then, and expressions so long
/// that looking for constants in each of their parts takes quadratic time.
fn check_tokens(source: &str) -> Result<(), Error> {
    let (mut repeats, mut big, mut length) = (0, false, 0);
    let mut before_constant = false;
    let mut after_mul = false;
    for token in tokenize(source, false, syntax()?) {
        let (token, _) = token.map_err(failed)?;
        let constant = matches!(token, Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_))
            || matches!(
                token,
                Token::ParenClose | Token::BracketClose | Token::ParenOpen | Token::BracketOpen
            );
        match &token {
            Token::VariableStart | Token::BlockStart => (repeats, big, length) = (0, false, 0),
            Token::Int(n) => big |= *n > MAX_REPEAT,
            Token::Int128(_) => big = true,
            _ => {}
        }
        if after_mul && constant {
            repeats += 1;
        }
        after_mul = matches!(token, Token::Mul) && before_constant;
        before_constant = constant;
        length += 1;
        if length > MAX_TAG {
            return Err(Error::Limit {
                what: "the length of a template's tag",
                value: length,
                limit: MAX_TAG,
            });
        }
        if repeats > 1 || (repeats == 1 && big) {
            return Err(Error::Template("a repetition of constants that is too long".into()));
        }
    }
    Ok(())
}

/// Removes the marks `{% generation %}` and `{% endgeneration %}`, with which training finds the model's turns. What
/// they say about white space stays.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at_checked(start).unwrap_or((rest, ""));
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |e| e + 2);
        let (tag, after) = tag.split_at_checked(end).unwrap_or((tag, ""));
        let inner = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")).unwrap_or("");
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => "",
        };
        if replacement.is_empty() {
            out.push_str(tag);
        } else {
            out.push_str(&tag.replacen(word, replacement, 1));
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
