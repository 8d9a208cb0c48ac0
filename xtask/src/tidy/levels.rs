//! The rooms of the house: which crate may depend on which.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The level of each crate by its folder in `crates/`. A crate depends only on crates of a lower level.
const LEVELS: &[(&str, u32)] = &[
    ("simd", 0),
    ("text", 0),
    ("codec", 1),
    ("checkpoint", 2),
    ("kernel", 2),
    ("weights", 3),
    ("model", 4),
    ("engine", 5),
    ("quantize", 6),
    ("train", 5),
    ("serve", 6),
    ("agent", 6),
    ("cli", 7),
    ("python", 7),
];

/// A package of the repository.
pub struct Package {
    /// Folder, relative to the repository's root.
    pub folder: PathBuf,
    /// The root source files of its targets, relative as well.
    pub targets: Vec<PathBuf>,
    /// Folders of the packages that it needs, those for its tests left out.
    needs: Vec<PathBuf>,
}

/// The packages of the workspace with this manifest.
pub fn packages(root: &Path, manifest: &Path) -> Result<Vec<Package>, String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(root.join(manifest));
    let output = cargo.output().map_err(|e| format!("cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|e| format!("cargo metadata: {e}"))?;
    Ok(list(&metadata["packages"]).map(|package| Package::read(root, package)).collect())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Package {
    fn read(root: &Path, package: &Value) -> Package {
        let relative = |path: &Value| {
            let path = Path::new(path.as_str().unwrap_or_default());
            path.strip_prefix(root).unwrap_or(path).to_path_buf()
        };
        let manifest = relative(&package["manifest_path"]);
        let needs = list(&package["dependencies"]).filter(|d| d["kind"] != "dev" && d["path"].is_string());
        Package {
            folder: manifest.parent().unwrap_or(Path::new("")).to_path_buf(),
            targets: list(&package["targets"]).map(|t| relative(&t["src_path"])).collect(),
            needs: needs.map(|d| relative(&d["path"])).collect(),
        }
    }
}

fn level(folder: &Path) -> Option<u32> {
    let name = folder.strip_prefix("crates").ok()?;
    LEVELS.iter().find(|(n, _)| Path::new(n) == name).map(|&(_, level)| level)
}

/// What is wrong with a package's place in the house. Only the crates have a level; what stands beside them
/// (tests, chores) may depend on any, and none on it.
pub fn check(package: &Package) -> Vec<String> {
    let here = package.folder.display();
    if !package.folder.starts_with("crates") {
        return Vec::new();
    }
    let Some(own) = level(&package.folder) else {
        return vec![format!("{here}: has no level in the table of xtask/src/tidy/levels.rs")];
    };
    let wrong = package.needs.iter().filter(|need| level(need).is_none_or(|l| l >= own));
    wrong.map(|need| format!("{here}: is at level {own} and must not depend on {}", need.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(folder: &str, needs: &[&str]) -> Package {
        Package {
            folder: folder.into(),
            targets: Vec::new(),
            needs: needs.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn only_lower_levels() {
        assert!(check(&package("crates/model", &["crates/codec", "crates/weights"])).is_empty());
        assert!(check(&package("conformance", &["crates/engine"])).is_empty());
        assert_eq!(check(&package("crates/kernel", &["crates/checkpoint"])).len(), 1, "a neighbour");
        assert_eq!(
            check(&package("crates/codec", &["crates/engine", "crates/simd"])).len(),
            1,
            "a higher one"
        );
        assert_eq!(check(&package("crates/cli", &["conformance"])).len(), 1, "what is no crate");
        assert_eq!(check(&package("crates/misc", &[])).len(), 1, "no level");
    }

    #[test]
    fn reads_this_workspace() {
        let root = fonio_conformance::home::workspace();
        let packages = packages(root, Path::new("Cargo.toml")).unwrap();
        let engine = packages.iter().find(|p| p.folder == Path::new("crates/engine")).unwrap();
        assert!(engine.needs.contains(&"crates/model".into()), "{:?}", engine.needs);
        assert!(engine.targets.contains(&"crates/engine/src/lib.rs".into()), "{:?}", engine.targets);
    }
}
