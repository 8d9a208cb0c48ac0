//! What the command line of the races says.

use super::super::{USAGE, common};
use super::cases::{CASES, Case, WORKS, Work};
use std::path::PathBuf;

pub struct Options {
    /// Where models made up are kept.
    pub folder: PathBuf,
    /// The program, if it shall not be built.
    pub fonio: Option<PathBuf>,
    /// Names and commands.
    pub rivals: Vec<(String, String)>,
    /// Names and commands that print text.
    pub texts: Vec<(String, String)>,
    pub rounds: usize,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Names of work; empty for all.
    works: Vec<String>,
    pub json: bool,
    pub plot: Option<PathBuf>,
    /// Whether a missed target is an error.
    pub check: bool,
    pub cases: Vec<&'static Case>,
}

impl Options {
    pub fn read(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options {
            folder: common::folder(),
            fonio: None,
            rivals: Vec::new(),
            texts: Vec::new(),
            rounds: 5,
            threads: vec![2, 1],
            works: Vec::new(),
            json: false,
            plot: None,
            check: false,
            cases: Vec::new(),
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--json" => options.json = true,
                "--check" => options.check = true,
                "--dir" => options.folder = value()?.into(),
                "--fonio" => options.fonio = Some(value()?.into()),
                "--plot" => options.plot = Some(value()?.into()),
                "--rival" => options.rivals.push(named(argument, value()?)?),
                "--rival-text" => options.texts.push(named(argument, value()?)?),
                "--rounds" => options.rounds = count(argument, value()?)?,
                "--threads" => {
                    options.threads =
                        value()?.split(',').map(|n| count(argument, n)).collect::<Result<_, _>>()?;
                }
                "--work" => options.works = works(value()?)?,
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}\n{USAGE}"));
                }
                name => options.cases.push(case(name)?),
            }
        }
        if options.cases.is_empty() {
            options.cases = CASES.iter().filter(|case| case.usual).collect();
        }
        options.checked()
    }

    /// Refuses what would have no effect.
    fn checked(self) -> Result<Options, String> {
        let known = |name: &str| self.rivals.iter().filter(|(of, _)| of == name).count();
        if let Some((name, _)) = self.texts.iter().find(|(name, _)| known(name) == 0) {
            return Err(format!(
                "--rival-text {name}: add --rival '{name}=COMMAND …', which says how it races"
            ));
        }
        let taken = |name: &str| known(name) > 1 || matches!(name, "fonio" | "llama.cpp");
        if let Some((name, _)) = self.rivals.iter().find(|(name, _)| taken(name)) {
            return Err(format!("--rival {name}: the name is taken; give it another"));
        }
        if !self.cases.iter().any(|case| case.works.iter().any(|work| self.wants(work))) {
            let names: Vec<&str> = self.cases.iter().map(|case| case.name).collect();
            return Err(format!(
                "--work {}: not among what {} does; leave --work or name other cases",
                self.works.join(","),
                names.join(", ")
            ));
        }
        Ok(self)
    }

    /// Whether this work shall be done.
    pub fn wants(&self, work: &Work) -> bool {
        self.works.is_empty() || self.works.iter().any(|name| name == work.name)
    }
}

fn named(option: &str, text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, line)) if !name.trim().is_empty() && !line.trim().is_empty() => {
            Ok((name.trim().into(), line.into()))
        }
        _ => Err(format!("{option} {text}: write NAME=COMMAND")),
    }
}

fn count(option: &str, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err(format!("{option} {text}: a number from 1 to 1024")),
    }
}

fn works(text: &str) -> Result<Vec<String>, String> {
    let known: Vec<&str> = WORKS.iter().map(|work| work.name).collect();
    let names = text.split(',').map(|name| {
        if known.contains(&name) {
            Ok(name.to_owned())
        } else {
            Err(format!("no work is called {name}: there are {}", known.join(", ")))
        }
    });
    names.collect()
}

fn case(name: &str) -> Result<&'static Case, String> {
    CASES.iter().find(|case| case.name == name).ok_or_else(|| {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        format!("no case is called {name}: there are {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(arguments: &[&str]) -> Result<Options, String> {
        Options::read(&arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_read() {
        let options = read(&[
            "--json",
            "--check",
            "--dir",
            "/x",
            "--rival",
            "r=run {model} --n={n}",
            "--rival-text",
            "r=say",
            "--rounds",
            "3",
            "--threads",
            "1,4",
            "--work",
            "decode,start",
            "--plot",
            "p.svg",
            "smollm2-Q4_1",
        ])
        .unwrap();
        assert!(options.json && options.check && options.folder == Path::new("/x"));
        assert_eq!(options.rivals, [("r".into(), "run {model} --n={n}".into())]);
        assert_eq!(options.texts, [("r".into(), "say".into())]);
        assert_eq!((options.rounds, &options.threads[..]), (3, &[1, 4][..]));
        assert_eq!(options.plot.as_deref(), Some(Path::new("p.svg")));
        assert!(options.wants(&super::super::cases::DECODE) && !options.wants(&super::super::cases::PREFILL));
        assert_eq!((options.cases.len(), options.cases[0].name), (1, "smollm2-Q4_1"));
        let usual = read(&[]).unwrap();
        assert!(usual.cases.iter().all(|case| case.usual) && usual.threads == [2, 1]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_advice() {
        for (wrong, advice) in [
            (&["nothing"][..], "there are llama-1b-Q4_0"),
            (&["--no-such"], "usage"),
            (&["--dir"], "needs a value"),
            (&["--rounds", "0"], "a number from 1"),
            (&["--threads", "1,x"], "a number from 1"),
            (&["--rival", "command"], "NAME=COMMAND"),
            (&["--rival", "llama.cpp=x"], "give it another"),
            (&["--rival", "a=x", "--rival", "a=y"], "give it another"),
            (&["--rival-text", "a=x"], "add --rival"),
            (&["--work", "sleep"], "there are prefill"),
            (&["--work", "start", "llama-1b-F16"], "other cases"),
        ] {
            let reason = read(wrong).err().unwrap();
            assert!(reason.contains(advice), "{wrong:?}: {reason}");
        }
    }
}
