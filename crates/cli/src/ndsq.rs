//! `fonio convert` to a CAWSF file: what is taken out of matrices, and how.

use crate::args::Context;
use crate::progress::Progress;
use crate::{interrupt, output};
use anyhow::Context as _;
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::{Checkpoint, Resume, list as containers};
use fonio_engine::{Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{Override, Plan, Target};
use fonio_quantize::decompose::{self, Activations, Conversion, DEFAULT_TEXT, Report, Settings};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A relative error from which on a model no longer makes sense; 0.01 to 0.02 is what four bits give.
const WORTHLESS: f64 = 0.1;

/// Flags of conversions to CAWSF alone.
#[derive(clap::Args, Default)]
#[command(next_help_heading = "Options of .cawsf files")]
pub struct NdsqArgs {
    /// Rank of the part of low rank, L, as far as it takes no more than a quarter of a matrix's 16-bit size; 0 for no
    /// L [default: 64]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Diagonals of D, around the main one; 0 for no D [default: the main one where it stands out]
    #[arg(long, value_name = "N")]
    band: Option<usize>,
    /// Quantile of magnitudes from which on values are outliers, S; 1 for no S [default: 0.999]
    #[arg(long, value_name = "Q")]
    outlier_q: Option<f64>,
    /// Parts that vectors are cut into for the product quantization of the rest, R; 0 for no R [default: 8]
    #[arg(long, value_name = "M")]
    pq_m: Option<usize>,
    /// Entries of a part's table, 256 at most [default: 256]
    #[arg(long, value_name = "K")]
    pq_k: Option<usize>,
    /// Values of a vector [default: 128]
    #[arg(long, value_name = "D")]
    pq_d: Option<usize>,
    /// How many times L and R are found anew, each of what the other leaves [default: 0]
    #[arg(long, value_name = "N")]
    refine: Option<usize>,
    /// Layers whose matrices are decomposed, from the first on; 0 for all [default: 0]
    #[arg(long, value_name = "N")]
    max_layers: Option<u64>,
    /// Values of a matrix that is decomposed, at most; 0 for any [default: 0]
    #[arg(long, value_name = "N")]
    max_elems: Option<u64>,
    /// A text that the model is run over, to know what in its matrices matters; `none` for none [default: a short text
    /// of fonio's own]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// What random numbers are drawn from [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What `fonio convert` was asked for besides.
pub struct Request<'a> {
    pub source: &'a Path,
    pub output: &'a Path,
    pub quant: Option<&'a str>,
    pub tensor_type: &'a [String],
    pub packing: Packing,
    pub threads: usize,
    pub force: bool,
    pub resume: Resume,
    pub dry_run: bool,
    pub json: bool,
}

/// A source: a model that can be run, or just matrices.
enum Opened {
    Model(Box<Engine>),
    Matrices(Arc<dyn Checkpoint>),
}

impl NdsqArgs {
    /// Whether the output is a CAWSF file.
    pub fn wanted(to: Option<&str>, output: &Path) -> bool {
        let named = to.and_then(containers::named);
        let meant = if to.is_some() { named } else { containers::by_extension(output) };
        meant.is_some_and(|c| c.name == "cawsf") && !output.is_dir()
    }

    /// The first of these flags that was given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            ("rank", self.rank.is_some()),
            ("band", self.band.is_some()),
            ("outlier-q", self.outlier_q.is_some()),
            ("pq-m", self.pq_m.is_some()),
            ("pq-k", self.pq_k.is_some()),
            ("pq-d", self.pq_d.is_some()),
            ("refine", self.refine.is_some()),
            ("max-layers", self.max_layers.is_some()),
            ("max-elems", self.max_elems.is_some()),
            ("calibration", self.calibration.is_some()),
            ("seed", self.seed.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    fn settings(&self) -> Settings {
        let usual = Settings::default();
        Settings {
            rank: self.rank.unwrap_or(usual.rank),
            band: self.band,
            outlier_q: self.outlier_q.unwrap_or(usual.outlier_q),
            pq_m: self.pq_m.unwrap_or(usual.pq_m),
            pq_k: self.pq_k.unwrap_or(usual.pq_k),
            pq_d: self.pq_d.unwrap_or(usual.pq_d),
            refine: self.refine.unwrap_or(usual.refine),
            seed: self.seed.unwrap_or(usual.seed),
        }
    }

    /// The text to run over, if any.
    fn text(&self) -> anyhow::Result<Option<String>> {
        match &self.calibration {
            None => Ok(Some(DEFAULT_TEXT.to_owned())),
            Some(path) if path.as_os_str() == "none" => Ok(None),
            Some(path) => std::fs::read_to_string(path).map(Some).with_context(|| path.display().to_string()),
        }
    }

    /// Converts, or says what would be done.
    pub fn run(&self, context: &Context, request: &Request<'_>) -> anyhow::Result<()> {
        let (settings, text) = (self.settings(), self.text()?);
        settings.check()?;
        let named = request.tensor_type.iter().map(|text| text.parse());
        let overrides = named.collect::<Result<Vec<Override>, _>>()?;
        let target = Target::named(request.quant.unwrap_or("Q8_0"))?;
        let options = Options { threads: request.threads, isa: context.isa, ..Options::default() };
        let opened = open(context, request, options)?;
        let (checkpoint, plan, known) = match &opened {
            Opened::Model(engine) => {
                let source = engine.source();
                context.assumed(source);
                let checkpoint = source.checkpoint().clone();
                let metadata = source.complete_metadata()?;
                let plan = Plan::new(checkpoint.as_ref(), source.spec(), metadata, &target, &overrides)?;
                (checkpoint, plan, true)
            }
            Opened::Matrices(checkpoint) => {
                let plan = Plan::floats(checkpoint.as_ref(), checkpoint.metadata().clone(), None);
                (checkpoint.clone(), plan, false)
            }
        };
        let (layers, elems) = (self.max_layers.unwrap_or(0), self.max_elems.unwrap_or(0));
        let sums = decompose::scopes(&plan, known, &overrides, layers, elems);
        let matrices = decompose::count(&plan, &sums);
        if request.dry_run {
            return show(context, request, checkpoint.as_ref(), &plan, matrices, None);
        }
        fonio_checkpoint::output::refuse_source(request.output, checkpoint.files())?;
        let start = Instant::now();
        let listening = interrupt::listen();
        let activations = match (&opened, text) {
            (Opened::Model(engine), Some(text)) => {
                let progress = Progress::new(context, "calibrate", 0);
                let of: Vec<usize> = sums.iter().map(|at| plan.sources[*at]).collect();
                let told = |done: usize, all: usize| progress.at_of(done as u64, all as u64, "");
                let cancel = Some(interrupt::flag());
                Some(Activations::collect(engine, &of, &text, settings.seed, &told, cancel)?)
            }
            _ => None,
        };
        let progress = Progress::new(context, "convert", plan.len());
        let conversion = Conversion {
            settings,
            packing: request.packing,
            max_layers: layers,
            max_elems: elems,
            force: request.force,
            resume: Some(request.resume.clone()),
            threads: request.threads,
            isa: context.isa,
            progress: &|done, tensor| progress.at(done, tensor),
            cancel: Some(interrupt::flag()),
        };
        let report = decompose::run(
            checkpoint.as_ref(),
            &plan,
            &sums,
            activations.as_ref(),
            request.output,
            &conversion,
        );
        drop(listening);
        drop(progress);
        let done = (report?, start.elapsed().as_secs_f64());
        context.resumed(done.0.resumed);
        show(context, request, checkpoint.as_ref(), &plan, matrices, Some(done))
    }
}

/// A file that is no model is still a set of matrices; why it is none is said.
fn open(context: &Context, request: &Request<'_>, options: Options) -> anyhow::Result<Opened> {
    let reason = match Engine::open(request.source, options) {
        Ok(engine) => return Ok(Opened::Model(Box::new(engine))),
        Err(e) => e,
    };
    match fonio_checkpoint::open(request.source) {
        Ok(checkpoint) if Source::open(request.source).is_err() && !Source::is_whole(checkpoint.as_ref()) => {
            context.note(format_args!(
                "note: matrices are decomposed under their own names, without a model: {}",
                crate::error::one_line(&reason.to_string())
            ));
            Ok(Opened::Matrices(checkpoint.into()))
        }
        _ => Err(reason.into()),
    }
}

fn show(
    context: &Context,
    request: &Request<'_>,
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    sums: usize,
    done: Option<(Report, f64)>,
) -> anyhow::Result<()> {
    let from: u64 = checkpoint.tensors().iter().map(|t| t.nbytes).sum();
    let (report, seconds) = done.map_or((None, None), |(report, seconds)| (Some(report), Some(seconds)));
    let parts = report.as_ref().map(|r| r.parts).unwrap_or_default();
    let own = report.as_ref().map_or(0.0, |r| output::bits_per_weight(parts.iter().sum(), r.values));
    if request.json {
        return output::json(&json!({
            "source": request.source.display().to_string(),
            "output": request.output.display().to_string(),
            "container": "cawsf",
            "dry_run": request.dry_run,
            "parameters": plan.len(),
            "source_bytes": from,
            "sums": sums,
            "file_bytes": report.as_ref().map(|r| r.nbytes),
            "bits_per_weight": report.as_ref().map(|r| output::bits_per_weight(r.nbytes, plan.len())),
            "bits_per_weight_of_sums": report.as_ref().map(|_| own),
            "relative_error": report.as_ref().map(|r| r.error),
            "parts": report.as_ref().map(|_| json!({
                "L": parts[0], "D": parts[1], "S": parts[2], "R": parts[3], "codebooks": parts[4],
            })),
            "seconds": seconds,
        }));
    }
    if request.dry_run || context.verbose {
        context.note(format_args!("{sums} matrices of {} tensors become sums", plan.tensors.len()));
    }
    let (Some(report), Some(seconds)) = (report, seconds) else { return Ok(()) };
    if report.error > WORTHLESS {
        context.note(format_args!(
            "note: a relative error of {:.2} leaves little of a model; --rank 16 --pq-m 64 keeps far more",
            report.error
        ));
    }
    let shown = ["L", "D", "S", "R", "codebooks"].iter().zip(parts).filter(|(_, n)| *n > 0);
    let shown: Vec<String> = shown.map(|(name, n)| format!("{name} {}", output::bytes(n))).collect();
    context.note(format_args!(
        "{}: {} → {} ({:.2} bits per weight), in {seconds:.1} s\n  {sums} matrices as sums: {} ({own:.2} bits per weight), relative error {:.4}",
        request.output.display(),
        output::bytes(from),
        output::bytes(report.nbytes),
        output::bits_per_weight(report.nbytes, plan.len()),
        if shown.is_empty() { "none".into() } else { shown.join(", ") },
        report.error,
    ));
    Ok(())
}
