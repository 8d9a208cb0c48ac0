//! `fonio apply`: a matrix of a CAWSF file times a vector, without the matrix.

use crate::args::Context;
use crate::command::export::find;
use crate::error::{failed, usage};
use crate::{model_path, output};
use fonio_checkpoint::cawsf::File;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// A CAWSF file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Number of the matrix, or its name
    #[arg(long, value_name = "N|NAME")]
    scope: String,
    #[command(flatten)]
    vector: Vector,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Vector {
    /// The vector: a file of little-endian 32-bit floats, one for each column
    #[arg(long, value_name = "FILE")]
    x: Option<PathBuf>,
    /// A vector of so many ones, for a try: the sums of the rows
    #[arg(long, value_name = "COLS")]
    xlen: Option<u64>,
}

impl Arguments {
    pub fn run(self, _: &Context) -> anyhow::Result<()> {
        let path = model_path::resolve(&self.file)?;
        let file = File::open(&path)?;
        let at = find(&path, file.checkpoint(), &self.scope)?;
        let checkpoint = file.checkpoint();
        let info = checkpoint.info(at).ok_or_else(|| failed(format!("there is no scope {at}")))?;
        if info.shape.len() != 2 {
            let no_matrix = usage(format!("--scope {}: {} is no matrix", self.scope, info.name));
            return Err(match checkpoint.matrices(at).len() {
                0 => no_matrix,
                n => no_matrix.hint(format!("it is a stack of {n}: {0}#0 to {0}#{1}", info.name, n - 1)),
            }
            .into());
        }
        let x = self.vector.values(info.row_len())?;
        let y = match &file {
            File::V1(file) => file.apply(file.scopes()[at].id, &x)?,
            File::V2(file) => file.apply(at, &x)?,
        };
        if self.json {
            let number = match &file {
                File::V1(file) => usize::from(file.scopes()[at].id),
                File::V2(_) => at,
            };
            return output::json(&json!({
                "path": path.display().to_string(),
                "scope": number,
                "name": info.name,
                "rows": info.shape[0],
                "cols": info.shape[1],
                "y": y,
            }));
        }
        output::write(y.iter().map(|y| format!("{y}\n")).collect::<String>())
    }
}

impl Vector {
    /// As many values as there are columns: anything else is refused before it is read.
    fn values(&self, cols: u64) -> anyhow::Result<Vec<f32>> {
        if let Some(path) = &self.x {
            return floats(path, cols);
        }
        let len = self.xlen.unwrap_or(0);
        if len != cols {
            return Err(usage(format!("--xlen {len}: the matrix has {cols} columns")).into());
        }
        let len = usize::try_from(len).map_err(|_| failed(format!("no memory for {len} values")))?;
        Ok(vec![1.0; len])
    }
}

fn floats(path: &Path, cols: u64) -> anyhow::Result<Vec<f32>> {
    let io = |e: std::io::Error| failed(format!("{}: {e}", path.display()));
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() || Some(meta.len()) != cols.checked_mul(4) {
        let (path, len) = (path.display(), meta.len());
        let message = format!("--x {path}: {len} bytes; {cols} columns are 4 bytes each");
        return Err(usage(message).into());
    }
    let bytes = std::fs::read(path).map_err(io)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect())
}
