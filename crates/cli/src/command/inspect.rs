//! `fonio inspect`: what is in a model file.

use crate::args::Context;
use crate::error::one_line;
use crate::{model_path, output};
use fonio_checkpoint::{Array, Checkpoint, TensorInfo, Term, Value};
use fonio_codec::list;
use fonio_model::source::Source;
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

/// Values of a long array and characters of a long text that are shown.
const SHOWN: usize = 6;
const SHOWN_TEXT: usize = 72;

#[derive(clap::Args)]
pub struct Arguments {
    /// A file or folder
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// List the tensors
    #[arg(long)]
    tensors: bool,
    /// List the metadata
    #[arg(long)]
    metadata: bool,
    /// List everything, with long arrays and texts in full
    #[arg(long)]
    all: bool,
    /// As JSON; long arrays are cut unless --all
    #[arg(long)]
    json: bool,
}

/// What the file is as a whole.
struct Summary {
    files: Vec<(String, u64)>,
    values: u64,
    bytes: u64,
    /// By type: tensors, values, bytes.
    types: BTreeMap<&'static str, (u64, u64, u64)>,
    /// The model, or why it is none.
    model: Result<Source, String>,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        let path = model_path::resolve(&self.file)?;
        let checkpoint = fonio_checkpoint::open(&path)?;
        let checkpoint = checkpoint.as_ref();
        let summary = Summary::new(&path, checkpoint);
        if self.json {
            return output::json(&self.as_json(&path, checkpoint, &summary));
        }
        let mut text = summary.as_text(checkpoint);
        if self.metadata || self.all {
            text += "\nMETADATA\n";
            for (key, value) in metadata(checkpoint, &summary) {
                text += &format!("{} = {}\n", one_line(&key), one_line(&value_text(&value, self.all)));
            }
        }
        if self.tensors || self.all {
            text.push('\n');
            text += &tensors(checkpoint);
        }
        output::write(text)
    }

    fn as_json(&self, path: &std::path::Path, checkpoint: &dyn Checkpoint, summary: &Summary) -> Json {
        let metadata: Map<String, Json> = metadata(checkpoint, summary)
            .into_iter()
            .map(|(key, value)| (key, value_json(&value, self.all)))
            .collect();
        let tensors: Vec<Json> = checkpoint
            .tensors()
            .iter()
            .enumerate()
            .map(|(at, t)| {
                let (name, bytes) = stored(checkpoint, at, t, &mut HashSet::new());
                json!({
                    "name": t.name, "type": name, "shape": t.shape,
                    "file": t.file, "offset": t.offset, "bytes": bytes, "sum": parts(checkpoint, at),
                })
            })
            .collect();
        let types: Map<String, Json> = summary
            .types
            .iter()
            .map(|(name, (n, values, bytes))| {
                ((*name).into(), json!({ "tensors": n, "values": values, "bytes": bytes }))
            })
            .collect();
        let model = summary.model.as_ref().ok().map(|source| {
            let spec = source.spec();
            json!({
                "architecture": source.architecture().name,
                "assumed": source.assumed(),
                "context": spec.context_len,
                "vocab_size": spec.vocab_size,
                "dim": spec.dim,
                "layers": spec.layers.len(),
            })
        });
        json!({
            "path": path.display().to_string(),
            "container": checkpoint.container(),
            "files": summary.files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
            "parameters": summary.values,
            "tensor_bytes": summary.bytes,
            "bits_per_weight": output::bits_per_weight(summary.bytes, summary.values),
            "model": model,
            "not_a_model_because": summary.model.as_ref().err(),
            "types": types,
            "metadata": metadata,
            "tensors": tensors,
        })
    }
}

/// The file's metadata; a Hugging Face folder's are those of its configuration, under GGUF's names.
fn metadata(checkpoint: &dyn Checkpoint, summary: &Summary) -> Vec<(String, Value)> {
    let own = checkpoint.metadata();
    let derived = summary.model.as_ref().ok().filter(|source| source.folder().is_some());
    let derived = derived.map(|source| source.checkpoint().metadata());
    let all = own.iter().chain(derived.into_iter().flat_map(|m| m.iter()));
    all.map(|(key, value)| (key.to_owned(), value.clone())).collect()
}

impl Summary {
    fn new(path: &std::path::Path, checkpoint: &dyn Checkpoint) -> Summary {
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let files = checkpoint.files().iter().map(|f| (f.display().to_string(), size(f))).collect();
        let mut types = BTreeMap::new();
        let (mut values, mut bytes) = (0u64, 0u64);
        let mut counted = HashSet::new();
        for (at, tensor) in checkpoint.tensors().iter().enumerate() {
            let (name, nbytes) = stored(checkpoint, at, tensor, &mut counted);
            let entry: &mut (u64, u64, u64) = types.entry(name).or_default();
            *entry = (entry.0 + 1, entry.1.saturating_add(tensor.len()), entry.2.saturating_add(nbytes));
            values = values.saturating_add(tensor.len());
            bytes = bytes.saturating_add(nbytes);
        }
        let model = Source::open(path).map_err(|e| e.to_string());
        // Planes of quantized weights hold several values in a word, and none in a scale.
        let planes = [list::I32, list::I8, list::U8, list::F8_E4M3, list::F8_E5M2];
        let packed = checkpoint.tensors().iter().any(|t| planes.contains(&t.dtype));
        if let Some(source) = model.as_ref().ok().filter(|_| packed) {
            values = source.checkpoint().tensors().iter().fold(0, |n, t| t.len().saturating_add(n));
        }
        Summary { files, values, bytes, types, model }
    }

    fn as_text(&self, checkpoint: &dyn Checkpoint) -> String {
        let mut text = format!("container      {}\n", checkpoint.container());
        for (path, bytes) in &self.files {
            text += &format!("file           {} ({})\n", one_line(path), output::bytes(*bytes));
        }
        match &self.model {
            Ok(source) => {
                let spec = source.spec();
                text += &format!("architecture   {}\n", source.architecture().name);
                let name = source.checkpoint().metadata().get("general.name").and_then(|v| v.as_str());
                if let Some(name) = name {
                    text += &format!("name           {}\n", one_line(name));
                }
                if let Some(words) = source.assumed() {
                    text += &format!("assumed        {}\n", one_line(words));
                }
                text += &format!("context        {}\n", spec.context_len);
                text += &format!("vocabulary     {}\n", spec.vocab_size);
                text += &format!("layers         {} of width {}\n", spec.layers.len(), spec.dim);
            }
            Err(reason) => text += &format!("not a model    {}\n", one_line(reason)),
        }
        text += &format!("parameters     {} ({})\n", self.values, output::count(self.values));
        let bits = output::bits_per_weight(self.bytes, self.values);
        text += &format!("weights        {}, {bits:.3} bits each\n", output::bytes(self.bytes));
        text += &format!("metadata       {} keys (--metadata lists them)\n", checkpoint.metadata().len());
        text += &format!("tensors        {} (--tensors lists them)\n\n", checkpoint.tensors().len());
        let rows: Vec<Vec<String>> = self
            .types
            .iter()
            .map(|(name, (n, values, bytes))| {
                let share = *bytes as f64 * 100.0 / self.bytes.max(1) as f64;
                vec![
                    (*name).into(),
                    n.to_string(),
                    output::count(*values),
                    output::bytes(*bytes),
                    format!("{share:.1} %"),
                    format!("{:.3}", output::bits_per_weight(*bytes, *values)),
                ]
            })
            .collect();
        let head = ["TYPE", "TENSORS", "VALUES", "SIZE", "SHARE", "BITS/WEIGHT"];
        text + &output::table(&head, &[false, true, true, true, true, true], &rows)
    }
}

/// What a tensor takes in its file, and the type of it: of a sum that begins with blocks, theirs. A plane that several
/// tensors share is counted once in all.
fn stored(
    checkpoint: &dyn Checkpoint,
    at: usize,
    tensor: &TensorInfo,
    counted: &mut HashSet<usize>,
) -> (&'static str, u64) {
    let mut terms = sums(checkpoint, at).flat_map(|sum| checkpoint.terms(sum)).peekable();
    let Some(first) = terms.peek() else { return (tensor.dtype.name(), tensor.nbytes) };
    let name = match **first {
        Term::Whole { plane } => checkpoint.info(plane).map_or("sum", |plane| plane.dtype.name()),
        _ => "sum",
    };
    let planes = terms.flat_map(|term| term.planes());
    let planes = planes.filter(|plane| counted.insert(*plane)).filter_map(|plane| checkpoint.info(plane));
    (name, planes.fold(0, |n, plane| plane.nbytes.saturating_add(n)))
}

/// A tensor, or the matrices that it is a stack of.
fn sums(checkpoint: &dyn Checkpoint, at: usize) -> Range<usize> {
    let stack = checkpoint.matrices(at);
    if stack.is_empty() { at..at + 1 } else { stack }
}

/// Of what parts a tensor is the sum; of a stack what its first matrix is, which is what the others are as a rule.
fn parts(checkpoint: &dyn Checkpoint, at: usize) -> Option<String> {
    let plane = |plane: usize| checkpoint.info(plane);
    let part = |term: &Term| match *term {
        Term::Whole { plane: p } => plane(p).map_or("?", |p| p.dtype.name()).to_owned(),
        Term::Product { left, .. } => format!("L{}", plane(left).map_or(0, |p| p.row_len())),
        Term::Band { plane: p, .. } => {
            format!("D{}", plane(p).and_then(|p| p.shape.first()).copied().unwrap_or(0))
        }
        Term::Sparse { columns, .. } => format!("S{}", plane(columns).map_or(0, TensorInfo::len)),
        Term::Vectors { .. } => "R".to_owned(),
    };
    let sums = sums(checkpoint, at);
    let parts: Vec<String> = checkpoint.terms(sums.start).iter().map(part).collect();
    let parts = Some(parts.join(" + ")).filter(|parts| !parts.is_empty())?;
    Some(match checkpoint.matrices(at).len() {
        0 => parts,
        n => format!("{n} × ({parts}, …)"),
    })
}

fn tensors(checkpoint: &dyn Checkpoint) -> String {
    let rows: Vec<Vec<String>> = checkpoint
        .tensors()
        .iter()
        .enumerate()
        .map(|(at, t)| {
            let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
            let (name, bytes) = stored(checkpoint, at, t, &mut HashSet::new());
            let kind = if name == "sum" { parts(checkpoint, at) } else { None };
            vec![t.name.clone(), kind.unwrap_or_else(|| name.into()), shape.join(" × "), output::bytes(bytes)]
        })
        .collect();
    output::table(&["TENSOR", "TYPE", "SHAPE", "SIZE"], &[false, false, false, true], &rows)
}

/// The entries of an array, all or the first ones, as JSON.
fn entries(array: &Array, most: usize) -> (Vec<Json>, usize) {
    fn of<T: Copy + Into<Json>>(list: &[T], most: usize) -> (Vec<Json>, usize) {
        (list.iter().take(most).map(|&x| x.into()).collect(), list.len())
    }
    match array {
        Array::U8(x) => of(x, most),
        Array::I8(x) => of(x, most),
        Array::U16(x) => of(x, most),
        Array::I16(x) => of(x, most),
        Array::U32(x) => of(x, most),
        Array::I32(x) => of(x, most),
        Array::F32(x) => of(x, most),
        Array::Bool(x) => of(x, most),
        Array::U64(x) => of(x, most),
        Array::I64(x) => of(x, most),
        Array::F64(x) => of(x, most),
        Array::String(x) => (x.iter().take(most).map(Json::from).collect(), x.len()),
    }
}

fn value_json(value: &Value, all: bool) -> Json {
    match value {
        Value::U8(x) => (*x).into(),
        Value::I8(x) => (*x).into(),
        Value::U16(x) => (*x).into(),
        Value::I16(x) => (*x).into(),
        Value::U32(x) => (*x).into(),
        Value::I32(x) => (*x).into(),
        Value::F32(x) => (*x).into(),
        Value::Bool(x) => (*x).into(),
        Value::U64(x) => (*x).into(),
        Value::I64(x) => (*x).into(),
        Value::F64(x) => (*x).into(),
        Value::String(x) => x.as_str().into(),
        Value::Array(array) => {
            let (first, len) = entries(array, if all { usize::MAX } else { SHOWN });
            if first.len() == len { Json::Array(first) } else { json!({ "length": len, "first": first }) }
        }
    }
}

fn value_text(value: &Value, all: bool) -> String {
    match value {
        Value::Array(array) => {
            let (first, len) = entries(array, if all { usize::MAX } else { SHOWN });
            let shown: Vec<String> = first.iter().map(Json::to_string).collect();
            let more = if first.len() < len { format!(", … ({len} in all)") } else { String::new() };
            format!("[{}{more}]", shown.join(", "))
        }
        Value::String(text) if !all && text.chars().count() > SHOWN_TEXT => {
            let first: String = text.chars().take(SHOWN_TEXT).collect();
            format!("{:?}… ({} bytes)", first, text.len())
        }
        other => value_json(other, all).to_string(),
    }
}
