//! Checks the rules of the house that a compiler does not: crate levels, sizes of files and functions, files that no
//! module declares, words that have no place where they stand, a header in every module.

mod levels;
mod lexer;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Written so that this file does not hold the flag that it looks for.
const NATIVE_FLAG: &str = concat!("target-cpu", "=native");

/// The largest file that the repository takes, in bytes: a small model fits, a package does not.
const MAX_FILE: u64 = 6 << 20;

/// Checks the repository at `root` and prints what is wrong.
pub fn run(root: &Path) -> Result<(), String> {
    let mut files = Vec::new();
    walk(root, Path::new(""), &mut files)?;
    let mut packages = levels::packages(root, Path::new("Cargo.toml"))?;
    // Packages that are no members of the workspace, such as fuzz targets.
    for manifest in files.iter().filter(|f| f.file_name().is_some_and(|n| n == "Cargo.toml")) {
        let folder = manifest.parent().unwrap_or(Path::new(""));
        if folder != Path::new("") && packages.iter().all(|p| p.folder != folder) {
            packages.extend(levels::packages(root, manifest)?);
        }
    }
    let mut wrong: Vec<String> = packages.iter().flat_map(levels::check).collect();
    let targets: BTreeSet<PathBuf> = packages.into_iter().flat_map(|p| p.targets).collect();
    wrong.extend(unreachable(root, &files, &targets));
    for file in &files {
        wrong.extend(check_file(root, file, &targets)?);
    }
    if wrong.is_empty() {
        println!("tidy: {} files are in order", files.len());
        return Ok(());
    }
    wrong.sort();
    println!("{}", wrong.join("\n"));
    Err(format!("tidy: {} things to mend", wrong.len()))
}

/// Lists the files under a folder, without build outputs and hidden folders other than the project's own.
fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let place = root.join(folder);
    let entries = fs::read_dir(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    for entry in entries {
        let entry = entry.map_err(|e| format!("{}: {e}", place.display()))?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(|e| e.to_string())?);
        let path = folder.join(&name);
        let hidden = name.as_encoded_bytes().starts_with(b".") && name != ".ci" && name != ".cargo";
        if kind.is_dir() && !hidden && name != "target" {
            walk(root, &path, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(root: &Path, file: &Path, targets: &BTreeSet<PathBuf>) -> Result<Vec<String>, String> {
    let len = fs::metadata(root.join(file)).map_err(|e| format!("{}: {e}", file.display()))?.len();
    if len > MAX_FILE {
        return Ok(vec![format!("{}: {len} bytes, of {MAX_FILE} that a file may have here", file.display())]);
    }
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let build_file = file.starts_with(".ci") || file.starts_with(".cargo");
    if !build_file && !matches!(extension, "rs" | "toml" | "sh" | "yml" | "yaml" | "py") {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(root.join(file)).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut wrong = Vec::new();
    if text.contains(NATIVE_FLAG) {
        wrong.push(format!("{}: {NATIVE_FLAG}: builds run on the oldest CPU of their kind", file.display()));
    }
    if extension == "rs" {
        let root_of_crate = targets.contains(file) && file.parent().is_some_and(|p| p.ends_with("src"));
        wrong.extend(source::check(file, &text, root_of_crate));
    }
    Ok(wrong)
}

/// Where an attribute says that a module's file is.
fn named_path<'a>(text: &'a str, module: &str) -> Option<&'a str> {
    let before = &text[..text.find(&format!("\"]\nmod {module};"))?];
    let (_, path) = before.rsplit_once("#[path = \"")?;
    (!path.contains('"')).then_some(path)
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

/// The Rust files that no target reaches by its module declarations, and declarations without a file.
fn unreachable(root: &Path, files: &[PathBuf], targets: &BTreeSet<PathBuf>) -> Vec<String> {
    let (mut reached, mut wrong) = (BTreeSet::new(), Vec::new());
    let mut open: Vec<PathBuf> = targets.iter().cloned().collect();
    while let Some(file) = open.pop() {
        if !reached.insert(file.clone()) {
            continue;
        }
        let text = fs::read_to_string(root.join(&file)).unwrap_or_default();
        let folder = file.parent().unwrap_or(Path::new(""));
        let stem = file.file_stem().unwrap_or_default();
        let inner =
            if targets.contains(&file) || stem == "mod" { folder.to_path_buf() } else { folder.join(stem) };
        let code = lexer::mask(&text);
        for name in lexer::file_modules(&code) {
            let places = match named_path(&text, name) {
                Some(path) => vec![normal(&folder.join(path))],
                None => vec![inner.join(format!("{name}.rs")), inner.join(name).join("mod.rs")],
            };
            match places.into_iter().find(|p| root.join(p).is_file()) {
                Some(place) => open.push(place),
                None => wrong.push(format!("{}: mod {name} has no file beside it", file.display())),
            }
        }
        // A macro that makes a module of each name in a list: `mod $name;`.
        if lexer::words(&code, "mod $").next().is_some() {
            let beside = files.iter().filter(|f| f.parent() == Some(&inner));
            let stem = |f: &Path| f.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            open.extend(beside.filter(|f| lexer::words(&code, &stem(f)).next().is_some()).cloned());
        }
    }
    let sources = files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs"));
    wrong.extend(
        sources.filter(|f| !reached.contains(*f)).map(|f| format!("{}: no module declares it", f.display())),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_files_and_native_flags_are_found() {
        let root = std::env::temp_dir().join(format!("fonio-tidy-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("src/lib.rs", "//! L.\nmod a;\nmod gone;\n// mod dead;\n");
        write("src/a.rs", "//! A.\nmod b;\n");
        write("src/a/b.rs", "//! B.\nmacro_rules! m { ($($n:ident)*) => { $(mod $n;)* } }\nm! { c }\n// d\n");
        write("src/a/b/c.rs", "//! C.\n");
        write("src/a/b/d.rs", "//! D.\n");
        write("src/dead.rs", "//! D.\n");
        write("target/x.rs", "");
        write(".cargo/config.toml", &format!("rustflags = ['-C', '{NATIVE_FLAG}']"));
        let targets = BTreeSet::from([PathBuf::from("src/lib.rs")]);
        let mut files = Vec::new();
        walk(&root, Path::new(""), &mut files).unwrap();
        let mut wrong = unreachable(&root, &files, &targets);
        wrong.extend(files.iter().flat_map(|f| check_file(&root, f, &targets).unwrap()));
        fs::remove_dir_all(&root).unwrap();
        wrong.sort();
        let starts =
            [".cargo/config.toml: ", "src/a/b/d.rs: no", "src/dead.rs: no module", "src/lib.rs: mod gone"];
        assert_eq!(wrong.len(), starts.len(), "{wrong:?}");
        assert!(wrong.iter().zip(starts).all(|(w, s)| w.starts_with(s)), "{wrong:?}");
    }
}
