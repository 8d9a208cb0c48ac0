//! What chat templates may call, and what it costs them.
//!
//! A [`Ledger`] counts the bytes of every string and list that a rendering makes. The engine's fuel bounds the number of
//! steps, but one step may double a string: so the operators `~`, `+` and `*`, and the filters and methods whose
//! result can be larger than their input, are replaced by versions that ask the ledger first. Values print as in
//! Python (`True`, `None`, `['a', 1]`), which templates rely on.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions, tests as checks};

use crate::{clock, pyjson};

/// Names that no template can spell.
pub(crate) const CONCAT: &str = "~ operator";
pub(crate) const ADD: &str = "+ operator";
pub(crate) const MUL: &str = "* operator";

/// Bytes still allowed.
#[derive(Debug)]
pub(crate) struct Ledger(AtomicUsize);

/// What a list costs for each item.
const ITEM: usize = 32;

impl Ledger {
    pub(crate) fn new(budget: usize) -> Ledger {
        Ledger(AtomicUsize::new(budget))
    }

    /// Pays for bytes before they are made.
    fn charge(&self, bytes: usize) -> Result<(), Error> {
        let left = self.0.load(Ordering::Relaxed);
        match left.checked_sub(bytes) {
            Some(rest) => {
                self.0.store(rest, Ordering::Relaxed);
                Ok(())
            }
            None => {
                self.0.store(0, Ordering::Relaxed);
                Err(Error::new(ErrorKind::InvalidOperation, "the template makes too much text"))
            }
        }
    }

    /// Pays for a value that was made from smaller ones.
    fn charge_value(&self, value: &Value) -> Result<(), Error> {
        self.charge(match value.as_str() {
            Some(text) => text.len(),
            None => value.len().map_or(ITEM, |n| n.saturating_mul(ITEM)),
        })
    }

    pub(crate) fn exceeded(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// About how many bytes a JSON value holds.
pub(crate) fn json_size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(s) => s.len(),
        serde_json::Value::Array(items) => items.iter().map(json_size).sum::<usize>() + items.len() * ITEM,
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| k.len() + ITEM + json_size(v)).sum(),
        _ => 8,
    }
}

fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// `str(value)` of Python, paid for.
fn text_of(ledger: &Ledger, value: &Value) -> Result<String, Error> {
    let mut out = PaidText { ledger, text: String::new() };
    pyjson::write_str(&mut out, value).map_err(|_| wrong("the template makes too much text"))?;
    Ok(out.text)
}

struct PaidText<'a> {
    ledger: &'a Ledger,
    text: String,
}

impl Write for PaidText<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.ledger.charge(s.len()).map_err(|_| fmt::Error)?;
        self.text.push_str(s);
        Ok(())
    }
}

fn concat(ledger: &Ledger, a: &Value, b: &Value) -> Result<Value, Error> {
    let mut text = text_of(ledger, a)?;
    text.push_str(&text_of(ledger, b)?);
    Ok(Value::from(text))
}

fn whole(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        ValueKind::Bool => Some(value.is_true().into()),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool).then(|| f64::try_from(value.clone()).ok())?
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn impossible(op: &str, a: &Value, b: &Value) -> Error {
    wrong(format!("cannot use {op} on {} and {}", a.kind(), b.kind()))
}

fn add(ledger: &Ledger, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        ledger.charge(left.len() + right.len())?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(a) && is_list(b) {
        let count = a.len().unwrap_or(0).saturating_add(b.len().unwrap_or(0));
        ledger.charge(count.saturating_mul(ITEM))?;
        return Ok(Value::from(a.try_iter()?.chain(b.try_iter()?).collect::<Vec<_>>()));
    }
    match (whole(a), whole(b), number(a), number(b)) {
        (Some(x), Some(y), ..) => x.checked_add(y).map(integer).ok_or_else(|| impossible("+", a, b)),
        (.., Some(x), Some(y)) => Ok(Value::from(x + y)),
        _ => Err(impossible("+", a, b)),
    }
}

fn mul(ledger: &Ledger, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (whole(a), whole(b)) {
        return x.checked_mul(y).map(integer).ok_or_else(|| impossible("*", a, b));
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(Value::from(x * y));
    }
    let (thing, count) = match (whole(a), whole(b)) {
        (None, Some(n)) => (a, n),
        (Some(n), None) => (b, n),
        _ => return Err(impossible("*", a, b)),
    };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = thing.as_str() {
        ledger.charge(text.len().saturating_mul(count))?;
        return Ok(Value::from(text.repeat(count)));
    }
    if !is_list(thing) {
        return Err(impossible("*", a, b));
    }
    let items: Vec<Value> = thing.try_iter()?.collect();
    ledger.charge(items.len().saturating_mul(ITEM).saturating_mul(count))?;
    let many = items.len().saturating_mul(count);
    Ok(Value::from(items.into_iter().cycle().take(many).collect::<Vec<_>>()))
}

fn integer(n: i128) -> Value {
    i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)
}

/// The size of `text` with `from` replaced by `to`, checked before it is made.
fn charge_replace(ledger: &Ledger, text: &str, from: &str, to: &str) -> Result<(), Error> {
    let count = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() };
    ledger.charge(text.len().saturating_add(count.saturating_mul(to.len())))
}

fn join(ledger: &Ledger, items: &Value, glue: &str, attribute: Option<&Value>) -> Result<Value, Error> {
    let mut out = PaidText { ledger, text: String::new() };
    let full = |_| wrong("the template makes too much text");
    for (i, item) in items.try_iter()?.enumerate() {
        if i > 0 {
            out.write_str(glue).map_err(full)?;
        }
        let item = match attribute {
            Some(name) => item.get_item(name)?,
            None => item,
        };
        pyjson::write_str(&mut out, &item).map_err(full)?;
    }
    Ok(Value::from(out.text))
}

fn indent(ledger: &Ledger, text: &str, width: &Value, first: bool, blank: bool) -> Result<Value, Error> {
    let pad = match (width.as_str(), width.as_usize()) {
        (Some(pad), _) => pad.to_owned(),
        (None, Some(n)) if n <= 1000 => " ".repeat(n),
        _ => return Err(wrong("an indent of this width")),
    };
    ledger.charge((pad.len() + 1).saturating_mul(text.lines().count() + 1).saturating_add(text.len()))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || i == 0 || !line.trim().is_empty()) {
            out.push_str(&pad);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `%`- and `{}`-formats may ask for any width: only short numbers are let through.
fn check_format(format: &str) -> Result<(), Error> {
    let long = format.as_bytes().windows(4).any(|w| w.iter().all(u8::is_ascii_digit));
    if long { Err(wrong("a format with a long number")) } else { Ok(()) }
}

/// Methods of Python's strings, lists and dictionaries, paid for.
fn method(
    ledger: &Ledger,
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let argument = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or("");
    match (value.as_str(), name) {
        (Some(text), "replace") => charge_replace(ledger, text, argument(0), argument(1))?,
        (Some(glue), "join") => {
            let items = args.first().ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            return join(ledger, items, glue, None);
        }
        (Some(text), "format") => check_format(text)?,
        (Some(text), "split" | "splitlines") => ledger.charge(text.len().saturating_mul(ITEM))?,
        (Some(text), _) => ledger.charge(text.len())?,
        (None, _) => ledger.charge(value.len().unwrap_or(1).saturating_mul(ITEM))?,
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

type Shared = Arc<Ledger>;

/// The environment of one rendering: only what is named here exists.
pub(crate) fn environment(ledger: &Shared) -> Environment<'static> {
    let mut env = Environment::empty();
    add_operators(&mut env, ledger);
    add_functions(&mut env);
    add_filters(&mut env, ledger);
    add_list_filters(&mut env, ledger);
    add_tests(&mut env);
    let paid = ledger.clone();
    env.set_unknown_method_callback(move |state, value, name, args| method(&paid, state, value, name, args));
    let paid = ledger.clone();
    env.set_formatter(move |out, _state, value| {
        let text = text_of(&paid, value)?;
        out.write_str(&text).map_err(|_| wrong("the template writes too much text"))
    });
    env
}

fn add_operators(env: &mut Environment, ledger: &Shared) {
    let paid = ledger.clone();
    env.add_function(CONCAT, move |a: Value, b: Value| concat(&paid, &a, &b));
    let paid = ledger.clone();
    env.add_function(ADD, move |a: Value, b: Value| add(&paid, &a, &b));
    let paid = ledger.clone();
    env.add_function(MUL, move |a: Value, b: Value| mul(&paid, &a, &b));
}

fn add_functions(env: &mut Environment) {
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);
    env.add_function("namespace", functions::namespace);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(wrong(message)) });
    env.add_function("strftime_now", |format: String| {
        check_format(&format)?;
        Ok::<_, Error>(clock::strftime_now(&format))
    });
}

fn add_filters(env: &mut Environment, ledger: &Shared) {
    let paid = ledger.clone();
    env.add_filter("tojson", move |value: Value, options: Kwargs| {
        let options = pyjson::Options::from_kwargs(&options)?;
        let mut out = PaidText { ledger: &paid, text: String::new() };
        pyjson::write_json(&mut out, &value, &options).map_err(|_| wrong("this value cannot become JSON"))?;
        Ok::<_, Error>(Value::from(out.text))
    });
    let paid = ledger.clone();
    env.add_filter("string", move |value: Value| text_of(&paid, &value));
    let paid = ledger.clone();
    env.add_filter("replace", move |text: String, from: String, to: String| {
        charge_replace(&paid, &text, &from, &to)?;
        Ok::<_, Error>(text.replace(&from, &to))
    });
    let paid = ledger.clone();
    env.add_filter("join", move |items: Value, glue: Option<String>, options: Kwargs| {
        let attribute: Option<Value> = options.get("attribute")?;
        let named: Option<String> = options.get("d")?;
        join(&paid, &items, &glue.or(named).unwrap_or_default(), attribute.as_ref())
    });
    let paid = ledger.clone();
    env.add_filter(
        "indent",
        move |text: String,
              width: Option<Value>,
              first: Option<bool>,
              blank: Option<bool>,
              options: Kwargs| {
            let width = width.or(options.get("width")?).unwrap_or_else(|| Value::from(4));
            let first = first.or(options.get("first")?).unwrap_or(false);
            indent(&paid, &text, &width, first, blank.or(options.get("blank")?).unwrap_or(false))
        },
    );
    for (name, change) in [
        ("upper", str::to_uppercase as fn(&str) -> String),
        ("lower", str::to_lowercase),
        ("safe", str::to_owned),
    ] {
        let paid = ledger.clone();
        env.add_filter(name, move |text: Value| {
            let text = text_of(&paid, &text)?;
            paid.charge(text.len().saturating_mul(3))?;
            Ok::<_, Error>(change(&text))
        });
    }
    let paid = ledger.clone();
    env.add_filter("format", move |format: String, args: Rest<Value>| {
        check_format(&format)?;
        for value in args.iter() {
            paid.charge_value(value)?;
        }
        percent_format(&paid, &format, &args)
    });
    env.add_filter("escape", filters::escape);
    env.add_filter("e", filters::escape);
    env.add_filter("trim", filters::trim);
    env.add_filter("title", filters::title);
    env.add_filter("capitalize", filters::capitalize);
    // An undefined value is empty in Jinja.
    for name in ["length", "count"] {
        env.add_filter(
            name,
            |value: Value| {
                if value.is_undefined() { Ok(0) } else { filters::length(&value) }
            },
        );
    }
    env.add_filter("default", filters::default);
    env.add_filter("d", filters::default);
    env.add_filter("first", filters::first);
    env.add_filter("last", filters::last);
    env.add_filter("int", filters::int);
    env.add_filter("float", filters::float);
    env.add_filter("abs", filters::abs);
    env.add_filter("round", filters::round);
    env.add_filter("attr", filters::attr);
    env.add_filter("min", filters::min);
    env.add_filter("max", filters::max);
    env.add_filter("sum", filters::sum);
}

/// `%s` and `%d` of Python.
fn percent_format(ledger: &Ledger, format: &str, args: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('%')) => out.push('%'),
            ('%', Some('s' | 'd')) => {
                let value = args.next().ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
                out.push_str(&text_of(ledger, value)?);
            }
            ('%', _) => return Err(wrong("a format other than %s and %d")),
            (c, _) => out.push(c),
        }
    }
    Ok(Value::from(out))
}

/// Filters that make a list of what they are given: paid for by its length.
fn add_list_filters(env: &mut Environment, ledger: &Shared) {
    fn pay(ledger: &Ledger, value: &Value) -> Result<(), Error> {
        ledger.charge(value.len().unwrap_or(1).saturating_mul(ITEM))
    }
    macro_rules! plain {
        ($($name:literal => $filter:path),*) => {$({
            let paid = ledger.clone();
            env.add_filter($name, move |value: Value| {
                pay(&paid, &value)?;
                $filter(&value)
            });
        })*};
    }
    plain!("items" => filters::items, "reverse" => filters::reverse);
    macro_rules! with_options {
        ($($name:literal => $filter:path),*) => {$({
            let paid = ledger.clone();
            env.add_filter($name, move |state: &mut State, value: Value, options: Kwargs| {
                pay(&paid, &value)?;
                $filter(state, value, options)
            });
        })*};
    }
    with_options!("sort" => filters::sort, "unique" => filters::unique);
    let paid = ledger.clone();
    env.add_filter("dictsort", move |value: Value, options: Kwargs| {
        pay(&paid, &value)?;
        filters::dictsort(&value, options)
    });
    let paid = ledger.clone();
    env.add_filter("list", move |state: &mut State, value: Value| {
        pay(&paid, &value)?;
        filters::list(state, value)
    });
    let paid = ledger.clone();
    env.add_filter("split", move |text: String, by: Option<String>, most: Option<i64>| {
        paid.charge(text.len().saturating_mul(ITEM))?;
        filters::split(&Value::from(text), by.map(Arc::from), most)
    });
    let paid = ledger.clone();
    env.add_filter("map", move |state: &mut State, value: Value, args: Rest<_>| {
        pay(&paid, &value)?;
        filters::map(state, value, args)
    });
    let paid = ledger.clone();
    env.add_filter("select", move |state: &mut State, value: Value, test: Option<String>, args: Rest<_>| {
        pay(&paid, &value)?;
        filters::select(state, value, test.map(Into::into), args)
    });
    let paid = ledger.clone();
    env.add_filter("reject", move |state: &mut State, value: Value, test: Option<String>, args: Rest<_>| {
        pay(&paid, &value)?;
        filters::reject(state, value, test.map(Into::into), args)
    });
    let paid = ledger.clone();
    env.add_filter(
        "selectattr",
        move |state: &mut State, value: Value, name: String, test: Option<String>, args: Rest<_>| {
            pay(&paid, &value)?;
            filters::selectattr(state, value, name.into(), test.map(Into::into), args)
        },
    );
    let paid = ledger.clone();
    env.add_filter(
        "rejectattr",
        move |state: &mut State, value: Value, name: String, test: Option<String>, args: Rest<_>| {
            pay(&paid, &value)?;
            filters::rejectattr(state, value, name.into(), test.map(Into::into), args)
        },
    );
}

fn add_tests(env: &mut Environment) {
    env.add_test("defined", checks::is_defined);
    env.add_test("undefined", checks::is_undefined);
    env.add_test("none", checks::is_none);
    env.add_test("boolean", checks::is_boolean);
    env.add_test("true", checks::is_true);
    env.add_test("false", checks::is_false);
    env.add_test("string", checks::is_string);
    env.add_test("number", checks::is_number);
    env.add_test("integer", checks::is_integer);
    env.add_test("float", checks::is_float);
    env.add_test("mapping", checks::is_mapping);
    env.add_test("iterable", checks::is_iterable);
    // In Python strings and dictionaries are sequences too.
    env.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("odd", checks::is_odd);
    env.add_test("even", checks::is_even);
    env.add_test("divisibleby", checks::is_divisibleby);
    env.add_test("lower", checks::is_lower);
    env.add_test("upper", checks::is_upper);
    env.add_test("in", checks::is_in);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, checks::is_eq);
    }
    for name in ["ne", "!="] {
        env.add_test(name, checks::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, checks::is_lt);
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, checks::is_gt);
    }
    for name in ["le", "<="] {
        env.add_test(name, checks::is_le);
    }
    for name in ["ge", ">="] {
        env.add_test(name, checks::is_ge);
    }
}
