//! Whether a file is what it says: structure, sizes, checksums, finite values, and, for a known architecture, every
//! tensor and the tokenizer that it needs.

use crate::Error;
use fonio_checkpoint::{Checkpoint, Checksums};
use fonio_kernel::Pool;
use fonio_model::Model;
use fonio_model::source::Source;
use fonio_simd::Isa;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The container's name.
    pub container: &'static str,
    /// Tensors whose values were all looked at.
    pub tensors: usize,
    /// Their values.
    pub values: u64,
    /// Checksums that were compared.
    pub checksums: Checksums,
    /// The architecture, if the file is a model.
    pub architecture: Option<&'static str>,
    /// What is wrong; none if the file is fine.
    pub problems: Vec<String>,
}

/// Values that are unpacked together.
const PIECE: u64 = 1 << 20;

/// Looks at everything. A file that cannot be opened at all is an error; what is wrong inside is in the report.
pub fn run(
    path: &Path,
    threads: usize,
    isa: Isa,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report, Error> {
    let checkpoint = fonio_checkpoint::open(path)?;
    let mut problems = Vec::new();
    let checksums = checkpoint.verify_checksums().unwrap_or_else(|e| {
        problems.push(e.to_string());
        Checksums::None
    });
    let values = finite(checkpoint.as_ref(), threads, isa, progress, &mut problems);
    let is_model = path.is_dir() || Source::is_whole(checkpoint.as_ref());
    let mut architecture = None;
    if is_model {
        match model(path) {
            Ok(name) => architecture = Some(name),
            Err(e) => problems.push(e.to_string()),
        }
    }
    let (container, tensors) = (checkpoint.container(), checkpoint.tensors().len());
    Ok(Report { container, tensors, values, checksums, architecture, problems })
}

/// Binds every tensor and makes the tokenizer.
fn model(path: &Path) -> Result<&'static str, Error> {
    let source = Source::open(path)?;
    let spec = source.spec().clone();
    let vocab_size = spec.vocab_size;
    Model::load(spec, source.checkpoint().clone())?;
    let tokens = source.tokenizer()?.vocab_size();
    if tokens > vocab_size {
        return Err(Error::Request(format!("the tokenizer has {tokens} tokens, the embedding {vocab_size}")));
    }
    source.chat_template(&source.tokenizer()?)?;
    Ok(source.architecture().name)
}

/// Unpacks every tensor and looks for values that are not finite. Gives the number of values.
fn finite(
    checkpoint: &dyn Checkpoint,
    threads: usize,
    isa: Isa,
    progress: &(dyn Fn(u64, u64) + Sync),
    problems: &mut Vec<String>,
) -> u64 {
    let mut pieces = Vec::new();
    for (tensor, info) in checkpoint.tensors().iter().enumerate() {
        let row = info.row_len().max(1);
        let rows = info.len() / row;
        let step = (PIECE / row).max(1);
        pieces.extend((0..rows.div_ceil(step)).map(|i| (tensor, i * step, step.min(rows - i * step))));
    }
    let total: u64 = checkpoint.tensors().iter().map(|t| t.len()).sum();
    let done = AtomicU64::new(0);
    let found = Mutex::new(Vec::new());
    Pool::new(threads).each(
        pieces.len(),
        1,
        || (),
        |(), range| {
            for &(tensor, first, rows) in &pieces[range] {
                if let Err(problem) = look(checkpoint, tensor, first, rows, isa) {
                    found
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((tensor, first, problem));
                }
                let n = rows * checkpoint.tensors()[tensor].row_len();
                progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
            }
        },
    );
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort();
    found.dedup_by_key(|f| f.0);
    problems.extend(found.into_iter().map(|(_, _, problem)| problem));
    total
}

fn look(checkpoint: &dyn Checkpoint, tensor: usize, first: u64, rows: u64, isa: Isa) -> Result<(), String> {
    let info = &checkpoint.tensors()[tensor];
    let name = &info.name;
    let row_bytes =
        info.dtype.bytes_for(info.row_len()).ok_or_else(|| format!("{name}: rows are no whole blocks"))?;
    let size = |n: u64| usize::try_from(n).map_err(|e| format!("{name}: {e}"));
    let mut bytes = vec![0; size(row_bytes * rows)?];
    checkpoint.read(tensor, row_bytes * first, &mut bytes).map_err(|e| e.to_string())?;
    let mut values = vec![0f32; size(rows * info.row_len())?];
    info.dtype.dequantize(isa, &bytes, &mut values).map_err(|e| format!("{name}: {e}"))?;
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let place = first * info.row_len() + at as u64;
            Err(format!(
                "{name}: value {place} is {} (row {}, column {})",
                values[at],
                place / info.row_len().max(1),
                place % info.row_len().max(1)
            ))
        }
    }
}
