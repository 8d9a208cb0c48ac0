//! `fonio convert`: another container, other types.
//!
//! What a source becomes is settled first, as a [`Job`]: tensors, metadata, files beside them. Showing it
//! (`--dry-run`) and doing it are then the same for all.

use crate::args::{Context, ThreadArgs};
use crate::error::{failed, usage};
use crate::folder_out::{self, Companions};
use crate::ndsq::{NdsqArgs, Request};
use crate::progress::Progress;
use crate::{interrupt, model_path, output};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::{
    Checkpoint, Compression, Container, Metadata, Resume, TensorPlan, WriteOptions, list as containers,
};
use fonio_codec::{DType, list};
use fonio_model::keys::Config;
use fonio_model::{hf, prequant, source::Source};
use fonio_quantize::convert::{self, Override, Plan, Settings, Target, Written};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Arguments {
    /// A file, a Hugging Face folder, or a name from a local store
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes: a .gguf, .qsf, .cawsf or .safetensors file, or a folder in Hugging Face's layout
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// A recipe such as Q4_K_M or a type such as Q8_0 (`fonio types` lists them); for QSF also 2bit, 2bit_sym, 3bit, 4bit,
    /// 4bit_sym, 8bit, ternary, fp16, 2bit_outlier, 3bit_outlier, 4bit_outlier [default: 4bit for QSF, else types as
    /// they are]
    #[arg(long, visible_alias = "type", value_name = "RECIPE|TYPE")]
    quant: Option<String>,
    /// Values in a block of QSF's types: 32, 64, 128 or 256 [default: 64]
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// How many of a layer's values the types with outliers keep beside their blocks [default: 0.005]
    #[arg(long, value_name = "FRACTION")]
    outlier_frac: Option<f64>,
    /// Compress the layers of a QSF file, or the shards of a CAWSF file (which are unless `none` is said)
    #[arg(long, value_enum, value_name = "METHOD", num_args = 0..=1, default_missing_value = "lz4")]
    compress: Option<Method>,
    /// The container: gguf, qsf, cawsf or safetensors [default: what OUT's extension says]
    #[arg(long, value_name = "CONTAINER")]
    to: Option<String>,
    /// Another type for tensors whose GGUF name this regular expression finds; the first that fits counts
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<String>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Split so that files are no larger than this (500M, 2GB, 4GiB), where tensors allow
    #[arg(long, visible_alias = "split-max-size", value_name = "SIZE", value_parser = output::size)]
    max_shard_size: Option<u64>,
    /// Split so that files have no more tensors than this
    #[arg(long, value_name = "N")]
    split_max_tensors: Option<usize>,
    /// Go on with a conversion that was killed, if it was of the same; what is left after an error stays for the next
    #[arg(long)]
    resume: bool,
    /// Bytes between the points at which it can be gone on with
    #[arg(long, hide = true, value_name = "SIZE", value_parser = output::size, default_value = "64MiB")]
    resume_step: u64,
    /// Say what would be done and write nothing
    #[arg(long)]
    dry_run: bool,
    /// The summary as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ndsq: NdsqArgs,
}

/// How extents are compressed.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Method {
    Lz4,
    Zstd,
    None,
}

/// What will be done.
struct Job {
    checkpoint: Arc<dyn Checkpoint>,
    plan: Plan,
    container: &'static Container,
    /// The weights' file, or what shards are named after.
    out: PathBuf,
    companions: Companions,
}

/// Containers whose files have a model's configuration and tokenizer in them, so that a folder's files are made of them.
const WHOLE: [&str; 2] = ["gguf", "qsf"];

impl Arguments {
    /// A conversion into a folder, types as they are.
    pub fn into_folder(
        source: PathBuf,
        output: PathBuf,
        threads: ThreadArgs,
        force: bool,
        json: bool,
    ) -> Self {
        Arguments {
            source,
            output,
            quant: None,
            block_size: None,
            outlier_frac: None,
            compress: None,
            to: Some("safetensors".into()),
            tensor_type: Vec::new(),
            threads,
            force,
            max_shard_size: None,
            split_max_tensors: None,
            resume: false,
            resume_step: 64 << 20,
            dry_run: false,
            json,
            ndsq: NdsqArgs::default(),
        }
    }

    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let source = model_path::resolve(&self.source)?;
        if NdsqArgs::wanted(self.to.as_deref(), &self.output) {
            self.refuse("a .cawsf file", &self.only_qsf())?;
            self.refuse("a .cawsf file", &self.not_cawsf())?;
            return self.ndsq.run(
                context,
                &Request {
                    source: &source,
                    output: &self.output,
                    quant: self.quant.as_deref(),
                    tensor_type: &self.tensor_type,
                    packing: match self.compress {
                        None | Some(Method::Zstd) => Packing::Zstd,
                        Some(Method::Lz4) => Packing::Lz4,
                        Some(Method::None) => Packing::Raw,
                    },
                    threads: self.threads.count()?,
                    force: self.force,
                    resume: self.resume(),
                    dry_run: self.dry_run,
                    json: self.json,
                },
            );
        }
        if let Some(flag) = self.ndsq.first() {
            return Err(usage(format!("--{flag}: only for a .cawsf file")).into());
        }
        let (container, folder) = self.container()?;
        if container.name != "qsf" {
            self.refuse(&format!("{} output", container.name), &self.only_qsf())?;
            self.refuse(&format!("{} output", container.name), &[("compress", self.compress.is_some())])?;
        }
        let out = match &folder {
            Some(folder) => folder.join("model.safetensors"),
            None => self.output.clone(),
        };
        let job = match container.name {
            "safetensors" => self.to_safetensors(&source, container, out)?,
            _ => self.to_whole(context, &source, container, out)?,
        };
        if self.dry_run {
            return self.show(context, &job, None);
        }
        let beside = match job.out.parent() {
            Some(folder) if folder != Path::new("") => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        fonio_checkpoint::output::refuse_source(&job.out, job.checkpoint.files())?;
        if !job.companions.is_empty()
            && !WHOLE.contains(&job.checkpoint.container())
            && !Source::is_whole(job.checkpoint.as_ref())
        {
            // Its configuration would take the place of the source's.
            let folders: Vec<PathBuf> =
                job.checkpoint.files().iter().filter_map(|f| Some(f.parent()?.into())).collect();
            fonio_checkpoint::output::refuse_source(&beside, &folders)?;
        }
        let made = match &folder {
            Some(folder) if !folder.exists() => {
                std::fs::create_dir(folder).map_err(|e| failed(format!("{}: {e}", folder.display())))?;
                Some(folder)
            }
            _ => None,
        };
        let start = Instant::now();
        let written = self.write(context, &job, &beside);
        match written {
            Ok(files) => self.show(context, &job, Some((files, start.elapsed().as_secs_f64()))),
            Err(e) => {
                if let Some(folder) = made {
                    // Only an empty folder goes: what is in it is somebody's.
                    let _ = std::fs::remove_dir(folder);
                }
                Err(e)
            }
        }
    }

    /// Flags that mean something for QSF files alone, and whether they are given.
    fn only_qsf(&self) -> [(&'static str, bool); 2] {
        [("block-size", self.block_size.is_some()), ("outlier-frac", self.outlier_frac.is_some())]
    }

    /// Flags that mean nothing for CAWSF files, and whether they are given.
    fn not_cawsf(&self) -> [(&'static str, bool); 2] {
        [
            ("max-shard-size", self.max_shard_size.is_some()),
            ("split-max-tensors", self.split_max_tensors.is_some()),
        ]
    }

    /// An error that names the first flag that is given and would do nothing.
    fn refuse(&self, output: &str, flags: &[(&str, bool)]) -> anyhow::Result<()> {
        match flags.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(usage(format!("--{flag}: not for {output}")).into()),
            None => Ok(()),
        }
    }

    /// The container, and the folder if the output is one.
    fn container(&self) -> anyhow::Result<(&'static Container, Option<PathBuf>)> {
        let wanted = match &self.to {
            Some(name) => Some(containers::named(name).filter(|c| c.create.is_some()).ok_or_else(|| {
                let known: Vec<_> =
                    containers::ALL.iter().filter(|c| c.create.is_some()).map(|c| c.name).collect();
                usage(format!("--to {name}: fonio writes {}", known.join(", ")))
            })?),
            None => None,
        };
        let known = containers::by_extension(&self.output).filter(|_| !self.output.is_dir());
        match (wanted, known) {
            (Some(wanted), _) if wanted.name == "safetensors" && known.is_none() => {
                Ok((wanted, Some(self.output.clone())))
            }
            (Some(wanted), _) => Ok((wanted, None)),
            (None, Some(known)) if known.create.is_some() => Ok((known, None)),
            (None, Some(known)) => Err(usage(format!(
                "{}: {} files can be read but not written",
                self.output.display(),
                known.name
            ))
            .hint("--to gguf, --to qsf or --to safetensors says another container")
            .into()),
            (None, None) if self.output.extension().is_none() || self.output.is_dir() => {
                let folder =
                    containers::named("safetensors").ok_or_else(|| failed("safetensors is not built in"))?;
                Ok((folder, Some(self.output.clone())))
            }
            (None, None) => Err(usage(format!("{}: its extension says no container", self.output.display()))
                .hint("end it with .gguf, .qsf or .safetensors, or say --to")
                .into()),
        }
    }

    fn to_whole(
        &self,
        context: &Context,
        path: &Path,
        container: &'static Container,
        out: PathBuf,
    ) -> anyhow::Result<Job> {
        let target = self.target(container)?;
        let overrides =
            self.tensor_type.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, _>>()?;
        let source = Source::open(path)?;
        context.assumed(&source);
        let checkpoint = source.checkpoint().clone();
        let quantized = checkpoint.tensors().iter().find(|t| t.dtype.is_quantized());
        let changes = !matches!(target, Target::Keep) || !overrides.is_empty();
        if let Some(tensor) = quantized.filter(|_| changes) {
            context.note(format_args!(
                "note: the source is quantized already ({} is {}); from its original the result would be better",
                tensor.name, tensor.dtype
            ));
        }
        let metadata = source.complete_metadata()?;
        let mut plan = Plan::new(checkpoint.as_ref(), source.spec(), metadata, &target, &overrides)?;
        if container.name == "gguf" && matches!(target, Target::Keep) {
            plan.widen(checkpoint.as_ref(), |dtype| dtype.ggml_type().is_some());
        }
        Ok(Job { checkpoint, plan, container, out, companions: Vec::new() })
    }

    /// What tensors become in a file that is a whole model.
    fn target(&self, container: &Container) -> anyhow::Result<Target> {
        let is_qsf = container.name == "qsf";
        let has_outliers = |name: &str| name.to_ascii_lowercase().ends_with("_outlier");
        if self.outlier_frac.is_some() && !self.quant.as_deref().is_some_and(has_outliers) {
            return Err(usage("--outlier-frac: only for the types with outliers")
                .hint("--quant 2bit_outlier, 3bit_outlier or 4bit_outlier")
                .into());
        }
        let qsf = |name| Target::qsf(name, self.block_size.unwrap_or(64), self.outlier_frac.unwrap_or(0.005));
        match self.quant.as_deref() {
            Some(name) if is_qsf => Ok(qsf(name)?),
            Some(name) => match Target::named(name) {
                Err(_) if qsf(name).is_ok() => {
                    Err(usage(format!("--quant {name}: only QSF files have this type"))
                        .hint("end the output with .qsf, or say --to qsf")
                        .into())
                }
                target => Ok(target?),
            },
            None if is_qsf => Ok(qsf("4bit")?),
            None => Ok(Target::Keep),
        }
    }

    fn to_safetensors(
        &self,
        path: &Path,
        container: &'static Container,
        out: PathBuf,
    ) -> anyhow::Result<Job> {
        if let Some(text) = self.tensor_type.first() {
            return Err(usage(format!("--tensor-type {text}: only for GGUF and QSF")).into());
        }
        let dtype = match self.quant.as_deref().map(|name| (name, DType::named(name))) {
            None => None,
            Some((_, Some(dtype))) if [list::F32, list::F16, list::BF16].contains(&dtype) => Some(dtype),
            Some((name, _)) => {
                return Err(usage(format!("--quant {name}: safetensors output is F32, F16 or BF16"))
                    .hint("quantized types go into a .gguf or .qsf file")
                    .into());
            }
        };
        let opened: Arc<dyn Checkpoint> = fonio_checkpoint::open(path)?.into();
        if !WHOLE.contains(&opened.container()) && !Source::is_whole(opened.as_ref()) {
            // The names are Hugging Face's already: any architecture is fine, known or not.
            let folder = if path.is_dir() { Some(path) } else { path.parent() };
            let config = folder.map(|f| f.join("config.json")).filter(|file| file.is_file());
            let unpacked = match (config, dtype) {
                (Some(config), Some(_)) => prequant::unpacked(opened.clone(), &Config::read(&config)?)?,
                _ => None,
            };
            let plain = unpacked.is_some();
            let companions = folder.map(|f| folder_out::copied(f, dtype, plain)).transpose()?;
            let companions = companions.unwrap_or_default();
            let opened = unpacked.unwrap_or(opened);
            let mut metadata = Metadata::new();
            for (key, value) in opened.metadata().iter() {
                metadata.insert(key, value.clone());
            }
            let plan = Plan::floats(opened.as_ref(), metadata, dtype);
            return Ok(Job { checkpoint: opened, plan, container, out, companions });
        }
        let source = Source::open(path)?;
        // Experts in MXFP4 stay as they are, unless floats are asked for; other packed weights become floats.
        let kept = dtype.is_none().then_some(list::MXFP4);
        let packed =
            source.checkpoint().tensors().iter().any(|t| t.dtype.is_quantized() && Some(t.dtype) != kept);
        let (view, mut config) = hf::export(source.checkpoint(), kept, source.architecture(), source.spec())?;
        let checkpoint = prequant::mxfp4::export(Arc::new(view), &mut config)?;
        let mut plan = Plan::floats(checkpoint.as_ref(), Metadata::new(), dtype);
        if packed && dtype.is_none() {
            let unpacked = |t: &&mut TensorPlan| t.shape.len() > 1 && t.dtype == list::F32;
            plan.tensors.iter_mut().filter(unpacked).for_each(|t| t.dtype = list::F16);
        }
        let main = main_type(&plan).unwrap_or(list::F32);
        let companions = folder_out::made(&source, config, main)?;
        Ok(Job { checkpoint, plan, container, out, companions })
    }

    fn resume(&self) -> Resume {
        Resume { identity: Vec::new(), take_up: self.resume, step: self.resume_step }
    }

    fn write(&self, context: &Context, job: &Job, beside: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let progress = Progress::new(context, "convert", job.plan.len());
        let listening = interrupt::listen();
        let settings = Settings {
            threads: self.threads.count()?,
            isa: context.isa,
            write: WriteOptions {
                force: self.force,
                max_file_bytes: self.max_shard_size,
                max_file_tensors: self.split_max_tensors,
                compress: self.compress.and_then(|method| match method {
                    Method::Lz4 => Some(Compression::Lz4),
                    Method::Zstd => Some(Compression::Zstd),
                    Method::None => None,
                }),
                beside: job
                    .companions
                    .iter()
                    .map(|(name, bytes)| (beside.join(name), bytes.clone()))
                    .collect(),
                resume: Some(self.resume()),
            },
            progress: &|done, tensor| progress.at(done, tensor),
            cancel: Some(interrupt::flag()),
        };
        let written =
            convert::run_or_resume(job.checkpoint.as_ref(), &job.plan, job.container, &job.out, &settings);
        drop(listening);
        drop(progress);
        let Written { files, resumed } = written?;
        context.resumed(resumed);
        Ok(files)
    }

    fn show(&self, context: &Context, job: &Job, done: Option<(Vec<PathBuf>, f64)>) -> anyhow::Result<()> {
        let (values, bytes) = (job.plan.len(), job.plan.nbytes());
        let from: u64 = job.checkpoint.tensors().iter().map(|t| t.nbytes).sum();
        let mut types: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
        // Sums are nothing but their planes.
        for tensor in job.plan.tensors.iter().filter(|t| t.terms.is_empty()) {
            let entry = types.entry(tensor.dtype.name()).or_default();
            *entry = (entry.0 + 1, entry.1 + tensor.nbytes().unwrap_or(0));
        }
        let bits = output::bits_per_weight(bytes, values);
        let stored = done.as_ref().map(|(files, _)| {
            files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|m| m.len()).sum::<u64>()
        });
        if self.json {
            let types: Map<String, Json> = types
                .iter()
                .map(|(name, (n, bytes))| ((*name).into(), json!({ "tensors": n, "bytes": bytes })))
                .collect();
            let files = done.as_ref().map(|(files, _)| files.as_slice()).unwrap_or_default();
            return output::json(&json!({
                "source": self.source.display().to_string(),
                "output": self.output.display().to_string(),
                "container": job.container.name,
                "dry_run": self.dry_run,
                "files": files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>(),
                "parameters": values,
                "source_bytes": from,
                "tensor_bytes": bytes,
                "file_bytes": stored,
                "bits_per_weight": bits,
                "seconds": done.as_ref().map(|(_, seconds)| *seconds),
                "types": types,
            }));
        }
        if self.dry_run || context.verbose {
            for (tensor, &source) in job.plan.tensors.iter().zip(&job.plan.sources) {
                let from = job.checkpoint.tensors()[source].dtype;
                context.note(format_args!(
                    "{}: {from} → {}",
                    crate::error::one_line(&tensor.name),
                    tensor.dtype
                ));
            }
        }
        let list: Vec<String> = types
            .iter()
            .map(|(name, (n, bytes))| format!("{name} {n} ({})", output::bytes(*bytes)))
            .collect();
        let time = done.map_or_else(
            || "would be written".to_owned(),
            |(files, seconds)| match files.len() {
                1 => format!("in {seconds:.1} s"),
                n => format!("{n} files in {seconds:.1} s"),
            },
        );
        context.note(format_args!(
            "{}: {} → {} ({bits:.2} bits per weight), {time}\n  tensors: {}",
            self.output.display(),
            output::bytes(from),
            output::bytes(self.compress.and(stored).unwrap_or(bytes)),
            list.join(", ")
        ));
        Ok(())
    }
}

/// The type that most bytes have.
fn main_type(plan: &Plan) -> Option<DType> {
    let mut bytes: Vec<(DType, u64)> = Vec::new();
    // Planes of packed weights are bytes and no numbers.
    for tensor in plan.tensors.iter().filter(|t| t.dtype != list::U8) {
        let more = tensor.nbytes().unwrap_or(0);
        match bytes.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
            Some((_, n)) => *n += more,
            None => bytes.push((tensor.dtype, more)),
        }
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map(|(dtype, _)| dtype)
}
