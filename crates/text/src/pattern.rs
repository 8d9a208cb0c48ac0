//! The small regular expressions that split text before BPE, matched in time linear in the text.
//!
//! What these patterns use: top-level alternatives, each a sequence of character classes, groups without repetition
//! (other than `?`) and greedy quantifiers on single classes, and at the end of an alternative the look-ahead `(?!\S)`
//! or a repeated group.
//! `regex-syntax` parses them and knows Unicode; anything else is an error when the pattern is compiled. Matching is
//! ordered and greedy with backtracking (Perl's semantics), but only inside one run of a class. A run that was searched
//! is then consumed, or the alternative that it begins is not tried again before its end: from within the run it would
//! try some of the same ends again.
//!
//! Why own: general engines either lack the look-ahead or give up after a number of backtracking steps, which a
//! megabyte of spaces reaches; and compiling Unicode automata costs milliseconds at every start.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind};

use crate::Error;

/// A set of characters: a bit for each below U+10000, sorted ranges above.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    low: Box<[u64; 1024]>,
    high: Vec<(u32, u32)>,
}

impl Set {
    fn new(ranges: impl Iterator<Item = (u32, u32)>) -> Set {
        let mut set = Set { low: Box::new([0; 1024]), high: Vec::new() };
        for (first, last) in ranges {
            for word in (first / 64)..=(last.min(0xffff) / 64) {
                let Some(bits) = set.low.get_mut(word as usize) else { break };
                let base = word * 64;
                let from = first.saturating_sub(base);
                let to = (last - base).min(63);
                *bits |= (u64::MAX << from) & (u64::MAX >> (63 - to));
            }
            if last > 0xffff {
                set.high.push((first.max(0x1_0000), last));
            }
        }
        set
    }

    fn contains(&self, c: char) -> bool {
        let n = u32::from(c);
        match self.low.get((n / 64) as usize) {
            Some(bits) => bits >> (n % 64) & 1 == 1,
            None => {
                let i = self.high.partition_point(|&(first, _)| first <= n);
                i.checked_sub(1).and_then(|i| self.high.get(i)).is_some_and(|&(_, last)| n <= last)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Item {
    /// Between `min` and `max` characters of a set, as many as possible.
    Run { set: Set, min: u32, max: u32 },
    /// One of several sequences, in order of preference.
    Any(Vec<Vec<Item>>),
    /// A sequence, as often as it matches, and `min` times at least. Only at the end of an alternative: nothing after
    /// it could want it to match less often.
    Many { items: Vec<Item>, min: u32 },
}

/// A compiled pattern. Equal ones match alike: sets are compared by their characters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern {
    alternatives: Vec<Alternative>,
}

#[derive(Debug, Clone, PartialEq)]
struct Alternative {
    items: Vec<Item>,
    /// `(?!\S)`: what follows is white space or the end.
    before_space: bool,
}

/// What remains to be matched: items, then the rest.
#[derive(Clone, Copy)]
struct Rest<'a> {
    items: &'a [Item],
    then: Option<&'a Rest<'a>>,
}

const BEFORE_SPACE: &str = r"(?!\S)";

impl Pattern {
    pub(crate) fn new(source: &str) -> Result<Pattern, Error> {
        let alternatives = top_level(source);
        if alternatives.len() > MAX_ALTERNATIVES {
            return Err(Error::unsupported("split pattern", source));
        }
        let alternatives = alternatives.into_iter().map(Alternative::new);
        Ok(Pattern { alternatives: alternatives.collect::<Result<_, _>>()? })
    }

    /// Whether the pattern matches this character alone.
    pub(crate) fn is_char(&self, c: char) -> bool {
        let mut bytes = [0; 4];
        let text = c.encode_utf8(&mut bytes);
        self.alternatives.iter().find_map(|a| a.match_at(text, 0)) == Some(text.len())
    }

    /// Cuts `text` into the matches and what lies between them.
    pub(crate) fn split<'t, E>(
        &self,
        text: &'t str,
        emit: &mut dyn FnMut(&'t str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut gap = 0;
        let mut at = 0;
        let mut hopeless = [0; MAX_ALTERNATIVES];
        while let Some(c) = text.get(at..).and_then(|t| t.chars().next()) {
            match self.match_at(text, at, &mut hopeless).filter(|&end| end > at) {
                None => at += c.len_utf8(),
                Some(end) => {
                    if gap < at {
                        emit(text.get(gap..at).unwrap_or(""))?;
                    }
                    emit(text.get(at..end).unwrap_or(""))?;
                    (gap, at) = (end, end);
                }
            }
        }
        if gap < text.len() { emit(text.get(gap..).unwrap_or("")) } else { Ok(()) }
    }

    /// `hopeless` says up to where an alternative is known not to match.
    fn match_at(&self, text: &str, at: usize, hopeless: &mut [usize; MAX_ALTERNATIVES]) -> Option<usize> {
        self.alternatives.iter().zip(hopeless).find_map(|(alternative, hopeless)| {
            if at < *hopeless {
                return None;
            }
            let found = alternative.match_at(text, at);
            if found.is_none() {
                *hopeless = alternative.run_end(text, at);
            }
            found
        })
    }
}

/// The longest pattern known has 16.
const MAX_ALTERNATIVES: usize = 32;

impl Alternative {
    fn match_at(&self, text: &str, at: usize) -> Option<usize> {
        let rest = Rest { items: &self.items, then: None };
        run(text, at, rest, &|end| !self.before_space || char_at(text, end).is_none_or(char::is_whitespace))
    }

    /// Where the run ends that this begins with, if it begins with one of any length.
    fn run_end(&self, text: &str, at: usize) -> usize {
        let Some(Item::Run { set, max: u32::MAX, .. }) = self.items.first() else { return at };
        let rest = text.get(at..).unwrap_or("");
        at + rest.find(|c| !set.contains(c)).unwrap_or(rest.len())
    }
}

fn char_at(text: &str, at: usize) -> Option<char> {
    text.get(at..)?.chars().next()
}

/// The end of the first match of `rest` at `at` that `accept` takes.
fn run(text: &str, at: usize, rest: Rest, accept: &dyn Fn(usize) -> bool) -> Option<usize> {
    let Some((item, tail)) = rest.items.split_first() else {
        return match rest.then {
            Some(next) => run(text, at, *next, accept),
            None => accept(at).then_some(at),
        };
    };
    let after = Rest { items: tail, then: rest.then };
    match item {
        Item::Any(choices) => {
            choices.iter().find_map(|items| run(text, at, Rest { items, then: Some(&after) }, accept))
        }
        Item::Many { items, min } => {
            let (mut end, mut count) = (at, 0);
            while let Some(next) =
                run(text, end, Rest { items, then: None }, &|_| true).filter(|&next| next > end)
            {
                (end, count) = (next, count + 1);
            }
            if count < *min { None } else { run(text, end, after, accept) }
        }
        Item::Run { set, min, max } => {
            let (mut end, mut count) = (at, 0);
            for c in text.get(at..)?.chars() {
                if count == *max || !set.contains(c) {
                    break;
                }
                end += c.len_utf8();
                count += 1;
            }
            loop {
                if count < *min {
                    return None;
                }
                if let Some(end) = run(text, end, after, accept) {
                    return Some(end);
                }
                end -= text.get(at..end)?.chars().next_back()?.len_utf8();
                count = count.checked_sub(1)?;
            }
        }
    }
}

/// Cuts a pattern at the `|` outside of groups and classes.
fn top_level(source: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut in_class, mut escaped) = (Vec::new(), 0, 0i32, false, false);
    for (i, c) in source.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match c {
            '\\' => escaped = true,
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth -= 1,
            '|' if !in_class && depth == 0 => {
                parts.push(source.get(start..i).unwrap_or(""));
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(source.get(start..).unwrap_or(""));
    parts
}

impl Alternative {
    fn new(source: &str) -> Result<Alternative, Error> {
        let before_space = source.ends_with(BEFORE_SPACE);
        let plain = source.strip_suffix(BEFORE_SPACE).unwrap_or(source);
        let unsupported = || Error::unsupported("split pattern", source);
        let hir = ParserBuilder::new().nest_limit(16).build().parse(plain).map_err(|_| unsupported())?;
        let mut items = Vec::new();
        push_items(&hir, &mut items).ok_or_else(unsupported)?;
        if !many_only_last(&items, !before_space) {
            return Err(unsupported());
        }
        Ok(Alternative { items, before_space })
    }
}

/// Whether repeated groups stand only at the end, `at_end` saying whether nothing comes after these items.
fn many_only_last(items: &[Item], at_end: bool) -> bool {
    items.iter().enumerate().all(|(i, item)| {
        let last = at_end && i + 1 == items.len();
        match item {
            Item::Run { .. } => true,
            Item::Any(choices) => choices.iter().all(|items| many_only_last(items, last)),
            Item::Many { items, .. } => last && many_only_last(items, true),
        }
    })
}

/// The characters of a part that is always one character long.
fn one_char(hir: &Hir) -> Option<Set> {
    match hir.kind() {
        HirKind::Literal(literal) => {
            let mut chars = std::str::from_utf8(&literal.0).ok()?.chars();
            let c = u32::from(chars.next()?);
            chars.next().is_none().then(|| Set::new([(c, c)].into_iter()))
        }
        HirKind::Class(Class::Unicode(class)) => {
            Some(Set::new(class.iter().map(|r| (u32::from(r.start()), u32::from(r.end())))))
        }
        HirKind::Capture(group) => one_char(&group.sub),
        _ => None,
    }
}

fn push_items(hir: &Hir, items: &mut Vec<Item>) -> Option<()> {
    if let Some(set) = one_char(hir) {
        items.push(Item::Run { set, min: 1, max: 1 });
        return Some(());
    }
    match hir.kind() {
        HirKind::Empty => {}
        HirKind::Literal(literal) => {
            for c in std::str::from_utf8(&literal.0).ok()?.chars().map(u32::from) {
                items.push(Item::Run { set: Set::new([(c, c)].into_iter()), min: 1, max: 1 });
            }
        }
        HirKind::Capture(group) => push_items(&group.sub, items)?,
        HirKind::Concat(parts) => parts.iter().try_for_each(|part| push_items(part, items))?,
        HirKind::Alternation(choices) => {
            let sequence = |choice: &Hir| {
                let mut inner = Vec::new();
                push_items(choice, &mut inner).map(|()| inner)
            };
            items.push(Item::Any(choices.iter().map(sequence).collect::<Option<_>>()?));
        }
        HirKind::Repetition(r) if r.greedy => {
            let max = r.max.unwrap_or(u32::MAX);
            match one_char(&r.sub) {
                Some(set) => items.push(Item::Run { set, min: r.min, max }),
                None if r.min == 0 && max == 1 => {
                    let mut inner = Vec::new();
                    push_items(&r.sub, &mut inner)?;
                    items.push(Item::Any(vec![inner, Vec::new()]));
                }
                None if r.min <= 1 && r.max.is_none() => {
                    let mut inner = Vec::new();
                    push_items(&r.sub, &mut inner)?;
                    items.push(Item::Many { items: inner, min: r.min });
                }
                None => return None,
            }
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(pattern: &str, text: &'t str) -> Vec<&'t str> {
        let mut out = Vec::new();
        let done: Result<(), ()> = Pattern::new(pattern).unwrap().split(text, &mut |p| {
            out.push(p);
            Ok(())
        });
        done.unwrap();
        out
    }

    #[test]
    fn matches_and_gaps() {
        assert_eq!(pieces(r"\p{N}{1,3}", "ab12345c"), ["ab", "123", "45", "c"]);
        assert_eq!(pieces(r"\s+(?!\S)|\s+", "a   b "), ["a", "  ", " ", "b", " "]);
        assert_eq!(pieces(r"[a|b]+|x", "a|bxc"), ["a|b", "x", "c"]);
        assert_eq!(pieces(r"\p{Lu}*\p{Ll}+(?:'s|'re)?", "ABc're's"), ["ABc're", "'", "s"]);
        assert_eq!(
            pieces(r"(?:ab)+|c(?:d(?: e)*)*", "xababacd e edd x"),
            ["x", "abab", "a", "cd e edd", " x"]
        );
        assert_eq!(pieces(r"a", ""), Vec::<&str>::new());
    }

    #[test]
    fn sets_hold_their_ends() {
        for (first, last) in [(0, 0), (63, 64), (0x7f, 0x1234), (0xfff0, 0x1_0010), (0x1_0000, 0x10_ffff)] {
            let set = Set::new([(first, last)].into_iter());
            for n in [first, last, first.wrapping_sub(1), last + 1, (first + last) / 2] {
                if let Some(c) = char::from_u32(n) {
                    assert_eq!(
                        set.contains(c),
                        (first..=last).contains(&n),
                        "{n:#x} in {first:#x}..={last:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn unsupported_syntax_is_an_error() {
        for bad in [
            r"(?:ab)+c",
            r"(?:ab)+(?!\S)",
            r"(?:ab){2}",
            r"(?:(?:ab)*c)+",
            r"a+?",
            r"\bx",
            r"(?<=a)b",
            r"[",
            r"(?!\S)x",
            r"((((((((((((((((((a))))))))))))))))))",
        ] {
            assert!(matches!(Pattern::new(bad), Err(Error::Unsupported { .. })), "{bad}");
        }
    }
}
