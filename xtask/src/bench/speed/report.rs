//! What came of the races: a Markdown table or a JSON document.

use super::super::common;
use super::limits::Limits;
use super::series::{Measure, Series};
use serde_json::{Value as Json, json};
use std::fmt::Write;

/// One work of one case with one number of threads.
#[derive(Default)]
pub struct Race {
    pub case: String,
    pub dtype: String,
    pub work: String,
    pub threads: usize,
    pub figures: Vec<Figure>,
    /// The most CPUs that other programs kept busy during a run.
    pub others: f64,
    /// Why there are no figures.
    pub skipped: Option<String>,
    /// What fonio failed at.
    pub failed: Option<String>,
}

/// One measure of a race.
pub struct Figure {
    pub measure: Measure,
    pub target: f64,
    /// What a value of 1 is of the machine's limit, if there is one.
    pub limit: Option<Share>,
    pub fonio: Series,
    pub rivals: Vec<Rival>,
}

/// Which limit, and what has to be multiplied with a measure to give the share of it.
#[derive(Clone, Copy)]
pub struct Share {
    pub of: &'static str,
    pub factor: f64,
}

/// A rival's runs, of the better setting first if it has several.
pub struct Rival {
    pub name: String,
    pub settings: Vec<(Option<&'static str>, Series)>,
}

impl Rival {
    fn best(&self) -> Option<&(Option<&'static str>, Series)> {
        self.settings.first()
    }

    /// How many times as good fonio is as its better setting.
    pub fn ratio(&self, figure: &Figure) -> Option<f64> {
        let theirs = self.best()?.1.median()?;
        Some(figure.measure.ratio(figure.fonio.median()?, theirs))
    }

    /// The name, with the setting where there was a choice.
    fn title(&self) -> String {
        match self.best() {
            Some((Some(setting), _)) => format!("{}, {setting}", self.name),
            _ => self.name.clone(),
        }
    }
}

impl Figure {
    pub fn new(measure: Measure, target: f64, limit: Option<Share>) -> Figure {
        Figure { measure, target, limit, fonio: Series::default(), rivals: Vec::new() }
    }

    /// Takes what a rival reached with one setting, and keeps its settings in order, the best first.
    pub fn add(&mut self, name: &str, setting: Option<&'static str>, series: Series) {
        let at = self.rivals.iter().position(|rival| rival.name == name).unwrap_or_else(|| {
            self.rivals.push(Rival { name: name.into(), settings: Vec::new() });
            self.rivals.len() - 1
        });
        let settings = &mut self.rivals[at].settings;
        settings.push((setting, series));
        let worth = |series: &Series| {
            let median = series.median().unwrap_or(f64::NAN);
            if self.measure == Measure::Rate { -median } else { median }
        };
        settings.sort_by(|a, b| worth(&a.1).total_cmp(&worth(&b.1)));
    }

    /// The least ratio: fonio beside the best of the rivals.
    pub fn ratio(&self) -> Option<f64> {
        self.rivals.iter().filter_map(|rival| rival.ratio(self)).min_by(f64::total_cmp)
    }

    /// Whether the target is reached; `None` if there was no rival.
    pub fn holds(&self) -> Option<bool> {
        self.ratio().map(|ratio| ratio >= self.target)
    }

    fn share(&self, series: &Series) -> Option<f64> {
        Some(self.limit?.factor * series.median()?)
    }

    fn json(&self) -> Json {
        let series = |series: &Series| {
            let mut value = series.json();
            value["share_of_limit"] = json!(self.share(series));
            value
        };
        let rival = |rival: &Rival| {
            let setting = |(setting, values): &(Option<&str>, Series)| {
                let mut value = series(values);
                value["setting"] = json!(setting);
                value
            };
            let settings: Vec<Json> = rival.settings.iter().map(setting).collect();
            json!({ "name": rival.name, "ratio_of_medians": rival.ratio(self), "settings": settings })
        };
        json!({
            "measure": self.measure.key(),
            "limit": self.limit.map(|limit| limit.of),
            "fonio": series(&self.fonio),
            "rivals": self.rivals.iter().map(rival).collect::<Vec<_>>(),
            "ratio": self.ratio(),
            "target": self.target,
            "holds": self.holds(),
        })
    }

    /// A line of the table for each rival, or one alone.
    fn rows(&self, race: &Race) -> Vec<Vec<String>> {
        let percent = |series: &Series| {
            let limit = self.share(series).zip(self.limit);
            limit.map_or("–".into(), |(share, limit)| format!("{:.0} % of {}", share * 100.0, limit.of))
        };
        let row = |rival: Option<&Rival>| {
            let (name, theirs, share) = match rival.and_then(|rival| Some((rival, &rival.best()?.1))) {
                Some((rival, series)) => (rival.title(), series.show(self.measure), percent(series)),
                None => ["–", "–", "–"].map(String::from).into(),
            };
            let ratio = rival.and_then(|rival| rival.ratio(self));
            let held = ratio.map_or("–", |ratio| if ratio >= self.target { "yes" } else { "**no**" });
            vec![
                race.case.clone(),
                race.work.clone(),
                race.threads.to_string(),
                self.measure.title().into(),
                self.fonio.show(self.measure),
                percent(&self.fonio),
                name,
                theirs,
                share,
                ratio.map_or("–".into(), |ratio| format!("{ratio:.2}")),
                format!("{:.2}", self.target),
                held.into(),
                format!("{:.2}", race.others),
            ]
        };
        if self.rivals.is_empty() {
            vec![row(None)]
        } else {
            self.rivals.iter().map(|r| row(Some(r))).collect()
        }
    }
}

impl Race {
    /// Case, work and threads in one.
    pub fn title(&self) -> String {
        format!("{}, {}, {} {}", self.case, self.work, self.threads, threads(self.threads))
    }

    fn json(&self) -> Json {
        json!({
            "case": self.case,
            "type": self.dtype,
            "work": self.work,
            "threads": self.threads,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "cpus_of_others": self.others,
            "skipped": self.skipped,
            "failed": self.failed,
        })
    }
}

fn threads(n: usize) -> &'static str {
    if n == 1 { "thread" } else { "threads" }
}

/// Everything.
#[derive(Default)]
pub struct Report {
    /// The instruction set that fonio's kernels use.
    pub isa: String,
    pub rounds: usize,
    pub limits: Vec<Limits>,
    pub races: Vec<Race>,
    pub notes: Vec<String>,
}

impl Report {
    /// Notes something once.
    pub fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            eprintln!("note: {text}");
            self.notes.push(text);
        }
    }

    pub fn json(&self) -> Json {
        json!({
            "isa": self.isa,
            "rounds": self.rounds,
            "limits": self.limits.iter().map(Limits::json).collect::<Vec<_>>(),
            "races": self.races.iter().map(Race::json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("## The machine's limits ({})\n\n", self.isa);
        let limits = self.limits.iter().map(|l| {
            let [read, bytes, floats] = [l.read, l.bytes, l.floats].map(|rate| rate / 1e9);
            vec![l.threads.to_string(), format!("{read:.1}"), format!("{bytes:.0}"), format!("{floats:.0}")]
        });
        let head = ["threads", "read from DRAM, GB/s", "int8 dot product, GOP/s", "f32 FMA, GFLOP/s"];
        text += &table(&head, &limits.collect::<Vec<_>>());
        let _ = write!(text, "\n## Races, medians of {}\n\n", self.rounds);
        let head = [
            "case",
            "work",
            "threads",
            "figure",
            "fonio",
            "share",
            "rival",
            "rival's figure",
            "rival's share",
            "ratio",
            "target",
            "held",
            "CPUs of others",
        ];
        let figures = self.races.iter().flat_map(|race| race.figures.iter().map(move |f| f.rows(race)));
        text += &table(&head, &figures.flatten().collect::<Vec<_>>());
        let mut lines: Vec<String> = self.notes.clone();
        for race in &self.races {
            let title = race.title();
            lines.extend(race.skipped.iter().map(|reason| format!("{title}: skipped: {reason}")));
            lines.extend(race.failed.iter().map(|reason| format!("{title}: failed: {reason}")));
            if race.others > common::OTHERS {
                lines.push(format!(
                    "{title}: other programs kept {:.2} CPUs busy: run it again on a quiet machine",
                    race.others
                ));
            }
        }
        if !lines.is_empty() {
            text += "\n## Notes\n\n";
            text.extend(lines.iter().map(|line| format!("- {}\n", line.trim_end().replace('\n', "\n  "))));
        }
        text
    }

    /// An error that says which targets are missed, which races failed, or that nothing was raced.
    pub fn check(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        let (mut raced, mut missed) = (0, 0);
        for race in &self.races {
            wrong.extend(race.failed.iter().map(|reason| format!("{}: {reason}", race.title())));
            for figure in &race.figures {
                let Some(ratio) = figure.ratio() else { continue };
                raced += 1;
                if figure.holds() == Some(false) {
                    missed += 1;
                    let (title, unit) = (race.title(), figure.measure.title());
                    wrong.push(format!("{title}, {unit}: {ratio:.2} of {:.2}", figure.target));
                }
            }
        }
        if raced == 0 {
            wrong.push("nothing was raced: the notes say which rivals are missing".into());
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{missed} of {raced} targets are missed\n{}", wrong.join("\n")))
    }
}

/// A table as Markdown has it.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let head: Vec<String> = head.iter().map(|&cell| cell.into()).collect();
    let mut text = line(&head) + &format!("|{}\n", "---|".repeat(head.len()));
    text.extend(rows.iter().map(|row| line(row)));
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// fonio at 20 tokens/s against two rivals, the better of which has 16 as stored and 10 repacked.
    pub fn figure() -> Figure {
        let mut figure = Figure::new(Measure::Rate, 1.5, Some(Share { of: "read", factor: 0.04 }));
        figure.fonio = Series(vec![20.0, 19.0, 21.0]);
        figure.add("one", Some("repacked"), Series(vec![10.0]));
        figure.add("one", Some("as stored"), Series(vec![16.0]));
        figure.add("a|b", None, Series(vec![5.0]));
        figure
    }

    pub fn race(figures: Vec<Figure>) -> Race {
        let (case, dtype, work) = ("tiny".into(), "Q4_0".into(), "decode".into());
        Race { case, dtype, work, threads: 2, figures, ..Race::default() }
    }

    #[test]
    fn the_better_setting_of_the_best_rival_counts() {
        let figure = figure();
        assert_eq!((figure.ratio(), figure.holds()), (Some(1.25), Some(false)));
        assert_eq!(figure.rivals[0].title(), "one, as stored");
        let mut wall = Figure::new(Measure::Wall, 3.0, None);
        wall.fonio = Series(vec![1.0]);
        assert_eq!((wall.ratio(), wall.holds()), (None, None));
        wall.add("one", Some("repacked"), Series(vec![5.0]));
        wall.add("one", Some("as stored"), Series(vec![4.0]));
        assert_eq!((wall.ratio(), wall.holds()), (Some(4.0), Some(true)));
    }

    #[test]
    fn tables_have_a_line_for_each_rival() {
        let report = Report { rounds: 3, races: vec![race(vec![figure()])], ..Report::default() };
        let text = report.markdown();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| tiny")).collect();
        assert_eq!(
            lines,
            [
                "| tiny | decode | 2 | tokens/s | 20.0 (19.0–21.0) | 80 % of read | one, as stored | 16.0 | \
                 64 % of read | 1.25 | 1.50 | **no** | 0.00 |",
                "| tiny | decode | 2 | tokens/s | 20.0 (19.0–21.0) | 80 % of read | a\\|b | 5.00 | 20 % of read | \
                 4.00 | 1.50 | yes | 0.00 |",
            ]
        );
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let head = text.lines().find(|line| line.starts_with("| case")).unwrap();
        assert!(lines.iter().all(|line| columns(line) == columns(head)));
    }

    #[test]
    fn json_names_are_stable() {
        let mut report = Report { rounds: 3, races: vec![race(vec![figure()])], ..Report::default() };
        report.limits.push(Limits { threads: 1, read: 1e9, bytes: 2e9, floats: 3e9 });
        let json = report.json();
        assert_eq!(json["limits"][0]["read_bytes_per_second"], 1e9);
        let figure = &json["races"][0]["figures"][0];
        assert_eq!((&figure["measure"], &figure["ratio"]), (&"tokens_per_second".into(), &1.25.into()));
        assert_eq!(figure["fonio"]["share_of_limit"], 0.8);
        assert_eq!(figure["rivals"][0]["settings"][0]["setting"], "as stored");
        assert_eq!((&figure["target"], &figure["holds"]), (&1.5.into(), &false.into()));
    }

    #[test]
    fn checks_say_what_is_missed() {
        let report = Report { races: vec![race(vec![figure()])], ..Report::default() };
        let reason = report.check().unwrap_err();
        assert!(reason.starts_with("1 of 1 targets are missed"), "{reason}");
        assert!(reason.contains("tiny, decode, 2 threads, tokens/s: 1.25 of 1.50"), "{reason}");
        let mut good = figure();
        good.target = 1.25;
        let mut report = Report { races: vec![race(vec![good])], ..Report::default() };
        assert_eq!(report.check(), Ok(()));
        report.races.push(Race { failed: Some("it crashed".into()), ..race(Vec::new()) });
        assert!(report.check().unwrap_err().contains("it crashed"));
        assert!(Report::default().check().unwrap_err().contains("nothing was raced"));
    }

    #[test]
    fn reasons_are_noted() {
        let skipped = Race { skipped: Some("no file".into()), others: 0.5, ..race(Vec::new()) };
        let mut report = Report { races: vec![skipped], ..Report::default() };
        report.note("twice".into());
        report.note("twice".into());
        let text = report.markdown();
        assert!(text.contains("- tiny, decode, 2 threads: skipped: no file\n"), "{text}");
        assert!(text.contains("0.50 CPUs busy") && text.matches("twice").count() == 1, "{text}");
    }
}
