//! What happens to plain text before a model sees it, as `tokenizer.json` lists it.
//!
//! Steps are those of the `tokenizers` library that published models use; any other is an error that names it. The
//! precompiled table of SentencePiece (see [`crate::charsmap`]) is applied as SentencePiece does, longest match first.
//! Source: the library's documentation of its normalizers; Unicode Standard Annex 15 (forms C, D, KC, KD).

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;
use unicode_normalization::is_nfc;

use crate::Error;
use crate::charsmap::Charsmap;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    /// Controls go, other white space and invisible marks become spaces.
    Nmt,
    Precompiled,
    Strip {
        left: bool,
        right: bool,
    },
    Replace {
        from: String,
        to: String,
    },
    /// Two and more spaces become one string.
    Collapse {
        to: String,
    },
    /// Any white space in a row becomes one space.
    WhiteSpace,
}

#[derive(Debug, Default)]
pub(crate) struct Normalizer {
    steps: Vec<Step>,
    charsmap: Option<Charsmap>,
}

fn unsupported(step: &Value) -> Error {
    Error::unsupported("normalizer", step.to_string())
}

fn step(value: &Value) -> Result<Step, Error> {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(true);
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let pattern = |kind: &str| value.get("pattern")?.get(kind)?.as_str();
    Ok(match value.get("type").and_then(Value::as_str).unwrap_or("") {
        "NFC" => Step::Nfc,
        "NFD" => Step::Nfd,
        "NFKC" => Step::Nfkc,
        "NFKD" => Step::Nfkd,
        "Lowercase" => Step::Lowercase,
        "StripAccents" => Step::StripAccents,
        "Nmt" => Step::Nmt,
        "Precompiled" => Step::Precompiled,
        "Strip" => Step::Strip { left: flag("strip_left"), right: flag("strip_right") },
        "Replace" => {
            let to = text("content").ok_or_else(|| unsupported(value))?;
            match (pattern("String"), pattern("Regex")) {
                (Some(from), None) if !from.is_empty() => Step::Replace { from: from.to_owned(), to },
                (None, Some(r"\s+")) if to == " " => Step::WhiteSpace,
                (None, Some(" {2,}")) => Step::Collapse { to },
                _ => return Err(unsupported(value)),
            }
        }
        _ => return Err(unsupported(value)),
    })
}

/// Whether white space at the end goes and runs of spaces become one: what `remove_extra_whitespaces` does.
pub(crate) fn removes_extra_spaces(steps: &[&Value]) -> bool {
    let is = |value: &&Value, wanted: &dyn Fn(&Step) -> bool| step(value).is_ok_and(|s| wanted(&s));
    matches!(steps, [strip, collapse]
        if is(strip, &|s| matches!(s, Step::Strip { left: false, right: true }))
            && is(collapse, &|s| matches!(s, Step::Collapse { to } if to == " " || to == "\u{2581}")))
}

impl Normalizer {
    /// Reads a step or a list of steps in JSON.
    pub(crate) fn parse(json: Option<&str>, charsmap: Option<Charsmap>) -> Result<Normalizer, Error> {
        let Some(json) = json else { return Ok(Normalizer::default()) };
        let value: Value =
            serde_json::from_str(json).map_err(|e| Error::corrupt("normalizer", e.to_string()))?;
        let steps = match &value {
            Value::Array(list) => list.iter().map(step).collect::<Result<Vec<_>, _>>()?,
            one => vec![step(one)?],
        };
        if steps.contains(&Step::Precompiled) && charsmap.is_none() {
            return Err(Error::corrupt(
                "normalizer",
                "it refers to a precompiled_charsmap that is not there",
            ));
        }
        Ok(Normalizer { steps, charsmap })
    }

    /// Whether the precompiled table is one of the steps.
    pub(crate) fn has_charsmap(&self) -> bool {
        self.steps.contains(&Step::Precompiled)
    }

    pub(crate) fn apply<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, Error> {
        let mut text = Cow::Borrowed(text);
        for step in &self.steps {
            if let Some(changed) = self.run(step, &text)? {
                text = Cow::Owned(changed);
            }
        }
        Ok(text)
    }

    /// The text after a step, or `None` where that is the text before it.
    fn run(&self, step: &Step, text: &str) -> Result<Option<String>, Error> {
        Ok(match step {
            Step::Nfc => (!is_nfc(text)).then(|| text.nfc().collect()),
            Step::Nfd => Some(text.nfd().collect()),
            Step::Nfkc => Some(text.nfkc().collect()),
            Step::Nfkd => Some(text.nfkd().collect()),
            Step::Lowercase => Some(text.chars().flat_map(char::to_lowercase).collect()),
            Step::StripAccents => Some(text.chars().filter(|&c| !is_combining_mark(c)).collect()),
            Step::Nmt => Some(text.chars().filter_map(nmt).collect()),
            Step::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                Some(if *right { text.trim_end() } else { text }.to_owned())
            }
            Step::Replace { from, to } => {
                text.contains(from.as_str()).then(|| text.replace(from.as_str(), to))
            }
            Step::WhiteSpace => Some(white_space(text)),
            Step::Collapse { to } => text.contains("  ").then(|| collapse(text, to)),
            Step::Precompiled => {
                let Some(map) = &self.charsmap else { return Ok(None) };
                let mut out = String::with_capacity(text.len());
                let mut at = 0;
                while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
                    match map.longest(text.as_bytes().get(at..).unwrap_or(&[]))? {
                        // A match that ends inside of a character is none.
                        Some((len, to)) if text.is_char_boundary(at + len) => {
                            out.push_str(to);
                            at += len;
                        }
                        _ => {
                            out.push(c);
                            at += c.len_utf8();
                        }
                    }
                }
                Some(out)
            }
        })
    }
}

fn collapse(text: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("  ") {
        out.push_str(before);
        out.push_str(to);
        rest = after.trim_start_matches(' ');
    }
    out + rest
}

fn white_space(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_space = false;
    for c in text.chars() {
        match c.is_whitespace() {
            true if after_space => {}
            true => out.push(' '),
            false => out.push(c),
        }
        after_space = c.is_whitespace();
    }
    out
}

fn nmt(c: char) -> Option<char> {
    match u32::from(c) {
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0x8f | 0x9f => None,
        0x09 | 0x0a | 0x0c | 0x0d | 0x1680 | 0x200b..=0x200f | 0x2028 | 0x2029 | 0x2581 | 0xfeff | 0xfffd => {
            Some(' ')
        }
        _ => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_in_order() {
        let json = r#"[{"type":"NFKD"},{"type":"StripAccents"},{"type":"Lowercase"},{"type":"Strip","strip_left":false,"strip_right":true},
            {"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"Replace","pattern":{"String":"``"},"content":"\""}]"#;
        let normalizer = Normalizer::parse(Some(json), None).unwrap();
        assert_eq!(normalizer.apply(" É   ``ﬁ  x ").unwrap(), " e \"fi x");
        assert_eq!(Normalizer::default().apply("É").unwrap(), "É");
        let map = Charsmap::parse(&crate::charsmap::tests::sample()).unwrap();
        let normalizer = Normalizer::parse(Some(r#"{"type":"Precompiled"}"#), Some(map)).unwrap();
        assert_eq!(normalizer.apply("xABA").unwrap(), "xa");
    }

    #[test]
    fn unknown_steps_are_named() {
        for bad in
            [r#"{"type":"Magic"}"#, r#"[{"type":"Replace","pattern":{"Regex":"a+"},"content":""}]"#, "7"]
        {
            assert!(matches!(Normalizer::parse(Some(bad), None), Err(Error::Unsupported { .. })), "{bad}");
        }
        assert!(matches!(
            Normalizer::parse(Some(r#"{"type":"Precompiled"}"#), None),
            Err(Error::Corrupt { .. })
        ));
        assert!(matches!(Normalizer::parse(Some("["), None), Err(Error::Corrupt { .. })));
    }
}
