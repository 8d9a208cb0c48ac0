//! Finds special tokens in text: at each place the longest one, left to right.
//!
//! The tokens' texts are kept sorted; a match narrows the range of those that share the prefix read so far, byte by
//! byte, with binary search. No tree is built, and text without a token's first byte costs one table look-up a byte.

use crate::pre::is_word;

#[derive(Debug)]
pub(crate) struct Specials {
    /// Sorted by text.
    entries: Vec<Entry>,
    starts: [bool; 256],
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) text: String,
    pub(crate) id: u32,
    /// Only where the caller asked for special tokens to be parsed.
    pub(crate) control: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    /// Not where a letter, digit or underscore stands beside it.
    pub(crate) single_word: bool,
}

/// A stretch of text: plain, or a special token.
pub(crate) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

impl Specials {
    pub(crate) fn new(mut entries: Vec<Entry>) -> Specials {
        entries.retain(|e| !e.text.is_empty());
        entries.sort_by(|a, b| (&a.text, a.id).cmp(&(&b.text, b.id)));
        entries.dedup_by(|b, a| a.text == b.text);
        let mut starts = [false; 256];
        for e in &entries {
            if let Some(start) = e.text.as_bytes().first().and_then(|&b| starts.get_mut(usize::from(b))) {
                *start = true;
            }
        }
        Specials { entries, starts }
    }

    /// Cuts `text` at its special tokens; those of control type only if `parse`.
    pub(crate) fn split<'t, E>(
        &self,
        text: &'t str,
        parse: bool,
        mut emit: impl FnMut(Part<'t>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = text.as_bytes();
        let mut plain = 0;
        let mut at = 0;
        while let Some(&b) = bytes.get(at) {
            let start = self.starts.get(usize::from(b)).copied().unwrap_or(false);
            let found = if start { self.longest(bytes.get(at..).unwrap_or(&[]), parse) } else { None };
            let found = found.filter(|e| !e.single_word || stands_alone(text, at, at + e.text.len()));
            let Some(entry) = found else {
                at += 1;
                continue;
            };
            // A token's text is whole UTF-8 and so is the text: a match begins and ends between characters.
            let mut before = text.get(plain..at).unwrap_or("");
            if entry.lstrip {
                before = before.trim_end();
            }
            if !before.is_empty() {
                emit(Part::Text(before))?;
            }
            emit(Part::Token(entry.id))?;
            at += entry.text.len();
            if entry.rstrip {
                let rest = text.get(at..).unwrap_or("");
                at += rest.len() - rest.trim_start().len();
            }
            plain = at;
        }
        match text.get(plain..) {
            Some(rest) if !rest.is_empty() => emit(Part::Text(rest)),
            _ => Ok(()),
        }
    }

    /// The longest token that `bytes` begins with.
    fn longest(&self, bytes: &[u8], parse: bool) -> Option<&Entry> {
        let mut range = self.entries.as_slice();
        let mut best = None;
        for (depth, &b) in bytes.iter().enumerate() {
            // Within the range all texts agree up to `depth`, so their bytes there are sorted; a text that ends
            // there sorts first.
            let byte_at = |e: &Entry| e.text.as_bytes().get(depth).copied();
            let low = range.partition_point(|e| byte_at(e) < Some(b));
            let high = range.partition_point(|e| byte_at(e) <= Some(b));
            range = range.get(low..high).unwrap_or(&[]);
            let Some(first) = range.first() else { break };
            if first.text.len() == depth + 1 && (parse || !first.control) {
                best = Some(first);
            }
        }
        best
    }
}

fn stands_alone(text: &str, from: usize, to: usize) -> bool {
    let before = text.get(..from).and_then(|t| t.chars().next_back());
    let after = text.get(to..).and_then(|t| t.chars().next());
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(specials: &Specials, text: &str, parse: bool) -> Vec<String> {
        let mut out = Vec::new();
        let done: Result<(), ()> = specials.split(text, parse, |part| {
            out.push(match part {
                Part::Text(t) => t.to_owned(),
                Part::Token(id) => format!("#{id}"),
            });
            Ok(())
        });
        done.unwrap();
        out
    }

    fn entry(text: &str, id: u32, control: bool) -> Entry {
        Entry { text: text.into(), id, control, lstrip: false, rstrip: false, single_word: false }
    }

    #[test]
    fn longest_at_each_place() {
        let s = Specials::new(vec![entry("<a>", 1, true), entry("<a><b>", 2, true), entry("\n\n", 3, false)]);
        assert_eq!(split(&s, "x<a>y<a><b>z", true), ["x", "#1", "y", "#2", "z"]);
        assert_eq!(split(&s, "x<a>\n\n\ny", false), ["x<a>", "#3", "\ny"]);
        assert_eq!(split(&s, "<a", true), ["<a"]);
        assert_eq!(split(&s, "", true), Vec::<String>::new());
    }

    #[test]
    fn single_words() {
        let mut e = entry("<m>", 7, true);
        e.single_word = true;
        let s = Specials::new(vec![e]);
        assert_eq!(split(&s, "<m> a<m> <m>é <m>.", true), ["#7", " a<m> <m>é ", "#7", "."]);
    }

    #[test]
    fn strips_white_space() {
        let mut e = entry("<m>", 7, true);
        e.lstrip = true;
        e.rstrip = true;
        let s = Specials::new(vec![e]);
        assert_eq!(split(&s, "a \t<m> \u{a0} b", true), ["a", "#7", "b"]);
        assert_eq!(split(&s, "  <m>  ", true), ["#7"]);
    }
}
