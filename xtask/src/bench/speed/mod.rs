//! fonio beside its rivals on the same file, on this machine, in one run.
//!
//! Runs of the engines alternate (A B A B …), so that a machine that slows down does so for all; medians are compared.
//! What the machine can do at most is measured in the same run. A rival is llama.cpp, if its libraries are there, or any
//! command: this repository has nothing of either. Before a rival races on a real model its text is compared with
//! fonio's: who computes something else may well be faster.

mod cases;
mod engine;
pub mod limits;
pub mod llamacpp;
mod options;
mod plot;
mod report;
mod series;

use super::common;
use cases::{Case, Kind, Load, MEMORY_TARGET, Model, Work};
use engine::{Engine, Outcome, PROMPT, Program, TEXT_TOKENS, Task};
use fonio_conformance::home::{GEMMA3, SMOLLM2};
use limits::Limits;
use options::Options;
use report::{Figure, Race, Report, Share};
use series::{Measure, Series};
use std::path::{Path, PathBuf};

/// Races and prints what came of it. With `--check` an error if a target is missed; always if fonio fails.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let options = Options::read(arguments)?;
    std::fs::create_dir_all(&options.folder).map_err(|e| format!("{}: {e}", options.folder.display()))?;
    let fonio = options.fonio.clone().map_or_else(common::build, Ok)?;
    let mut report =
        Report { isa: fonio_simd::Isa::detect().to_string(), rounds: options.rounds, ..Report::default() };
    let engines = engines(&options, fonio, &mut report);
    eprintln!("the machine's limits …");
    let (limits, others) = limits::measure(&options.threads)?;
    report.limits = limits;
    if others > common::OTHERS {
        report.note(format!(
            "other programs kept {others:.2} CPUs busy while the machine's limits were measured: shares are too high"
        ));
    }
    for case in &options.cases {
        run_case(case, &options, &engines, &mut report);
    }
    if let Some(plot) = &options.plot {
        std::fs::write(plot, plot::svg(&report.races)).map_err(|e| format!("{}: {e}", plot.display()))?;
    }
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.markdown());
    }
    if options.check {
        return report.check();
    }
    match report.races.iter().filter(|race| race.failed.is_some()).count() {
        0 => Ok(()),
        n => Err(format!("fonio failed in {n} of {} races: the report says at what", report.races.len())),
    }
}

/// fonio, and those who are there to race with it.
fn engines(options: &Options, fonio: PathBuf, report: &mut Report) -> Vec<Engine> {
    let mut engines = vec![Engine::fonio(fonio)];
    match llamacpp::probe() {
        Ok(()) => engines.extend(Engine::llamacpp()),
        Err(reason) => report.note(format!("llama.cpp takes no part: {reason}")),
    }
    for (name, line) in &options.rivals {
        let text = options.texts.iter().find(|(of, _)| of == name).map(|(_, line)| line.clone());
        let program = Program::Command { line: line.clone(), text };
        engines.push(Engine { name: name.clone(), setting: None, program });
    }
    if engines.len() == 1 {
        report.note("no rival at all: --rival 'NAME=COMMAND {model} {work} {n} {threads}' names one".into());
    }
    engines
}

fn run_case(case: &'static Case, options: &Options, engines: &[Engine], report: &mut Report) {
    let works = case.works.iter().filter(|work| options.wants(work));
    let races: Vec<(Work, usize)> =
        works.flat_map(|&work| options.threads.iter().map(move |&threads| (work, threads))).collect();
    if races.is_empty() {
        return;
    }
    eprintln!("{} …", case.name);
    let file = case.file(&options.folder).and_then(|file| Ok((Load::of(&file)?, file)));
    let mut raced = Vec::new();
    match file {
        Ok((load, file)) => {
            if matches!(case.model, Model::Real(_)) {
                compare(case, &file, engines, report);
            }
            for (work, threads) in races {
                eprintln!("  {}, {threads} …", work.name);
                let limits = report.limits.iter().find(|limits| limits.threads == threads).copied();
                let share = limits.and_then(|limits| share(case, &work, load, limits));
                raced.push(race(case, &file, &work, threads, share, options.rounds, engines, report));
            }
        }
        Err(reason) => {
            raced.extend(races.into_iter().map(|(work, threads)| Race {
                skipped: Some(reason.clone()),
                ..new_race(case, &work, threads)
            }))
        }
    }
    report.races.extend(raced);
}

/// Notes which engines say what fonio says, and which say something else.
fn compare(case: &Case, file: &Path, engines: &[Engine], report: &mut Report) {
    let Some((fonio, rivals)) = engines.split_first() else { return };
    let ours = match fonio.text(file) {
        Some(Ok(ours)) => ours,
        Some(Err(reason)) => return report.note(format!("{}: no text to compare: {reason}", case.name)),
        None => return,
    };
    for rival in rivals {
        let (name, title) = (case.name, rival.title());
        match rival.text(file) {
            None => report.note(format!(
                "{title} was not compared with fonio: --rival-text '{title}=COMMAND {{model}} {{prompt}} {{n}}' \
                 names what prints its text"
            )),
            Some(Err(reason)) => report.note(format!("{name}: {title} gave no text to compare: {reason}")),
            Some(Ok(theirs)) => {
                report.note(match engine::difference(&ours, &theirs) {
                    None => format!("{name}: {title} says what fonio says, {TEXT_TOKENS} tokens after {PROMPT:?}"),
                    Some(other) => format!("{name}: {title}: {other}. Compare perplexities before you race it"),
                });
            }
        }
    }
}

/// What of the machine's limit a token per second is.
fn share(case: &Case, work: &Work, load: Load, limits: Limits) -> Option<Share> {
    match work.kind {
        Kind::Start => None,
        Kind::Decode => Some(Share { of: "read", factor: load.bytes / limits.read }),
        Kind::Prefill if case.is_float() => {
            Some(Share { of: "f32", factor: 2.0 * load.weights / limits.floats })
        }
        Kind::Prefill => Some(Share { of: "int8", factor: 2.0 * load.weights / limits.bytes }),
    }
}

fn new_race(case: &Case, work: &Work, threads: usize) -> Race {
    let (name, dtype) = (case.name.to_owned(), case.dtype.to_owned());
    Race { case: name, dtype, work: work.name.into(), threads, ..Race::default() }
}

/// All rounds of all engines, by turns. A rival that fails is noted and takes no further part.
#[allow(clippy::too_many_arguments, reason = "a race is that much")]
fn race(
    case: &Case,
    file: &Path,
    work: &Work,
    threads: usize,
    share: Option<Share>,
    rounds: usize,
    engines: &[Engine],
    report: &mut Report,
) -> Race {
    let mut race = new_race(case, work, threads);
    if let Err(e) = warm(file) {
        race.failed = Some(format!("{}: {e}", file.display()));
        return race;
    }
    let task = Task { file, work, threads };
    let mut outcomes: Vec<Vec<Outcome>> = engines.iter().map(|_| Vec::new()).collect();
    let mut out: Vec<bool> = engines.iter().map(|engine| engine.refuses(work).is_some()).collect();
    for engine in engines {
        if let Some(reason) = engine.refuses(work) {
            report.note(format!("{}, {}: {} skipped: {reason}", case.name, work.name, engine.title()));
        }
    }
    for _ in 0..rounds {
        for (i, engine) in engines.iter().enumerate().filter(|(i, _)| !out[*i]).collect::<Vec<_>>() {
            match engine.run(&task) {
                Ok(outcome) => outcomes[i].push(outcome),
                Err(reason) if i == 0 => {
                    race.failed = Some(reason);
                    return race;
                }
                Err(reason) => {
                    report.note(format!("{}: {} is out: {reason}", race.title(), engine.title()));
                    // What it did before counts for nothing.
                    outcomes[i].clear();
                    out[i] = true;
                }
            }
        }
    }
    race.others = outcomes.iter().flatten().map(|outcome| outcome.others).fold(0.0, f64::max);
    race.figures = figures(case, work, share, engines, &outcomes);
    race
}

/// One figure for each thing that was measured. The first engine is fonio.
fn figures(
    case: &Case,
    work: &Work,
    share: Option<Share>,
    engines: &[Engine],
    outcomes: &[Vec<Outcome>],
) -> Vec<Figure> {
    let measures: &[Measure] =
        if work.kind == Kind::Start { &[Measure::Wall, Measure::Peak] } else { &[Measure::Rate] };
    let mut figures = Vec::new();
    for &measure in measures {
        let target = if measure == Measure::Peak { MEMORY_TARGET } else { case.target(work) };
        let mut figure = Figure::new(measure, target, share);
        for (i, (engine, outcomes)) in engines.iter().zip(outcomes).enumerate() {
            let all = outcomes.iter().flat_map(|outcome| &outcome.figures);
            let values: Vec<f64> = all.filter(|(of, _)| *of == measure).map(|(_, value)| *value).collect();
            if i == 0 {
                figure.fonio = Series(values);
            } else if !values.is_empty() {
                figure.add(&engine.name, engine.setting, Series(values));
            }
        }
        figures.push(figure);
    }
    figures
}

/// Brings a file into the page cache, so that no run waits for the disk.
fn warm(file: &Path) -> std::io::Result<u64> {
    std::io::copy(&mut std::fs::File::open(file)?, &mut std::io::sink())
}

#[cfg(test)]
mod tests;
