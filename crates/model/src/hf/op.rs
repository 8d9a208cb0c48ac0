//! What happens to a tensor between Hugging Face's layout and GGUF's.

use crate::Error;
use crate::view::{Columns, Run, View};
use fonio_checkpoint::TensorInfo;
use fonio_codec::list;

/// What happens to a tensor's values from Hugging Face's layout to GGUF's; the way back undoes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Nothing.
    Same,
    /// Nothing, and only on the way back: newer files have the tensor in another form.
    Back,
    /// 1 is added; the result is `F32`.
    AddOne,
    /// `−exp(x)`; the result is `F32`.
    NegExp,
    /// Rows of each head go from halves to neighbouring pairs; the key counts the heads.
    PairRows(&'static str),
    /// The last two dimensions change places.
    Transpose,
    /// Dimensions of 1 go; on the way back one is put before the last. The result is `F32`.
    Squeeze,
    /// Dimensions of 1 are added until there are two, behind the others; on the way back they go.
    Column,
    /// [`Op::NegExp`] and [`Op::Column`].
    NegExpColumn,
    /// Nothing, but the result is `F32` whatever its shape.
    Widen,
    /// One dimension is left; on the way back there are two of 1 before it. The result is `F32`.
    Vector,
    /// One dimension is left; on the way back the last has so many values as the key says. The result is `F32`.
    Flat(&'static str),
    /// A dimension is put before the only one, with so many rows as the key says; on the way back it goes.
    Groups(&'static str),
    /// A row of several that have one tensor, with dimensions of 1 between: which one, and of how many.
    Row(usize, usize),
    /// The last number of the name counts the matrices of one tensor.
    Stack,
    /// One of the two rows in turn of a stack: 0 the first. Floats have rows and columns in each other's place.
    GateUp(usize),
    /// As [`Op::Transpose`] for floats; packed weights have the rows of GGUF already.
    TransposeFloats,
    /// A part of the rows of each head of the way up from a latent vector, with rows and columns in each other's place.
    KeyUp,
    /// The other part, as it is.
    ValueUp,
}

/// A tensor of the files that a tensor of the view is made of.
pub(super) struct Source {
    pub at: usize,
    pub op: Op,
    /// The number that the view's name lacks.
    pub index: usize,
    /// Its own name, for errors.
    pub name: String,
}

/// Numbers of the configuration that ops ask for.
pub(super) type Count<'a> = &'a dyn Fn(&str) -> Option<u64>;

fn wrong(view: &View, source: &Source, reason: String) -> Error {
    let inner = view.inner();
    let file = inner.tensors().get(source.at).and_then(|info| inner.files().get(info.file));
    Error::Config { file: file.cloned().unwrap_or_default(), key: source.name.clone(), reason }
}

fn dim(info: &TensorInfo, from_last: usize) -> u64 {
    info.shape.iter().rev().nth(from_last).copied().unwrap_or(1)
}

/// Rows of a matrix or of several; none if they are empty.
fn rows(info: &TensorInfo) -> u64 {
    if info.shape.contains(&0) { 0 } else { info.shape.iter().rev().skip(1).product() }
}

/// Adds the tensor `name` with GGUF's layout.
pub(super) fn import(
    view: &mut View,
    name: String,
    sources: &[Source],
    count: Count<'_>,
) -> Result<(), Error> {
    let [source, rest @ ..] = sources else { return Ok(()) };
    match source.op {
        Op::Stack => return stack(view, name, sources),
        Op::Row(_, n) => return row_stack(view, name, sources, n),
        _ => {}
    }
    if let Some(second) = rest.first() {
        return Err(wrong(view, second, format!("means the same as {}: {name}", source.name)));
    }
    let at = source.at;
    let info = view.inner().tensors()[at].clone();
    match source.op {
        Op::Same | Op::Back if info.shape.len() <= 1 && info.dtype != list::F32 => {
            view.push_mapped(name, at, info.shape, |x| x)
        }
        Op::Same | Op::Back | Op::Stack | Op::Row(..) => view.push_same(name, at, info.shape),
        Op::Widen => view.push_mapped(name, at, info.shape, |x| x),
        Op::Vector | Op::Flat(_) => view.push_mapped(name, at, vec![info.len()], |x| x),
        Op::Groups(key) => {
            let shape = parts(view, source, &info, count(key))?;
            view.push_mapped(name, at, shape, |x| x)
        }
        Op::NegExpColumn => view.push_mapped(name, at, column(&info.shape), |x| -x.exp()),
        Op::AddOne => view.push_mapped(name, at, info.shape, |x| x + 1.0),
        Op::NegExp => view.push_mapped(name, at, info.shape, |x| -x.exp()),
        Op::Squeeze => view.push_mapped(name, at, flat(&info.shape), |x| x),
        Op::Column => view.push_mapped(name, at, column(&info.shape), |x| x),
        Op::PairRows(key) => {
            let per_head = rows_per_head(view, source, &info, count(key))?;
            view.push_rows(name, pairs_of_halves(at, pair_rows(&info), per_head), info.shape)
        }
        Op::Transpose => view.push_transposed(name, at, Columns::ALL),
        Op::TransposeFloats if info.dtype.is_quantized() => view.push_same(name, at, info.shape),
        Op::TransposeFloats => view.push_transposed(name, at, Columns::ALL),
        Op::GateUp(k) => gate_up(view, name, source, &info, k),
        Op::KeyUp | Op::ValueUp => {
            let (heads, key, value) = latent_heads(view, source, &info, count)?;
            let head = |h: u64, first: u64, n: u64| Run::new(at, h * (key + value) + first, 1, n);
            let cols = dim(&info, 0);
            if source.op == Op::KeyUp {
                let runs = (0..heads).map(|h| head(h, 0, key)).collect();
                view.push_gathered_transposed(name, runs, key, vec![heads, cols, key])
            } else {
                let runs = (0..heads).map(|h| head(h, key, value)).collect();
                view.push_rows(name, runs, vec![heads, value, cols])
            }
        }
    }
}

/// Adds the tensor `name` with Hugging Face's layout.
pub(super) fn export(
    view: &mut View,
    name: String,
    sources: &[Source],
    count: Count<'_>,
) -> Result<(), Error> {
    let Some(source) = sources.first() else { return Ok(()) };
    let at = source.at;
    let info = view.inner().tensors()[at].clone();
    let whole = match source.op {
        Op::GateUp(_) | Op::KeyUp | Op::ValueUp => 2,
        _ => 1,
    };
    if sources.len() != whole {
        let n = sources.len();
        return Err(wrong(view, source, format!("{name} is made of {whole} tensors, the file has {n}")));
    }
    match source.op {
        Op::Same | Op::Back | Op::Widen => view.push_same(name, at, info.shape),
        Op::Vector => view.push_same(name, at, vec![1, 1, info.len()]),
        Op::Flat(key) => {
            let last = count(key).filter(|&n| n > 0).unwrap_or(1);
            let shape = parts(view, source, &info, Some(info.len() / last))?;
            view.push_same(name, at, shape)
        }
        Op::Groups(_) => view.push_same(name, at, vec![info.len()]),
        Op::Row(i, n) => {
            let row = parts(view, source, &info, Some(n as u64))?[1];
            view.push_values_of_runs(name, vec![Run::new(at, i as u64 * row, 1, row)], vec![1, 1, row])
        }
        Op::AddOne => view.push_mapped(name, at, info.shape, |x| x - 1.0),
        Op::NegExp => view.push_mapped(name, at, info.shape, |x| (-x).ln()),
        Op::Squeeze => {
            let mut shape = flat(&info.shape);
            shape.insert(shape.len().saturating_sub(1), 1);
            view.push_same(name, at, shape)
        }
        Op::Column => view.push_mapped(name, at, flat(&info.shape), |x| x),
        Op::NegExpColumn => view.push_mapped(name, at, flat(&info.shape), |x| (-x).ln()),
        Op::PairRows(key) => {
            let per_head = rows_per_head(view, source, &info, count(key))?;
            view.push_rows(name, halves_of_pairs(at, pair_rows(&info), per_head), info.shape)
        }
        Op::Transpose => view.push_transposed(name, at, Columns::ALL),
        Op::TransposeFloats if info.dtype.is_quantized() => view.push_same(name, at, info.shape),
        Op::TransposeFloats => view.push_transposed(name, at, Columns::ALL),
        Op::Stack => {
            let shape = info.shape.get(1..).unwrap_or_default().to_vec();
            let n = shape.iter().rev().skip(1).product();
            view.push_rows(name, vec![Run::new(at, source.index as u64 * n, 1, n)], shape)
        }
        Op::GateUp(_) => gate_and_up(view, name, sources, &info),
        Op::KeyUp | Op::ValueUp => latent_up(view, name, sources),
    }
}

/// Two dimensions at least.
fn column(shape: &[u64]) -> Vec<u64> {
    match shape {
        [n] => vec![*n, 1],
        more => more.to_vec(),
    }
}

/// Without dimensions of 1, but with one dimension at least.
fn flat(shape: &[u64]) -> Vec<u64> {
    let several: Vec<u64> = shape.iter().copied().filter(|&n| n != 1).collect();
    if several.is_empty() { vec![1] } else { several }
}

/// Two dimensions, the first with so many rows.
fn parts(view: &View, source: &Source, info: &TensorInfo, n: Option<u64>) -> Result<Vec<u64>, Error> {
    match n {
        Some(n) if n > 0 && info.len().is_multiple_of(n) => Ok(vec![n, info.len() / n]),
        _ => {
            let (len, n) = (info.len(), n.unwrap_or(0));
            Err(wrong(view, source, format!("{len} values are not {n} whole parts")))
        }
    }
}

/// Vectors of the same length as rows of one tensor.
fn row_stack(view: &mut View, name: String, sources: &[Source], n: usize) -> Result<(), Error> {
    let mut sorted: Vec<&Source> = sources.iter().collect();
    sorted.sort_by_key(|s| match s.op {
        Op::Row(i, _) => i,
        _ => n,
    });
    let len = |source: &Source| view.inner().tensors()[source.at].len();
    let row = len(sorted[0]);
    for (i, source) in sorted.iter().enumerate() {
        if source.op != Op::Row(i, n) || len(source) != row {
            return Err(wrong(view, source, format!("is not number {i} of {n} vectors of {row} values")));
        }
    }
    if sorted.len() != n {
        let reason = format!("{name} is made of {n} tensors, the files have {}", sorted.len());
        return Err(wrong(view, sorted[0], reason));
    }
    let runs = sorted.iter().map(|s| Run::new(s.at, 0, 1, row)).collect();
    view.push_values_of_runs(name, runs, vec![n as u64, 1, 1, row])
}

/// Rows of a matrix, or values of a vector.
fn pair_rows(info: &TensorInfo) -> u64 {
    if info.shape.len() <= 1 { info.len() } else { rows(info) }
}

fn rows_per_head(view: &View, source: &Source, info: &TensorInfo, heads: Option<u64>) -> Result<u64, Error> {
    let rows = pair_rows(info);
    match heads {
        Some(n) if n > 0 && rows.is_multiple_of(n) && (rows / n).is_multiple_of(2) => Ok(rows / n),
        _ => {
            let n = heads.unwrap_or(0);
            Err(wrong(view, source, format!("{rows} rows are not {n} whole heads of pairs")))
        }
    }
}

/// Neighbouring pairs out of heads whose pairs are half a head apart.
fn pairs_of_halves(at: usize, rows: u64, per_head: u64) -> Vec<Run> {
    let half = per_head / 2;
    let heads = (0..rows / per_head).map(|h| h * per_head);
    heads.flat_map(|head| (0..half).map(move |i| Run::new(at, head + i, half, 2))).collect()
}

/// The other way.
fn halves_of_pairs(at: usize, rows: u64, per_head: u64) -> Vec<Run> {
    let half = per_head / 2;
    let heads = (0..rows / per_head).map(|h| h * per_head);
    heads.flat_map(|head| [Run::new(at, head, 2, half), Run::new(at, head + 1, 2, half)]).collect()
}

fn stack(view: &mut View, name: String, sources: &[Source]) -> Result<(), Error> {
    let mut sorted: Vec<&Source> = sources.iter().collect();
    sorted.sort_by_key(|s| s.index);
    let first = view.inner().tensors()[sorted[0].at].clone();
    let mut runs = Vec::with_capacity(sorted.len());
    for (want, source) in sorted.iter().enumerate() {
        let info = &view.inner().tensors()[source.at];
        if source.index != want {
            return Err(wrong(view, source, format!("number {want} of the stack is not there")));
        }
        if info.shape != first.shape || info.dtype != first.dtype {
            return Err(wrong(view, source, "differs in shape or type from the first of its stack".into()));
        }
        runs.push(Run::new(source.at, 0, 1, pair_rows(info)));
    }
    let mut shape = vec![sorted.len() as u64];
    shape.extend(&first.shape);
    view.push_rows(name, runs, shape)
}

/// Biases have a value where weights have a row.
fn is_bias(source: &Source) -> bool {
    source.name.ends_with("bias")
}

fn gate_up(view: &mut View, name: String, source: &Source, info: &TensorInfo, k: usize) -> Result<(), Error> {
    let transposed = !info.dtype.is_quantized() && !is_bias(source);
    let from_last = if is_bias(source) || transposed { 0 } else { 1 };
    let both = dim(info, from_last);
    if !both.is_multiple_of(2) {
        return Err(wrong(view, source, format!("{both} rows are not as many gates as others")));
    }
    if transposed {
        return view.push_transposed(name, source.at, Columns { first: k as u64, step: 2 });
    }
    let mut shape = info.shape.clone();
    let at = shape.len() - 1 - from_last;
    shape[at] /= 2;
    let matrices: u64 = shape[..at].iter().product();
    let run = |m: u64| Run::new(source.at, m * both + k as u64, 2, both / 2);
    let runs = (0..matrices).map(run).collect();
    if is_bias(source) {
        view.push_values_of_runs(name, runs, shape)
    } else {
        view.push_rows(name, runs, shape)
    }
}

fn gate_and_up(view: &mut View, name: String, sources: &[Source], info: &TensorInfo) -> Result<(), Error> {
    let mut sorted: Vec<&Source> = sources.iter().collect();
    sorted.sort_by_key(|s| s.op != Op::GateUp(0));
    let (gate, up) = (sorted[0], sorted[1]);
    let other = &view.inner().tensors()[up.at];
    if other.shape != info.shape || other.dtype != info.dtype || gate.op == up.op {
        return Err(wrong(view, up, "does not fit the gate".into()));
    }
    let bias = is_bias(gate);
    let n: u64 = if bias { info.len() } else { rows(info) };
    let runs: Vec<Run> =
        (0..n).flat_map(|i| [Run::new(gate.at, i, 1, 1), Run::new(up.at, i, 1, 1)]).collect();
    let mut shape = info.shape.clone();
    let at = shape.len() - if bias { 1 } else { 2 };
    shape[at] *= 2;
    if bias {
        view.push_values_of_runs(name, runs, shape)
    } else if info.dtype.is_quantized() {
        view.push_rows(name, runs, shape)
    } else {
        let per_matrix = shape[at];
        shape.swap(at, at + 1);
        view.push_gathered_transposed(name, runs, per_matrix, shape)
    }
}

/// Heads, and rows of each head's key and value.
fn latent_heads(
    view: &View,
    source: &Source,
    info: &TensorInfo,
    count: Count<'_>,
) -> Result<(u64, u64, u64), Error> {
    let heads = count("attention.head_count").unwrap_or(0);
    let value = count("attention.value_length_mla").unwrap_or(0);
    let key = count("attention.key_length_mla").and_then(|n| n.checked_sub(count("rope.dimension_count")?));
    match key {
        Some(key) if heads.checked_mul(key + value) == Some(rows(info)) && heads > 0 && key > 0 => {
            Ok((heads, key, value))
        }
        _ => {
            let rows = rows(info);
            Err(wrong(view, source, format!("{rows} rows are not {heads} heads of keys and values")))
        }
    }
}

/// Each head's key rows, which GGUF has as columns, and then its value rows.
fn latent_up(view: &mut View, name: String, sources: &[Source]) -> Result<(), Error> {
    let mut sorted: Vec<&Source> = sources.iter().collect();
    sorted.sort_by_key(|s| s.op != Op::KeyUp);
    let (key, value) = (sorted[0], sorted[1]);
    let [heads, rank, nope] = view.inner().tensors()[key.at].shape[..] else {
        return Err(wrong(view, key, "is no stack of matrices".into()));
    };
    let info = view.inner().tensors()[value.at].clone();
    let n = dim(&info, 1);
    if key.op == value.op || info.shape != [heads, n, rank] || info.shape.contains(&0) || nope == 0 {
        return Err(wrong(view, value, "does not fit the keys".into()));
    }
    if info.dtype != view.inner().tensors()[key.at].dtype {
        return Err(wrong(view, value, "is of another type than the keys".into()));
    }
    view.push_transposed(name.clone(), key.at, Columns::ALL)?;
    let keys = view.hide_last()?;
    let of_head = |h: u64| [Run::new(keys, h * nope, 1, nope), Run::new(value.at, h * n, 1, n)];
    view.push_rows(name, (0..heads).flat_map(of_head).collect(), vec![heads * (nope + n), rank])
}
