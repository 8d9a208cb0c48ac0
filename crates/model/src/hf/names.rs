//! Patterns of tensor names: `{}` stands for a number.

use std::borrow::Cow;

/// The numbers that stand for `{}` in a name that fits a pattern.
pub(crate) fn capture(pattern: &str, name: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut parts = pattern.split("{}");
    let mut rest = name.strip_prefix(parts.next()?)?;
    for part in parts {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let parsed: u32 = number.parse().ok()?;
        if parsed.to_string() != number {
            return None;
        }
        numbers.push(parsed);
        rest = after.strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

/// Puts numbers in the place of `{}`; those that are left over are not used.
pub(crate) fn fill(pattern: &str, numbers: &[u32]) -> String {
    let mut parts = pattern.split("{}");
    let mut name = parts.next().unwrap_or_default().to_owned();
    for (part, number) in parts.zip(numbers) {
        name += &number.to_string();
        name += part;
    }
    name
}

/// How many numbers a pattern has.
pub(crate) fn places(pattern: &str) -> usize {
    pattern.matches("{}").count()
}

/// The first number that stands between dots in a name: that of its layer.
pub(crate) fn layer(name: &str) -> Option<u32> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Whether a name fits a pattern: `{}` is a number, a final `*` is anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => capture(pattern, name).is_some(),
    }
}

/// A name with its beginning replaced by the first pair that fits.
pub(crate) fn rename<'a>(name: &'a str, prefixes: &[(&str, &str)]) -> Cow<'a, str> {
    for (from, to) in prefixes {
        if let Some(rest) = name.strip_prefix(from) {
            return Cow::Owned(format!("{to}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_numbers() {
        let (from, to) = ("model.layers.{}.a.weight", "blk.{}.b.weight");
        let numbers = capture(from, "model.layers.12.a.weight").unwrap();
        assert_eq!(fill(to, &numbers), "blk.12.b.weight");
        assert_eq!(capture("l.{}.e.{}.w", "l.3.e.40.w").unwrap(), [3, 40]);
        for bad in [
            "model.layers.012.a.weight",
            "model.layers..a.weight",
            "model.layers.99999999999.a.weight",
            "model.layers.1.a.weightx",
            "model.layers.-1.a.weight",
            "model.layers.+1.a.weight",
        ] {
            assert_eq!(capture(from, bad), None, "{bad}");
        }
        assert!(matches("vision.*", "vision.x.y") && !matches("vision.*", "visio"));
    }
}
