//! Just enough of Rust's lexical structure to look for words in code: what is a comment, a literal, a test.
//!
//! [`mask`] blanks comments and the contents of literals and keeps every offset and line, so that all other checks
//! are plain searches.

use std::ops::Range;

/// The source with comments and the contents of string and character literals replaced by spaces.
pub fn mask(source: &str) -> String {
    let s = source.as_bytes();
    let mut out = s.to_vec();
    let mut i = 0;
    while i < s.len() {
        let end = match (s[i], s.get(i + 1)) {
            (b'/', Some(b'/')) => s[i..].iter().position(|&b| b == b'\n').map_or(s.len(), |n| i + n),
            (b'/', Some(b'*')) => block_comment(s, i),
            (b'"', _) => quoted(s, i),
            (b'r', Some(b'"' | b'#')) if i == 0 || !is_word(s[i - 1]) || prefix(s, i) => raw_string(s, i),
            (b'\'', _) => character(s, i),
            _ => i,
        };
        if end == i {
            i += 1;
            continue;
        }
        for b in &mut out[i..end] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        i = end;
    }
    // Only whole literals and comments became spaces, byte by byte, so what is left is the source's own UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80
}

/// Whether the `r` at `i` follows a lone `b` or `c`, as in `br"…"`.
fn prefix(s: &[u8], i: usize) -> bool {
    matches!(s[i - 1], b'b' | b'c') && (i < 2 || !is_word(s[i - 2]))
}

fn block_comment(s: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    while i < s.len() {
        match s.get(i..i + 2) {
            Some(b"/*") => (i, depth) = (i + 2, depth + 1),
            Some(b"*/") => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    s.len()
}

fn quoted(s: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while i < s.len() {
        match s[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    s.len()
}

/// The end of a raw string; `start` itself if it is none, as in a raw identifier.
fn raw_string(s: &[u8], start: usize) -> usize {
    let hashes = s[start + 1..].iter().take_while(|&&b| b == b'#').count();
    let open = start + 1 + hashes;
    if s.get(open) != Some(&b'"') {
        return start;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    s[open + 1..]
        .windows(close.len())
        .position(|w| w == close)
        .map_or(s.len(), |n| open + 1 + n + close.len())
}

/// The end of a character literal; `start` itself for a lifetime or a label.
fn character(s: &[u8], start: usize) -> usize {
    if s.get(start + 1) == Some(&b'\\') {
        let from = start + 3;
        return s.iter().skip(from).position(|&b| b == b'\'').map_or(s.len(), |n| from + n + 1);
    }
    // One character, which may be several bytes, then the closing quote.
    let width = s[start + 1..].iter().skip(1).take_while(|&&b| b & 0xc0 == 0x80).count() + 1;
    if s.get(start + 1 + width) == Some(&b'\'') { start + width + 2 } else { start }
}

/// Where `word` stands in masked code, as a word of its own.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let s = code.as_bytes();
    code.match_indices(word).map(|(i, _)| i).filter(move |&i| {
        let ends_open = word.as_bytes().last().is_some_and(|&b| is_word(b));
        (i == 0 || !is_word(s[i - 1])) && !(ends_open && s.get(i + word.len()).is_some_and(|&b| is_word(b)))
    })
}

/// The line, counted from 1, of a byte.
pub fn line(code: &str, at: usize) -> usize {
    1 + code.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count()
}

/// From `start`, the end of the item there: its closing brace, or its semicolon if it has no body.
fn item_end(code: &str, start: usize) -> usize {
    let (mut round, mut curly) = (0i32, 0i32);
    for (i, b) in code.bytes().enumerate().skip(start) {
        match b {
            b'(' | b'[' => round += 1,
            b')' | b']' => round -= 1,
            b'{' => curly += 1,
            b'}' => {
                curly -= 1;
                if curly == 0 && round == 0 {
                    return i + 1;
                }
            }
            b';' if curly == 0 && round == 0 => return i + 1,
            _ => {}
        }
    }
    code.len()
}

/// The items of masked code that are compiled for tests only.
pub fn test_items(code: &str) -> Vec<Range<usize>> {
    let starts = ["#[cfg(test)]", "#[test]"]
        .into_iter()
        .flat_map(|a| code.match_indices(a).map(|(i, a)| (i, a.len())));
    starts.map(|(i, attribute)| i..item_end(code, i + attribute)).collect()
}

/// The functions with a body in masked code: name and range from `fn` to the closing brace.
pub fn functions(code: &str) -> Vec<(&str, Range<usize>)> {
    let found = words(code, "fn").filter_map(|at| {
        let rest = code[at + 2..].trim_start();
        let name = &rest[..rest.bytes().position(|b| !is_word(b)).unwrap_or(rest.len())];
        let end = item_end(code, at);
        (!name.is_empty() && code.as_bytes().get(end - 1) == Some(&b'}')).then_some((name, at..end))
    });
    found.collect()
}

/// The modules that masked code declares to be in files of their own.
pub fn file_modules(code: &str) -> Vec<&str> {
    let found = words(code, "mod").filter_map(|at| {
        let rest = code[at + 3..].trim_start();
        let name = &rest[..rest.bytes().position(|b| !is_word(b)).unwrap_or(rest.len())];
        (!name.is_empty() && rest[name.len()..].trim_start().starts_with(';')).then_some(name)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blank() {
        let source = r##"a /* b /* c */ d */ e // f
"g \" h" 'i' '\'' '\u{1F33E}' 'ü' 'x: r#type br"j" r#"k " l"# m r"n""##;
        let masked = mask(source);
        assert_eq!(masked.len(), source.len());
        let left: String = masked.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(left, "a e 'x: r#type b m");
        assert_eq!(masked.lines().count(), 2);
    }

    #[test]
    fn words_are_whole() {
        let code = "unsafe_code unsafe {} an_unsafe xprintln!( println!(";
        assert_eq!(words(code, "unsafe").collect::<Vec<_>>(), [12]);
        assert_eq!(words(code, "println!").count(), 1);
    }

    #[test]
    fn items() {
        let code = "fn a<const N: usize>(x: [u8; 3]) -> bool {\n{}\n}\ntrait T { fn b(); }\n\
                    #[cfg(test)]\nmod tests {\n fn c() {}\n}\nmod d;\npub mod e ;\nlet f: fn(u8) = g;";
        let names: Vec<_> = functions(code)
            .into_iter()
            .map(|(n, r)| (n, line(code, r.start), line(code, r.end - 1)))
            .collect();
        assert_eq!(names, [("a", 1, 3), ("c", 7, 7)]);
        assert_eq!(file_modules(code), ["d", "e"]);
        let tests = test_items(code);
        assert_eq!((tests.len(), &code[tests[0].end - 1..tests[0].end]), (1, "}"));
        assert!(
            tests[0].contains(&code.find("fn c").unwrap())
                && !tests[0].contains(&code.find("mod d").unwrap())
        );
    }
}
