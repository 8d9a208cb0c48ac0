//! Names of the files of a set: `NAME-00001-of-00003.EXT`, counted from one.

use crate::Error;
use std::path::{Path, PathBuf};

/// Takes `NAME-00002-of-00003.EXT` apart: the name, which file it is counted from zero, how many there are, the
/// extension.
pub(crate) fn split_name(path: &Path) -> Option<(&str, u64, u64, &str)> {
    let (stem, extension) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (name, no) = stem.rsplit_once('-')?;
    let number =
        |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u64>().ok())?;
    let (no, count) = (number(no)?, number(count)?);
    (no >= 1 && no <= count).then_some((name, no.saturating_sub(1), count, extension))
}

/// The name of a file of a set, beside `base`, which is the name that the whole would have.
pub(crate) fn name_of(base: &Path, no: usize, count: usize) -> PathBuf {
    let stem = base.file_stem().unwrap_or_default().to_string_lossy();
    let extension = base.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    base.with_file_name(format!("{stem}-{:05}-of-{count:05}{extension}", no.saturating_add(1)))
}

/// All files of the set that `path` belongs to by its name, if there are to be `count`.
pub(crate) fn siblings(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    let (name, _, named, extension) = split_name(path)?;
    let file = |no: u64| path.with_file_name(format!("{name}-{no:05}-of-{count:05}.{extension}"));
    (named == count).then(|| (1..=count).map(file).collect())
}

/// An error that says which part is missing, if it is.
pub(crate) fn require(path: &Path, no: usize, count: u64) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let reason = format!("part {} of a set of {count} files is missing", no.saturating_add(1));
    Err(Error::Corrupt { file: path.into(), tensor: None, offset: None, reason })
}

/// Whether this is the name of a file in a folder and nothing else, on every system: no separator, drive, stream,
/// device or parent.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let device = match stem.as_str() {
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" => true,
        s => (s.starts_with("COM") || s.starts_with("LPT")) && s.chars().count() == 4,
    };
    let length = (1..=255).contains(&name.len());
    let letters = name.chars().all(|c| !c.is_control() && !r#"/\:*?"<>|"#.contains(c));
    length && letters && !device && !name.ends_with(['.', ' ']) && !name.starts_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names() {
        for name in
            ["a", "model-00001-of-00002.safetensors", "..a", ".a", "größe.bin", "console.bin", "com.bin"]
        {
            assert!(is_plain_name(name), "{name:?}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "/a",
            "a\\b",
            "\\\\host\\a",
            "c:",
            "a:b",
            "a\0",
            "a\n",
            "a.",
            "a ",
            " a",
            "nul",
            "NUL.bin",
            "aux .bin",
            "com1",
            "LPT9.x",
            "com¹.bin",
            "a*",
            "a?",
            "CONIN$",
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(!is_plain_name(&"a".repeat(256)));
    }

    #[test]
    fn names() {
        let split = |s: &'static str| split_name(Path::new(s));
        assert_eq!(split("/d/a-b-00002-of-00003.gguf"), Some(("a-b", 1, 3, "gguf")));
        for no in
            ["a.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00003"]
        {
            assert_eq!(split(no), None, "{no}");
        }
        assert_eq!(split("a-+0001-of-00003.gguf"), None);
        assert_eq!(name_of(Path::new("/d/a.b.gguf"), 0, 12), Path::new("/d/a.b-00001-of-00012.gguf"));
        let all = siblings(Path::new("/d/a-00002-of-00002.x"), 2).unwrap();
        assert_eq!(all, [Path::new("/d/a-00001-of-00002.x"), Path::new("/d/a-00002-of-00002.x")]);
        assert_eq!(siblings(Path::new("/d/a-00002-of-00002.x"), 3), None);
    }
}
