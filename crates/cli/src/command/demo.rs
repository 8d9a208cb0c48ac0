//! `fonio demo`: the whole way, on the model that fonio brings along.

use crate::args::{Context, ThreadArgs};
use crate::chat_prompt::ChatPrompt;
use crate::error::{NOT_SOUND, failed, one_line, silent};
use crate::{embedded, interrupt, output};
use anyhow::Context as _;
use fonio_checkpoint::WriteOptions;
use fonio_engine::{Engine, Limits, Options, Sampler, SamplerOptions};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Settings, Target};
use fonio_quantize::{eval, verify};
use fonio_text::Message;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the model is converted to.
const RECIPES: &[&str] = &["Q8_0", "Q4_K_M"];
/// Bytes of the text that perplexity is measured on.
const TEXT_BYTES: usize = 12_000;
/// Tokens of a window.
const WINDOW: usize = 256;
/// What the smallest file continues, and what it is asked.
const BEGINNING: &str = "Once upon a time";
const QUESTION: &str = "What is the opposite of hot?";

#[derive(clap::Args)]
pub struct Arguments {
    /// Keep the converted files in this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl Arguments {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let threads = self.threads.count()?;
        let place = Place::new(self.output)?;
        let source = Source::open(&embedded::folder()?)?;
        let demo = Demo { context, threads, source };
        demo.introduce()?;
        let files = demo.convert(&place.folder)?;
        demo.verify(&files)?;
        demo.measure(&files)?;
        if let Some(smallest) = files.last() {
            demo.talk(smallest)?;
        }
        if place.temporary.is_none() {
            output::line(format_args!("\nThe files are in {}.", place.folder.display()))?;
        }
        output::line(format_args!(
            "\nTry it yourself: `fonio chat {}`, or `fonio run MODEL -p TEXT` with a model of yours.",
            embedded::NAME
        ))
    }
}

/// Where the converted files go.
struct Place {
    folder: PathBuf,
    /// The folder to remove at the end.
    temporary: Option<PathBuf>,
}

impl Place {
    fn new(wanted: Option<PathBuf>) -> anyhow::Result<Place> {
        if let Some(folder) = wanted {
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            return Ok(Place { folder, temporary: None });
        }
        for i in 0..1000 {
            let folder = std::env::temp_dir().join(format!("fonio-demo-{}-{i}", std::process::id()));
            // A folder of that name that is somebody else's is not used.
            if std::fs::create_dir(&folder).is_ok() {
                return Ok(Place { folder: folder.clone(), temporary: Some(folder) });
            }
        }
        Err(failed(format!("{}: no folder can be made there", std::env::temp_dir().display()))
            .hint("--output says another one")
            .into())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(folder) = &self.temporary {
            // What is left in a folder for temporary files is no harm.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

struct Demo<'a> {
    context: &'a Context,
    threads: usize,
    source: Source,
}

impl Demo<'_> {
    fn introduce(&self) -> anyhow::Result<()> {
        let tensors = self.source.checkpoint().tensors();
        let values: u64 = tensors.iter().map(|t| t.len()).sum();
        let bytes: u64 = tensors.iter().map(|t| t.nbytes).sum();
        output::line(format_args!(
            "{}: a language model of {} parameters ({} of weights, {}), embedded in this program",
            embedded::NAME,
            output::count(values),
            output::bytes(bytes),
            self.source.architecture().name
        ))
    }

    /// Makes the files.
    fn convert(&self, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        output::line("\nConvert to GGUF and quantize")?;
        let container = fonio_checkpoint::list::named("gguf").context("GGUF is not built in")?;
        let checkpoint = self.source.checkpoint().as_ref();
        let listening = interrupt::listen();
        let settings = Settings {
            threads: self.threads,
            isa: self.context.isa,
            write: WriteOptions { force: true, ..WriteOptions::default() },
            progress: &|_, _| {},
            cancel: Some(interrupt::flag()),
        };
        let mut files = Vec::new();
        for &recipe in RECIPES {
            let metadata = self.source.complete_metadata()?;
            let plan = Plan::new(checkpoint, self.source.spec(), metadata, &Target::named(recipe)?, &[])?;
            let out = folder.join(format!("{}-{recipe}.gguf", embedded::NAME));
            let start = Instant::now();
            convert::run(checkpoint, &plan, container, &out, &settings)?;
            output::line(format_args!(
                "  {:<18} {:>10}  {:.2} bits per weight  {:.2} s",
                name(&out),
                output::bytes(plan.nbytes()),
                output::bits_per_weight(plan.nbytes(), plan.len()),
                start.elapsed().as_secs_f64()
            ))?;
            files.push(out);
        }
        drop(listening);
        Ok(files)
    }

    fn verify(&self, files: &[PathBuf]) -> anyhow::Result<()> {
        output::line("\nVerify")?;
        for file in files {
            let report = verify::run(file, self.threads, self.context.isa, &|_, _| {})?;
            for problem in &report.problems {
                output::line(format_args!("  {:<18} {}", name(file), one_line(problem)))?;
            }
            if !report.problems.is_empty() {
                return Err(silent(NOT_SOUND).into());
            }
            output::line(format_args!(
                "  {:<18} sound: {} tensors, {} values",
                name(file),
                report.tensors,
                report.values
            ))?;
        }
        Ok(())
    }

    fn measure(&self, files: &[PathBuf]) -> anyhow::Result<()> {
        let mut end = TEXT_BYTES.min(embedded::TEXT.len());
        while !embedded::TEXT.is_char_boundary(end) {
            end -= 1;
        }
        let original = self.open(self.source.path())?;
        output::line("\nMeasure what rounding cost, on text that the model has not seen")?;
        for (i, file) in files.iter().enumerate() {
            let engine = self.open(file)?;
            let e = eval::run(&engine, Some(&original), &embedded::TEXT[..end], WINDOW, &mut |_, _, _| {})?;
            let d = e.divergence.context("there is no comparison")?;
            if i == 0 {
                output::line(format_args!(
                    "  {:<18} perplexity {:.4} ± {:.4}",
                    "original", d.reference_perplexity.value, d.reference_perplexity.error
                ))?;
            }
            output::line(format_args!(
                "  {:<18} perplexity {:.4} ± {:.4}, KL divergence {:.5}, same likeliest token {:.1} %",
                name(file),
                e.perplexity.value,
                e.perplexity.error,
                d.mean.value,
                d.same_top.value * 100.0
            ))?;
        }
        Ok(())
    }

    /// Lets a file speak.
    fn talk(&self, file: &Path) -> anyhow::Result<()> {
        let engine = self.open(file)?;
        output::line(format_args!("\nRun {}", name(file)))?;
        let beginning = engine.tokenizer()?.encode(BEGINNING, true, false)?;
        output::write(format!("  {BEGINNING}"))?;
        self.generate(&engine, &beginning, 90)?;
        let question = ChatPrompt::new(&engine)?.encode(&engine, &[Message::new("user", QUESTION)])?;
        output::write(format!("\n  > {QUESTION}\n  "))?;
        self.generate(&engine, &question, 40)
    }

    fn generate(&self, engine: &Engine, prompt: &[u32], max_tokens: usize) -> anyhow::Result<()> {
        let limits = Limits { max_tokens, ..Limits::default() };
        let mut gone = None;
        let mut session = engine.session()?;
        let mut sampler = Sampler::new(SamplerOptions { temperature: 0.3, ..SamplerOptions::default() });
        let done = session.generate(prompt, &mut sampler, &limits, |piece| match output::write(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                gone = Some(e);
                ControlFlow::Break(())
            }
        })?;
        if let Some(e) = gone {
            return Err(e);
        }
        let rate = done.tokens as f64 / done.time.as_secs_f64().max(1e-9);
        output::line(format_args!("\n  ({} tokens, {rate:.0} tokens/s)", done.tokens))
    }

    fn open(&self, path: &Path) -> anyhow::Result<Engine> {
        let options = Options { threads: self.threads, isa: self.context.isa, ..Options::default() };
        Ok(Engine::open(path, options)?)
    }
}

fn name(file: &Path) -> std::borrow::Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}
