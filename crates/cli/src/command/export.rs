//! `fonio export`: dense matrices of any container.

use crate::args::{Context, ThreadArgs};
use crate::command::convert;
use crate::error::{failed, usage};
use crate::progress::Progress;
use crate::{interrupt, model_path, output};
use fonio_checkpoint::cawsf::File;
use fonio_checkpoint::{Checkpoint, Metadata, TensorPlan, WriteOptions, list as containers};
use fonio_codec::list;
use fonio_model::source::Source;
use fonio_quantize::convert::{Plan, Settings, Target};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Arguments {
    /// A file or folder
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where it goes: a folder, or a .gguf file; for one matrix also a .safetensors file
    #[arg(short, long, visible_alias = "out", value_name = "OUT")]
    output: PathBuf,
    /// One matrix alone, by its number or its name, as F32
    #[arg(long, value_name = "N|NAME")]
    scope: Option<String>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = model_path::resolve(&self.file)?;
        let is = |name: &str| containers::by_extension(&self.output).is_some_and(|c| c.name == name);
        if let Some(scope) = &self.scope {
            let opened = fonio_checkpoint::open(&path)?;
            let at = find(&path, opened.as_ref(), scope)?;
            let info = opened.info(at).ok_or_else(|| failed(format!("there is no scope {at}")))?;
            let mut plan = Plan::floats(opened.as_ref(), Metadata::new(), Some(list::F32));
            plan.sources = vec![at];
            plan.tensors = vec![TensorPlan::new(info.name.clone(), list::F32, info.shape.clone())];
            let out = match is("gguf") || is("safetensors") {
                true => self.output.clone(),
                false => self.folder()?.join(format!("{}.safetensors", info.name.replace(['/', '\\'], "_"))),
            };
            return self.write(context, opened.as_ref(), &plan, &out);
        }
        if !is("gguf") {
            let json = self.json;
            return convert::Arguments::into_folder(self.file, self.output, self.threads, self.force, json)
                .run(context);
        }
        let opened = fonio_checkpoint::open(&path)?;
        match Source::open(&path) {
            Ok(source) => {
                let metadata = source.complete_metadata()?;
                let checkpoint = source.checkpoint().as_ref();
                let mut plan = Plan::new(checkpoint, source.spec(), metadata, &Target::Keep, &[])?;
                plan.widen(checkpoint, |dtype| dtype.ggml_type().is_some());
                self.write(context, checkpoint, &plan, &self.output)
            }
            // Matrices without a model are matrices still.
            Err(reason) if !Source::is_whole(opened.as_ref()) => {
                context.note(format_args!("note: no model: {}", crate::error::one_line(&reason.to_string())));
                let plan = Plan::floats(opened.as_ref(), opened.metadata().clone(), Some(list::F32));
                self.write(context, opened.as_ref(), &plan, &self.output)
            }
            Err(reason) => Err(reason.into()),
        }
    }

    /// The folder, made if it is not there.
    fn folder(&self) -> anyhow::Result<&Path> {
        let folder = &self.output;
        std::fs::create_dir_all(folder).map_err(|e| failed(format!("{}: {e}", folder.display())))?;
        Ok(folder)
    }

    fn write(
        &self,
        context: &Context,
        checkpoint: &dyn Checkpoint,
        plan: &Plan,
        out: &Path,
    ) -> anyhow::Result<()> {
        let container = containers::by_extension(out).ok_or_else(|| failed("no such container"))?;
        let progress = Progress::new(context, "export", plan.len());
        let listening = interrupt::listen();
        let settings = Settings {
            threads: self.threads.count()?,
            isa: context.isa,
            write: WriteOptions { force: self.force, ..WriteOptions::default() },
            progress: &|done, tensor| progress.at(done, tensor),
            cancel: Some(interrupt::flag()),
        };
        let files = fonio_quantize::convert::run(checkpoint, plan, container, out, &settings);
        drop(listening);
        drop(progress);
        let files: Vec<String> = files?.iter().map(|f| f.display().to_string()).collect();
        if self.json {
            return output::json(&json!({
                "source": self.file.display().to_string(),
                "files": files,
                "tensors": plan.tensors.len(),
                "parameters": plan.len(),
                "tensor_bytes": plan.nbytes(),
            }));
        }
        let (n, size) = (plan.tensors.len(), output::bytes(plan.nbytes()));
        context.note(format_args!("{}: {n} tensors, {size}", files.join(", ")));
        Ok(())
    }
}

/// The tensor of a name or a number; version 1 of CAWSF has numbers of its own. A matrix of a stack has the stack's name
/// with `#` and its place, and a number behind all tensors'.
pub fn find(path: &Path, opened: &dyn Checkpoint, scope: &str) -> anyhow::Result<usize> {
    if let Some(at) = opened.find(scope) {
        return Ok(at);
    }
    let tensors = opened.tensors().len();
    let of_stack = scope.rsplit_once('#').and_then(|(stack, place)| {
        let matrices = opened.matrices(opened.find(stack)?);
        matrices.clone().nth(place.parse().ok()?)
    });
    let number: Option<usize> = scope.parse().ok();
    let at = match number {
        Some(number) if opened.container() == "cawsf" => match File::open(path)? {
            File::V1(file) => file.scopes().iter().position(|s| usize::from(s.id) == number),
            File::V2(_) => Some(number),
        },
        other => other.or(of_stack),
    };
    let known = || {
        let names: Vec<&str> = opened.tensors().iter().take(5).map(|t| t.name.as_str()).collect();
        format!("it has {tensors} tensors: {}, …", names.join(", "))
    };
    let is_matrix = |at: usize| (0..tensors).any(|tensor| opened.matrices(tensor).contains(&at));
    let found = at.filter(|at| *at < tensors || is_matrix(*at));
    found.ok_or_else(|| {
        usage(format!("--scope {scope}: {} has no such matrix", path.display())).hint(known()).into()
    })
}
