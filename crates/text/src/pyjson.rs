//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};

/// Deeper values are an error: they print by recursion.
const MAX_DEPTH: usize = 100;

/// `str(value)`; an undefined value is nothing.
pub(crate) fn write_str(out: &mut impl Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => out.write_str(value.as_str().unwrap_or("")),
        _ => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut impl Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => quote(out, value.as_str().unwrap_or("")),
        ValueKind::Map if value.as_object().is_some() => {
            out.write_char('{')?;
            for (i, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?, depth + 1)?;
            }
            out.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (i, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if i > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        _ => write!(out, "{value}"),
    }
}

/// Python's `repr` of a string: single quotes unless it holds only those.
fn quote(out: &mut impl Write, text: &str) -> fmt::Result {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(mark)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            c if c == mark => write!(out, "\\{c}")?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(mark)
}

/// Integers as they are; floats in the shortest form that reads back, with `.0` or an exponent.
fn write_number(out: &mut impl Write, value: &Value) -> fmt::Result {
    if value.is_integer() {
        return write!(out, "{value}");
    }
    let Ok(x) = f64::try_from(value.clone()) else { return write!(out, "{value}") };
    if !x.is_finite() {
        return out.write_str(if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        });
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |p| ('-', p));
        return write!(out, "{digits}e{sign}{power:0>2}");
    }
    write!(out, "{x:?}")
}

/// Options of `tojson` as `transformers` offers them.
#[derive(Default)]
pub(crate) struct Options {
    ascii: bool,
    indent: Option<usize>,
    separators: Option<(String, String)>,
    sort: bool,
}

impl Options {
    pub(crate) fn from_kwargs(options: &Kwargs) -> Result<Options, minijinja::Error> {
        let bad = |what| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what);
        let indent: Option<Value> = options.get("indent")?;
        let indent = match indent.filter(|v| !v.is_none()) {
            None => None,
            Some(v) => Some(v.as_usize().filter(|&n| n <= 64).ok_or_else(|| bad("an indent of this width"))?),
        };
        let separators: Option<Value> = options.get("separators")?;
        let separators = match separators.filter(|v| !v.is_none()) {
            None => None,
            Some(pair) => {
                let parts: Vec<Value> = pair.try_iter()?.collect();
                match parts.as_slice() {
                    [item, key] => Some((item.to_string(), key.to_string())),
                    _ => return Err(bad("separators are two strings")),
                }
            }
        };
        Ok(Options {
            ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
            indent,
            separators,
        })
    }
}

/// `json.dumps(value)`.
pub(crate) fn write_json(out: &mut impl Write, value: &Value, options: &Options) -> fmt::Result {
    json(out, value, options, 0)
}

fn line(out: &mut impl Write, options: &Options, depth: usize) -> fmt::Result {
    if let Some(width) = options.indent {
        out.write_char('\n')?;
        for _ in 0..width * depth {
            out.write_char(' ')?;
        }
    }
    Ok(())
}

fn json(out: &mut impl Write, value: &Value, options: &Options, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    let default_item = if options.indent.is_some() { "," } else { ", " };
    let (item, key) = options.separators.as_ref().map_or((default_item, ": "), |(i, k)| (i, k));
    match value.kind() {
        ValueKind::None => out.write_str("null"),
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value),
        ValueKind::String => json_text(out, value.as_str().unwrap_or(""), options.ascii),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().map_err(|_| fmt::Error)?.collect();
            if options.sort {
                keys.sort();
            }
            out.write_char('{')?;
            for (i, name) in keys.iter().enumerate() {
                out.write_str(if i > 0 { item } else { "" })?;
                line(out, options, depth + 1)?;
                let text = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
                json_text(out, &text, options.ascii)?;
                out.write_str(key)?;
                json(out, &value.get_item(name).map_err(|_| fmt::Error)?, options, depth + 1)?;
            }
            if !keys.is_empty() {
                line(out, options, depth)?;
            }
            out.write_char('}')
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut any = false;
            out.write_char('[')?;
            for element in value.try_iter().map_err(|_| fmt::Error)? {
                out.write_str(if any { item } else { "" })?;
                any = true;
                line(out, options, depth + 1)?;
                json(out, &element, options, depth + 1)?;
            }
            if any {
                line(out, options, depth)?;
            }
            out.write_char(']')
        }
        _ => Err(fmt::Error),
    }
}

fn json_text(out: &mut impl Write, text: &str, ascii: bool) -> fmt::Result {
    out.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            c if c < ' ' || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}
