//! Models that are larger than memory: what `--residency stream` takes, how near it comes to the disk, and how it does
//! beside another program in the same memory.
//!
//! A case of the first kind runs the model mapped and streamed and holds what [`Case::claims`] says. A race runs
//! fonio and a rival by turns, each in a control group and with nothing of the model in the page cache, and compares the
//! medians of their tokens per second. The rival is a command on the command line.

use super::disk::{self, Reading};
use super::limit::Group;
use super::process::{self, Run};
use super::{USAGE, common, model};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Words that every model made up has, or spells with its bytes.
const PROMPT: &str = "baba keke";
/// What streaming may take beyond its budget.
const BUDGET_SLACK: f64 = 1.05;
/// What decoding reads of what the disk can.
const DISK_SHARE: f64 = 0.85;
/// How long each way to read is tried.
const DISK_TIME: Duration = Duration::from_secs(3);

struct Case {
    name: &'static str,
    model: &'static str,
    container: &'static str,
    dtype: &'static str,
    /// For streaming, in MiB.
    budget: u64,
    /// Tokens that are generated.
    tokens: u32,
    kind: Kind,
    /// Whether it is run when no case is named.
    usual: bool,
}

enum Kind {
    /// The same text as mapped; with `figures`, within the budget and near the disk's speed. A model that its budget
    /// holds has no such figures.
    Stream { figures: bool },
    /// In so many MiB beside the rival.
    Race { memory: u64 },
}

const STREAM: Kind = Kind::Stream { figures: true };
const SMALL: Kind = Kind::Stream { figures: false };

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("llama-7b-qsf",     "llama-7b",     "qsf",  "2bit_64", 600, 4, STREAM, true),
    case("llama-7b-gguf",    "llama-7b",     "gguf", "Q2_K",    600, 4, STREAM, true),
    case("mixtral-8x1b-qsf", "mixtral-8x1b", "qsf",  "2bit_64", 600, 16, STREAM, true),
    case("mixtral-8x1b-gguf","mixtral-8x1b", "gguf", "Q2_K",    600, 16, STREAM, true),
    case("race",             "llama-7b",     "gguf", "Q2_K",    900, 8, Kind::Race { memory: 1024 }, true),
    case("llama-tiny",       "llama-tiny",   "gguf", "Q2_K",    64,  8, SMALL,  false),
    case("mixtral-tiny",     "mixtral-tiny", "gguf", "Q2_K",    64,  8, SMALL,  false),
];

#[allow(clippy::too_many_arguments, reason = "a line of a table")]
const fn case(
    name: &'static str,
    model: &'static str,
    container: &'static str,
    dtype: &'static str,
    budget: u64,
    tokens: u32,
    kind: Kind,
    usual: bool,
) -> Case {
    Case { name, model, container, dtype, budget, tokens, kind, usual }
}

/// What the command line says.
struct Options {
    folder: PathBuf,
    json: bool,
    rounds: usize,
    threads: usize,
    /// The program, if it shall not be built.
    fonio: Option<PathBuf>,
    rival: Option<String>,
    cases: Vec<&'static Case>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options {
            folder: common::folder(),
            json: false,
            rounds: 3,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            fonio: None,
            rival: None,
            cases: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            let count = |text: &String| match text.parse() {
                Ok(n @ 1..) => Ok(n),
                _ => Err(format!("{argument} {text}: a number from 1 on")),
            };
            match argument.as_str() {
                "--json" => options.json = true,
                "--dir" => options.folder = value()?.into(),
                "--fonio" => options.fonio = Some(value()?.into()),
                "--rival" => options.rival = Some(value()?.clone()),
                "--rounds" => options.rounds = count(value()?)?,
                "--threads" => options.threads = count(value()?)?,
                name => {
                    let known = || CASES.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
                    let case = CASES.iter().find(|c| c.name == name);
                    options.cases.push(
                        case.ok_or_else(|| format!("no case is called {name}: there are {}", known()))?,
                    );
                }
            }
        }
        if options.cases.is_empty() {
            options.cases = CASES.iter().filter(|c| c.usual).collect();
        }
        Ok(options)
    }
}

/// Runs cases and prints what was measured. An error if a case fails or a claim does not hold.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::read(arguments)?;
    std::fs::create_dir_all(&options.folder).map_err(|e| format!("{}: {e}", options.folder.display()))?;
    let fonio = options.fonio.clone().map_or_else(common::build, Ok)?;
    let streams = knows_residency(&fonio)?;
    let mut bench = Bench { options: &options, fonio, disks: HashMap::new() };
    let mut reports = Vec::new();
    for case in &options.cases {
        eprintln!("{} …", case.name);
        let report = if streams {
            bench.case(case)
        } else {
            Report::skipped(case, format!("{} has no --residency", bench.fonio.display()))
        };
        if !options.json {
            print!("{}", report.text());
        }
        reports.push(report);
    }
    if options.json {
        let reports: Vec<Json> = reports.iter().map(Report::json).collect();
        println!("{:#}", json!({ "threads": options.threads, "cases": reports }));
    }
    match reports.iter().filter(|r| !r.holds()).count() {
        0 => Ok(()),
        n => Err(format!("{n} of {} cases do not hold", reports.len())),
    }
}

fn knows_residency(fonio: &Path) -> Result<bool, String> {
    let help = process::run(&[fonio.into(), "run".into(), "--help".into()], None)?;
    Ok(help.stdout.contains("--residency"))
}

struct Bench<'a> {
    options: &'a Options,
    fonio: PathBuf,
    /// By model file.
    disks: HashMap<PathBuf, Vec<Reading>>,
}

impl Bench<'_> {
    fn case(&mut self, case: &'static Case) -> Report {
        let mut report = Report::new(case);
        let file = self.options.folder.join(format!("{}.{}.{}", case.model, case.dtype, case.container));
        if !file.exists()
            && let Err(reason) = model(case.model, case.container, case.dtype, &file)
        {
            report.skipped = Some(reason);
            return report;
        }
        let done = match case.kind {
            Kind::Stream { figures } => self.stream(case, figures, &file, &mut report),
            Kind::Race { memory } => self.race(case, memory * MIB, &file, &mut report),
        };
        report.failed = done.err();
        report
    }

    /// The command that generates text.
    fn command(&self, case: &Case, file: &Path, residency: &str) -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![self.fonio.clone().into(), "run".into(), file.into()];
        let (tokens, threads) = (case.tokens.to_string(), self.options.threads.to_string());
        let rest = ["-p", PROMPT, "-n", &tokens, "-t", "0", "--ignore-eos", "--json", "--quiet", "-c", "512"];
        command.extend(rest.map(OsString::from));
        command.extend(["--threads", &threads, "--residency", residency].map(OsString::from));
        if residency == "stream" {
            command.extend(["--budget".into(), format!("{}MiB", case.budget).into()]);
        }
        command
    }

    /// The ways to read the model's disk, the fastest first. Empty where it cannot be read directly.
    fn disk(&mut self, file: &Path, report: &mut Report) -> Vec<Reading> {
        let known = self.disks.entry(file.to_path_buf()).or_insert_with(|| {
            let mut readings = disk::readings(file, DISK_TIME).unwrap_or_else(|e| {
                report.notes.push(format!("no direct reads ({e}), so no share of the disk's speed"));
                Vec::new()
            });
            readings.sort_by(|a, b| b.rate.total_cmp(&a.rate));
            readings
        });
        known.clone()
    }

    /// Takes the file out of the page cache and runs.
    fn cold(
        &self,
        command: &[OsString],
        file: &Path,
        memory: Option<u64>,
        report: &mut Report,
    ) -> Result<Run, String> {
        match disk::evict(file).map_err(|e| format!("{}: {e}", file.display()))? {
            Some(0) => {}
            Some(left) => report.note(format!("{left} bytes stayed in the page cache")),
            None => report.note("without fincore nobody knows whether the file left the page cache".into()),
        }
        let group = memory.map(Group::new).transpose();
        match &group {
            Ok(Some(group)) => report.note(format!("memory is limited by {}", group.version())),
            Ok(None) => {}
            Err(reason) => report.note(format!("memory is not limited: {reason}")),
        }
        let run = process::run(command, group.ok().flatten().as_ref())?;
        if run.others > common::OTHERS {
            let most = common::OTHERS;
            report.note(format!("other programs kept more than {most} CPUs busy: the speeds say little"));
        }
        Ok(run)
    }

    fn stream(
        &mut self,
        case: &'static Case,
        figures: bool,
        file: &Path,
        report: &mut Report,
    ) -> Result<(), String> {
        report.disk = if figures { self.disk(file, report) } else { Vec::new() };
        let mapped =
            Measured::of("fonio mmap", self.cold(&self.command(case, file, "mmap"), file, None, report)?)?;
        // More than the budget, so that it is the program that keeps to it; too little for the page cache to help.
        let memory = figures.then_some(case.budget * MIB * 5 / 4);
        let before = self.best(file, report)?;
        let run = self.cold(&self.command(case, file, "stream"), file, memory, report)?;
        let after = self.best(file, report)?;
        let streamed = Measured::of("fonio stream", run)?;
        report.claims.push(Claim::new("text as mapped", mapped.text == streamed.text, || {
            format!("{:?} instead of {:?}", streamed.text, mapped.text)
        }));
        if figures {
            let most = (case.budget * MIB) as f64 * BUDGET_SLACK;
            report.claims.push(Claim::new("peak within the budget", streamed.peak as f64 <= most, || {
                format!("{:.0} MiB of {}", streamed.peak as f64 / MIB as f64, case.budget)
            }));
        }
        if let (Some(before), Some(after)) = (before, after) {
            // A disk that others use too is not the same from one second to the next.
            let best = (before.rate + after.rate) / 2.0;
            let share = streamed.rate / best;
            report.claims.push(Claim::new("near the disk's speed", share >= DISK_SHARE, || {
                format!("{:.0} % of the {:.0} MB/s just before and after", share * 100.0, best / 1e6)
            }));
        }
        report.runs = vec![mapped, streamed];
        Ok(())
    }

    /// The disk once more, in the way that was the fastest.
    fn best(&self, file: &Path, report: &Report) -> Result<Option<Reading>, String> {
        let again = |way: &Reading| way.again(file, DISK_TIME);
        report.disk.first().map(again).transpose().map_err(|e| format!("{}: {e}", file.display()))
    }

    fn race(
        &mut self,
        case: &'static Case,
        memory: u64,
        file: &Path,
        report: &mut Report,
    ) -> Result<(), String> {
        // Without a limit every program would have all of the model in the page cache.
        if let Err(reason) = Group::new(memory) {
            report.skipped = Some(reason);
            return Ok(());
        }
        report.disk = self.disk(file, report);
        let rival = self.options.rival.as_ref().map(|rival| {
            let line = rival.replace("{tokens}", &case.tokens.to_string()).replace("{model}", "\"$0\"");
            vec!["sh".into(), "-c".into(), format!("exec {line}").into(), file.into()]
        });
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let run = self.cold(&self.command(case, file, "stream"), file, Some(memory), report)?;
            let run = Measured::of("fonio stream", run)?;
            own.push(run.tokens);
            report.runs.push(run);
            if let Some(rival) = &rival {
                let run = Measured::of_rival(self.cold(rival, file, Some(memory), report)?)?;
                other.push(run.tokens);
                report.runs.push(run);
            }
        }
        if other.is_empty() {
            report.note("no rival: --rival 'COMMAND {model} {tokens}' names one that prints tokens/s".into());
            return Ok(());
        }
        let ratio = common::median(own) / common::median(other);
        report.ratio = Some(ratio);
        report
            .claims
            .push(Claim::new("faster than the rival", ratio > 1.0, || format!("{ratio:.2} times as fast")));
        Ok(())
    }
}

/// The figures of a run.
struct Measured {
    who: &'static str,
    text: String,
    /// Tokens per second of decoding.
    tokens: f64,
    /// Bytes per second that came from the disk while decoding.
    rate: f64,
    wall: Duration,
    peak: u64,
    group_peak: Option<u64>,
    read: u64,
    /// CPUs that other programs kept busy.
    others: f64,
    /// Experts that were in memory when they were needed, and those that were not.
    experts: Option<(u64, u64)>,
}

impl Measured {
    /// Of what `fonio run --json` says.
    fn of(who: &'static str, run: Run) -> Result<Measured, String> {
        let said: Json = serde_json::from_str(&run.stdout).map_err(|e| format!("{who} --json: {e}"))?;
        let number = |key: &str| said[key].as_f64().ok_or_else(|| format!("{who} --json: no {key}"));
        let seconds = number("seconds")?.max(1e-9);
        let text = said["text"].as_str().ok_or_else(|| format!("{who} --json: no text"))?;
        let expert = |key: &str| said["read"][key].as_u64();
        let experts = expert("expert_hits").zip(expert("expert_misses")).filter(|(h, m)| h + m > 0);
        Ok(Measured {
            who,
            text: text.to_owned(),
            tokens: number("tokens")? / seconds,
            rate: run.read_before_output(seconds).unwrap_or(0.0) / seconds,
            wall: run.wall,
            peak: run.peak,
            group_peak: run.group_peak,
            read: run.read,
            others: run.others,
            experts,
        })
    }

    fn of_rival(run: Run) -> Result<Measured, String> {
        let said = common::rate(&run.stdout).or_else(|| common::rate(&run.stderr));
        Ok(Measured {
            who: "rival",
            text: String::new(),
            tokens: said.ok_or("the rival did not say how many tokens/s")?,
            rate: 0.0,
            wall: run.wall,
            peak: run.peak,
            group_peak: run.group_peak,
            read: run.read,
            others: run.others,
            experts: None,
        })
    }

    fn json(&self) -> Json {
        json!({
            "who": self.who,
            "text": self.text,
            "tokens_per_second": self.tokens,
            "decode_bytes_per_second": self.rate,
            "wall_seconds": self.wall.as_secs_f64(),
            "peak_rss_bytes": self.peak,
            "group_peak_bytes": self.group_peak,
            "read_bytes": self.read,
            "cpus_of_others": self.others,
            "expert_hits": self.experts.map(|(hits, _)| hits),
            "expert_misses": self.experts.map(|(_, misses)| misses),
        })
    }
}

/// Something that shall be so.
struct Claim {
    what: &'static str,
    holds: bool,
    /// The figure, or what is there instead.
    found: String,
}

impl Claim {
    fn new(what: &'static str, holds: bool, found: impl Fn() -> String) -> Claim {
        Claim { what, holds, found: found() }
    }
}

/// What came of a case.
struct Report {
    case: &'static Case,
    skipped: Option<String>,
    failed: Option<String>,
    /// The fastest first.
    disk: Vec<Reading>,
    runs: Vec<Measured>,
    ratio: Option<f64>,
    claims: Vec<Claim>,
    notes: Vec<String>,
}

impl Report {
    fn new(case: &'static Case) -> Report {
        Report {
            case,
            skipped: None,
            failed: None,
            disk: Vec::new(),
            runs: Vec::new(),
            ratio: None,
            claims: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn skipped(case: &'static Case, reason: String) -> Report {
        Report { skipped: Some(reason), ..Report::new(case) }
    }

    fn holds(&self) -> bool {
        self.failed.is_none() && self.claims.iter().all(|c| c.holds)
    }

    /// Notes something once.
    fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![self.case.name.to_owned()];
        let mebi = |bytes: u64| bytes as f64 / MIB as f64;
        for way in &self.disk {
            let (n, block) = (way.threads, way.block as u64 / MIB);
            lines.push(format!("  disk: {n} threads × {block:2} MiB {:9.0} MB/s", way.rate / 1e6));
        }
        for run in &self.runs {
            let group = run.group_peak.map_or(String::new(), |b| format!(", group {:.0} MiB", mebi(b)));
            let experts = run.experts.map_or(String::new(), |(hits, misses)| {
                format!("; experts: {:.0} % hits", hits as f64 * 100.0 / (hits + misses) as f64)
            });
            lines.push(format!(
                "  {:12} {:7.3} tokens/s, {:5.0} MB/s; {:6.2} s in all, {:.2} GB read; peak {:.0} MiB{group}; \
                 others {:.2} CPUs{experts}",
                run.who,
                run.tokens,
                run.rate / 1e6,
                run.wall.as_secs_f64(),
                run.read as f64 / 1e9,
                mebi(run.peak),
                run.others,
            ));
        }
        for claim in &self.claims {
            let verdict = if claim.holds { "yes" } else { "NO" };
            let found = if claim.holds && claim.what == "text as mapped" {
                String::new()
            } else {
                format!(": {}", claim.found)
            };
            lines.push(format!("  {}? {verdict}{found}", claim.what));
        }
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines.extend(self.skipped.iter().map(|reason| format!("  skipped: {reason}")));
        lines.extend(self.failed.iter().map(|reason| format!("  failed: {reason}")));
        lines.push(String::new());
        lines.join("\n")
    }

    fn json(&self) -> Json {
        let disk = self.disk.iter().map(
            |way| json!({ "threads": way.threads, "block_bytes": way.block, "bytes_per_second": way.rate }),
        );
        let claims =
            self.claims.iter().map(|c| json!({ "claim": c.what, "holds": c.holds, "found": c.found }));
        json!({
            "case": self.case.name,
            "budget_bytes": self.case.budget * MIB,
            "skipped": self.skipped,
            "failed": self.failed,
            "disk": disk.collect::<Vec<_>>(),
            "runs": self.runs.iter().map(Measured::json).collect::<Vec<_>>(),
            "ratio_of_medians": self.ratio,
            "claims": claims.collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, String> {
        Options::read(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read() {
        let options =
            read(&["--json", "--dir", "/x", "race", "--rival", "r {model}", "--rounds", "5"]).unwrap();
        assert!(options.json && options.rounds == 5 && options.folder == Path::new("/x"));
        assert_eq!((options.cases.len(), options.cases[0].name), (1, "race"));
        assert_eq!(options.rival.as_deref(), Some("r {model}"));
        assert!(read(&[]).unwrap().cases.iter().all(|c| c.usual));
        for wrong in [&["nothing"][..], &["--dir"], &["--rounds", "0"], &["--threads", "x"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn cases_name_models_and_types_once() {
        for case in CASES {
            assert!(super::super::synthetic::Shape::named(case.model).is_some(), "{}", case.name);
            assert_eq!(CASES.iter().filter(|c| c.name == case.name).count(), 1, "{}", case.name);
        }
    }

    #[test]
    fn a_claim_that_does_not_hold_is_an_error() {
        let mut report = Report::new(&CASES[0]);
        assert!(report.holds());
        report.claims.push(Claim::new("text as mapped", false, || "other".into()));
        assert!(!report.holds() && report.text().contains("text as mapped? NO: other"), "{}", report.text());
        assert_eq!(report.json()["claims"][0]["holds"], false);
    }

    #[test]
    fn a_case_makes_its_model_and_says_why_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let options = read(&["--dir", folder.path().to_str().unwrap()]).unwrap();
        let mut bench =
            Bench { options: &options, fonio: "/nonexistent/fonio".into(), disks: HashMap::new() };
        let tiny = CASES.iter().find(|c| c.name == "llama-tiny").unwrap();
        let report = bench.case(tiny);
        assert!(
            report.failed.as_ref().is_some_and(|e| e.contains("/nonexistent/fonio")),
            "{}",
            report.text()
        );
        assert!(folder.path().join("llama-tiny.Q2_K.gguf").exists());
    }
}
