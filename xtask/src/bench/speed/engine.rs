//! The programs that race. Each run is a process of its own that does its work once to get warm and once for time.

use super::super::common;
use super::super::process::{self, Run};
use super::cases::{Kind, Work};
use super::llamacpp;
use super::series::Measure;
use serde_json::Value as Json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Words that every model made up has or spells with its bytes.
pub const PROMPT: &str = "Water boils at";
/// Tokens that engines generate before a race, to see whether they compute the same.
pub const TEXT_TOKENS: usize = 16;
/// Positions that a process has place for when it is about the first token, and the same for all.
pub const START_CONTEXT: usize = 512;

/// A program that runs models.
pub struct Engine {
    pub name: String,
    /// How it is set up, where there is a choice.
    pub setting: Option<&'static str>,
    pub program: Program,
}

pub enum Program {
    /// `fonio` of this repository, at this path.
    Fonio(PathBuf),
    /// llama.cpp's libraries in a child of this program.
    LlamaCpp { repack: bool },
    /// Whatever the command line says.
    Command {
        line: String,
        /// A command that prints what the model says to a prompt.
        text: Option<String>,
    },
}

/// What a run is about.
pub struct Task<'a> {
    pub file: &'a Path,
    pub work: &'a Work,
    pub threads: usize,
}

/// What came of a run.
pub struct Outcome {
    pub figures: Vec<(Measure, f64)>,
    /// CPUs that other programs kept busy meanwhile.
    pub others: f64,
}

impl Engine {
    pub fn fonio(program: PathBuf) -> Engine {
        Engine { name: "fonio".into(), setting: None, program: Program::Fonio(program) }
    }

    /// Both ways in which llama.cpp keeps weights: which is faster depends on type and work.
    pub fn llamacpp() -> [Engine; 2] {
        [true, false].map(|repack| Engine {
            name: "llama.cpp".into(),
            setting: Some(if repack { "repacked" } else { "as stored" }),
            program: Program::LlamaCpp { repack },
        })
    }

    /// Name and setting.
    pub fn title(&self) -> String {
        match self.setting {
            Some(setting) => format!("{}, {setting}", self.name),
            None => self.name.clone(),
        }
    }

    /// Why it cannot do this work, if so.
    pub fn refuses(&self, work: &Work) -> Option<String> {
        match &self.program {
            Program::Command { line, .. } if work.depth > 0 && !line.contains("{depth}") => {
                Some(format!("its command has no {{depth}}, so it cannot begin at {}", work.depth))
            }
            _ => None,
        }
    }

    /// Does the work once.
    pub fn run(&self, task: &Task) -> Result<Outcome, String> {
        let run = process::run(&self.command(task)?, None)?;
        let figures = match task.work.kind {
            Kind::Start => {
                vec![(Measure::Wall, run.wall.as_secs_f64()), (Measure::Peak, run.peak as f64)]
            }
            Kind::Prefill | Kind::Decode => vec![(Measure::Rate, self.rate(&run)?)],
        };
        Ok(Outcome { figures, others: run.others })
    }

    /// Tokens per second, as the program said.
    fn rate(&self, run: &Run) -> Result<f64, String> {
        let silent =
            || format!("{} did not say how many tokens/s; it said: {}", self.name, run.stdout.trim_end());
        let rate = match &self.program {
            Program::Fonio(_) => json(&run.stdout)?["results"][0]["tokens_per_second"].as_f64(),
            Program::LlamaCpp { .. } => json(&run.stdout)?["tokens_per_second"].as_f64(),
            Program::Command { .. } => common::rate(&run.stdout)
                .or_else(|| run.stdout.trim().parse().ok())
                .or_else(|| common::rate(&run.stderr)),
        };
        rate.filter(|rate| rate.is_finite() && *rate > 0.0).ok_or_else(silent)
    }

    fn command(&self, task: &Task) -> Result<Vec<OsString>, String> {
        let Task { file, work, threads } = task;
        Ok(match &self.program {
            Program::Fonio(program) if work.kind == Kind::Start => {
                continuation(program, file, work.tokens, *threads)
            }
            Program::Fonio(program) => {
                let (tokens, depth) = (work.tokens.to_string(), work.depth.to_string());
                let threads = threads.to_string();
                let (prompt, generate) =
                    if work.kind == Kind::Prefill { (&*tokens, "0") } else { ("0", &*tokens) };
                let mut command: Vec<OsString> = vec![program.into(), "bench".into(), file.into()];
                let rest = ["-p", prompt, "-n", generate, "--depth", &depth, "--threads", &threads];
                command.extend(rest.map(OsString::from));
                command.extend(["-r", "1", "--residency", "mmap", "--json", "--quiet"].map(OsString::from));
                command
            }
            Program::LlamaCpp { repack } => llamacpp::command(&llamacpp::Request {
                file: file.to_path_buf(),
                what: match work.kind {
                    Kind::Prefill => llamacpp::What::Prefill,
                    Kind::Decode => llamacpp::What::Decode,
                    Kind::Start => llamacpp::What::Text,
                },
                tokens: work.tokens,
                depth: work.depth,
                threads: *threads,
                repack: *repack,
            })?,
            Program::Command { line, .. } => shell(line, task),
        })
    }

    /// What the model says to [`PROMPT`], or `None` if there is no way to ask this engine.
    pub fn text(&self, file: &Path) -> Option<Result<String, String>> {
        // One thread: the bits are the same, and others may be at work.
        let work = Work {
            name: "text",
            kind: Kind::Start,
            tokens: TEXT_TOKENS,
            depth: 0,
            target: 0.0,
            float_target: 0.0,
        };
        let task = Task { file, work: &work, threads: 1 };
        let command = match &self.program {
            Program::Command { text, .. } => Ok(shell(text.as_ref()?, &task)),
            _ => self.command(&task),
        };
        let run = command.and_then(|command| process::run(&command, None));
        Some(run.and_then(|run| match &self.program {
            Program::Command { .. } => Ok(run.stdout),
            _ => match json(&run.stdout)?["text"].as_str() {
                Some(text) => Ok(text.to_owned()),
                None => Err(format!("{} gave no text: {}", self.name, run.stdout.trim_end())),
            },
        }))
    }
}

/// The command with which fonio continues the prompt, always with the likeliest token.
fn continuation(program: &Path, file: &Path, tokens: usize, threads: usize) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![program.into(), "run".into(), file.into()];
    let (tokens, threads, context) = (tokens.to_string(), threads.to_string(), START_CONTEXT.to_string());
    let rest = ["-p", PROMPT, "-n", &tokens, "-t", "0", "--ignore-eos", "--json", "--quiet", "-c", &context];
    command.extend(rest.map(OsString::from));
    command.extend(["--threads", &threads, "--residency", "mmap"].map(OsString::from));
    command
}

/// A command line with everything in its place. Paths and texts are arguments of the shell, which need no quoting.
fn shell(line: &str, task: &Task) -> Vec<OsString> {
    let work = match task.work.kind {
        Kind::Prefill => "prefill",
        Kind::Decode => "decode",
        Kind::Start => "start",
    };
    let line = line
        .replace("{model}", "\"$0\"")
        .replace("{prompt}", "\"$1\"")
        .replace("{work}", work)
        .replace("{n}", &task.work.tokens.to_string())
        .replace("{depth}", &task.work.depth.to_string())
        .replace("{threads}", &task.threads.to_string());
    vec!["sh".into(), "-c".into(), format!("exec {line}").into(), task.file.into(), PROMPT.into()]
}

fn json(text: &str) -> Result<Json, String> {
    serde_json::from_str(text).map_err(|e| format!("not JSON ({e}): {}", text.trim_end()))
}

/// How two continuations of the prompt differ, if they do. White space around them is no difference.
pub fn difference(ours: &str, theirs: &str) -> Option<String> {
    let ours = ours.trim();
    // Programs like to repeat the prompt.
    let theirs = theirs.trim();
    let theirs = theirs.strip_prefix(PROMPT).map_or(theirs, str::trim);
    if ours == theirs {
        return None;
    }
    let same = ours.chars().zip(theirs.chars()).take_while(|(a, b)| a == b).count();
    let rest = |text: &str| text.chars().skip(same).collect::<String>();
    Some(format!(
        "texts part after {same} of {} characters: {:?} instead of fonio's {:?}",
        ours.chars().count(),
        rest(theirs),
        rest(ours)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::cases::{DECODE, DEEP, PREFILL, START};
    use super::*;

    fn rival(line: &str, text: Option<&str>) -> Engine {
        let program = Program::Command { line: line.into(), text: text.map(Into::into) };
        Engine { name: "other".into(), setting: None, program }
    }

    #[test]
    fn a_rival_is_told_what_to_do() {
        let file = Path::new("/a path/with 'quotes'.gguf");
        let engine = rival("echo {model} {work} {n} {depth} {threads} 12.5 t/s", None);
        let command = engine.command(&Task { file, work: &DEEP, threads: 2 }).unwrap();
        let run = process::run(&command, None).unwrap();
        assert_eq!(run.stdout, "/a path/with 'quotes'.gguf decode 64 4096 2 12.5 t/s\n");
        let outcome = engine.run(&Task { file, work: &DEEP, threads: 2 }).unwrap();
        assert_eq!(outcome.figures, [(Measure::Rate, 12.5)]);
    }

    #[test]
    fn a_bare_number_is_a_rate_and_silence_is_an_error() {
        let task = Task { file: Path::new("x"), work: &PREFILL, threads: 1 };
        assert_eq!(rival("echo 300.25", None).run(&task).unwrap().figures, [(Measure::Rate, 300.25)]);
        let reason = rival("echo hello", None).run(&task).err().unwrap();
        assert!(reason.contains("other did not say") && reason.ends_with("hello"), "{reason}");
        assert!(rival("echo 0 tokens/s", None).run(&task).is_err());
        assert!(rival("exit 3", None).run(&task).is_err());
    }

    #[test]
    fn a_start_is_timed_from_outside() {
        let task = Task { file: Path::new("x"), work: &START, threads: 1 };
        let figures = rival("sleep 0.05", None).run(&task).unwrap().figures;
        assert!(figures[0].0 == Measure::Wall && figures[0].1 >= 0.05, "{figures:?}");
        assert!(figures[1].0 == Measure::Peak && figures[1].1 > 0.0, "{figures:?}");
    }

    #[test]
    fn depth_needs_a_word_for_it() {
        assert!(rival("x {n}", None).refuses(&DEEP).unwrap().contains("{depth}"));
        assert_eq!(rival("x {n}", None).refuses(&DECODE), None);
        assert_eq!(rival("x {depth}", None).refuses(&DEEP), None);
    }

    #[test]
    fn texts_are_compared_without_their_surroundings() {
        let engine = rival("false", Some("echo {prompt} a hundred {n}"));
        let text = engine.text(Path::new("x")).unwrap().unwrap();
        assert_eq!(text, "Water boils at a hundred 16\n");
        assert_eq!(difference(" a hundred 16", &text), None);
        let other = difference(" a hundred 15", &text).unwrap();
        assert!(
            other.contains("after 11 of 12") && other.contains("\"6\" instead of fonio's \"5\""),
            "{other}"
        );
        assert!(rival("false", None).text(Path::new("x")).is_none());
    }
}
