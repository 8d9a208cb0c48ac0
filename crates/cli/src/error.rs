//! Errors as people see them: one line that says what and where, a hint what to do, and an exit code.

use fonio_checkpoint::Error as FileError;
use fonio_model::Error as ModelError;
use fonio_quantize::Error as QuantizeError;
use std::fmt;
use std::process::ExitCode;

/// The exit code of a request that makes no sense.
const USAGE: u8 = 2;
/// The exit code of files that are not sound.
pub const NOT_SOUND: u8 = 3;
/// The exit code after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// An error that the command line itself found.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    code: u8,
    /// What and where; nothing is shown if it is empty.
    message: String,
    /// What to do next.
    hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

/// A request that makes no sense.
pub fn usage(message: impl Into<String>) -> Failure {
    Failure { code: USAGE, message: message.into(), hint: None }
}

/// Something that failed.
pub fn failed(message: impl Into<String>) -> Failure {
    Failure { code: 1, message: message.into(), hint: None }
}

/// An exit code after everything was said.
pub fn silent(code: u8) -> Failure {
    Failure { code, message: String::new(), hint: None }
}

/// The error and its causes, each once: most errors of the libraries end with their cause already.
fn message(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |all, cause| if all.ends_with(&cause) { all } else { format!("{all}: {cause}") })
}

/// Says what went wrong and gives the exit code.
pub fn report(error: &anyhow::Error, color: bool) -> ExitCode {
    // The reader of our output left: what it wanted it has.
    if error.chain().any(|e| e.is::<crate::output::Closed>()) {
        return ExitCode::SUCCESS;
    }
    let code = code(error);
    let message = message(error);
    if !message.is_empty() {
        let name = if color { "\x1b[1;31mfonio:\x1b[0m" } else { "fonio:" };
        eprintln!("{name} {}", one_line(&message));
        if let Some(hint) = hint(error) {
            eprintln!("  {hint}");
        }
    }
    ExitCode::from(code)
}

/// Control characters in names and values of files must not reach a terminal.
pub fn one_line(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.code;
        }
        match cause.downcast_ref::<QuantizeError>() {
            Some(QuantizeError::Request(_)) => return USAGE,
            Some(QuantizeError::Cancelled) => return INTERRUPTED,
            _ => {}
        }
        if matches!(model_error(cause), Some(ModelError::Input(_) | ModelError::OtherVocabulary { .. }))
            || matches!(file_error(cause), Some(FileError::Refused { .. }))
        {
            return USAGE;
        }
    }
    1
}

/// The model's error in one of any level.
fn model_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a ModelError> {
    match cause.downcast_ref::<QuantizeError>() {
        Some(QuantizeError::Model(e)) => Some(e),
        _ => cause.downcast_ref::<ModelError>(),
    }
}

/// The container's error in one of any level.
fn file_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a FileError> {
    if let Some(QuantizeError::Checkpoint(e)) = cause.downcast_ref::<QuantizeError>() {
        return Some(e);
    }
    match model_error(cause) {
        Some(ModelError::Checkpoint(e)) => Some(e),
        _ => cause.downcast_ref::<FileError>(),
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    for cause in error.chain() {
        if let Some(Failure { hint: Some(hint), .. }) = cause.downcast_ref::<Failure>() {
            return Some(hint.clone());
        }
        match file_error(cause) {
            Some(FileError::Refused { reason, .. }) if reason.starts_with("already there") => {
                return Some("--force replaces it".into());
            }
            Some(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::OutOfMemory => {
                return Some(
                    "files are mapped: the limit on address space (ulimit -v) must be above their size"
                        .into(),
                );
            }
            Some(FileError::Corrupt { file, .. }) => {
                return Some(format!("`fonio verify {}` says more; fetch the file again", file.display()));
            }
            _ => {}
        }
        match model_error(cause) {
            Some(ModelError::Unsupported { key, .. })
                if key.ends_with("architecture") || key == "model_type" =>
            {
                return Some("`fonio models` lists the architectures that fonio knows".into());
            }
            Some(ModelError::OtherVocabulary { .. }) => {
                return Some("a draft model is a smaller one of the same family".into());
            }
            Some(ModelError::Input(text)) if text.contains("do not fit") => {
                return Some("a larger --ctx gives more room".into());
            }
            _ => {}
        }
    }
    None
}
