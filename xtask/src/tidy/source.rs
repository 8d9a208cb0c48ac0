//! The rules for one source file.

use super::lexer;
use std::path::Path;

const MAX_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 80;
/// Tests are often tables of cases.
const MAX_TEST_LINES: usize = 120;

/// Folders whose code runs only for developers.
const TEST_FOLDERS: &[&str] = &["tests", "benches", "examples"];

/// Words that may stand only in some places.
struct Rule {
    words: &'static [&'static str],
    /// Paths, relative to the repository, under which they may.
    allowed: &'static [&'static str],
    /// Whether they may in tests.
    in_tests: bool,
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        words: &["dbg!", "todo!", "unimplemented!"],
        allowed: &[],
        in_tests: false,
        reason: "is not finished code",
    },
    Rule {
        words: &["println!", "print!", "eprintln!", "eprint!"],
        allowed: &["crates/cli", "xtask", "conformance", "bench", "fuzz"],
        in_tests: true,
        reason: "libraries return what they have to say",
    },
    Rule {
        words: &["core::arch", "std::arch"],
        allowed: &["crates/simd", "crates/kernel"],
        in_tests: false,
        reason: "instruction sets are at home in crates/simd",
    },
    // Tests that count allocated bytes need an allocator of their own; crates that forbid unsafe code do so there too.
    Rule { words: &["unsafe"], allowed: UNSAFE, in_tests: true, reason: "unsafe code has few homes" },
    Rule {
        words: &["env::var", "env::var_os", "env::vars", "env::vars_os", "env::set_var", "env::remove_var"],
        allowed: &["crates/cli", "xtask", "conformance", "bench", "fuzz"],
        in_tests: true,
        reason: "the environment is read in the command line alone; pass values down",
    },
    Rule { words: &["#[ignore]"], allowed: &[], in_tests: false, reason: "say why: #[ignore = \"reason\"]" },
];

/// Where `unsafe` may stand: vector instructions, threads that share buffers, memory maps, foreign functions.
const UNSAFE: &[&str] = &[
    "crates/simd",
    "crates/kernel",
    "crates/checkpoint/src/map.rs",
    // Counts what is allocated.
    "crates/checkpoint/tests/memory.rs",
    "crates/python",
    "conformance/src/llamacpp",
];

/// What is wrong with a Rust file. `path` is relative to the repository, `root_of_crate` tells a library's or
/// program's first file.
pub fn check(path: &Path, source: &str, root_of_crate: bool) -> Vec<String> {
    let code = lexer::mask(source);
    let mut wrong = Vec::new();
    let mut say = |line: usize, what: String| wrong.push(format!("{}:{line}: {what}", path.display()));
    if !source.starts_with("//!") {
        say(1, "does not begin with a //! header that says what the module is for".into());
    }
    let lines = source.lines().count();
    if lines > MAX_FILE_LINES {
        say(lines, format!("{lines} lines; at most {MAX_FILE_LINES}"));
    }
    let tests = lexer::test_items(&code);
    let test_file = path.components().any(|c| TEST_FOLDERS.iter().any(|t| c.as_os_str() == *t));
    for (name, range) in lexer::functions(&code) {
        let in_test = test_file || tests.iter().any(|t| t.contains(&range.start));
        let most = if in_test { MAX_TEST_LINES } else { MAX_FUNCTION_LINES };
        let (first, last) = (lexer::line(&code, range.start), lexer::line(&code, range.end - 1));
        let lines = last - first + 1;
        if lines > most {
            say(first, format!("fn {name} has {lines} lines; at most {most}"));
        }
    }
    for rule in RULES {
        if rule.allowed.iter().any(|a| path.starts_with(a)) || (rule.in_tests && test_file) {
            continue;
        }
        for word in rule.words {
            let found = lexer::words(&code, word);
            for at in found.filter(|at| !(rule.in_tests && tests.iter().any(|t| t.contains(at)))) {
                say(lexer::line(&code, at), format!("{word}: {}", rule.reason));
            }
        }
    }
    let safe_crate =
        path.starts_with("crates") && !UNSAFE.iter().any(|a| Path::new(a).starts_with(crate_of(path)));
    if root_of_crate && safe_crate && !code.contains("#![forbid(unsafe_code)]") {
        say(1, "has no unsafe code and must say #![forbid(unsafe_code)]".into());
    }
    wrong
}

/// `crates/NAME` of a file in it.
fn crate_of(path: &Path) -> std::path::PathBuf {
    path.components().take(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(path: &str, source: &str) -> Vec<String> {
        check(Path::new(path), source, false)
    }

    #[test]
    fn good_file() {
        let source =
            "//! A module.\nfn f() -> u8 { 1 }\n#[cfg(test)]\nmod tests { fn g() { println!(\"todo!\") } }\n";
        assert_eq!(wrong("crates/codec/src/x.rs", source), [""; 0]);
    }

    #[test]
    fn each_rule_bites() {
        let place = "crates/codec/src/x.rs";
        let long = format!("fn f() {{\n{}}}\n", "x();\n".repeat(79));
        for body in [
            "fn f() { dbg!(1); }",
            "fn f() { println!(); }",
            "use std::arch::x86_64;",
            "unsafe fn f() {}",
            "fn f() { std::env::var(\"A\"); }",
            "#[ignore]\nfn f() {}",
            &long,
            &"\n".repeat(800),
        ] {
            assert_eq!(wrong(place, &format!("//! A module.\n{body}")).len(), 1, "{body}");
        }
        assert_eq!(wrong(place, "fn f() {}").len(), 1, "no header");
        assert_eq!(
            wrong("crates/codec/tests/x.rs", "//! A test.\nfn f() { println!(); std::env::var(); }"),
            [""; 0]
        );
        assert_eq!(wrong("crates/codec/tests/x.rs", "//! A test.\nfn f() { todo!() }").len(), 1);
        let short = format!("//! A module.\nfn f() {{\n{}}}\n", "x();\n".repeat(78));
        assert_eq!(wrong(place, &short), [""; 0]);
        let test = |n| format!("//! A module.\n#[test]\nfn f() {{\n{}}}\n", "x();\n".repeat(n));
        assert_eq!((wrong(place, &test(118)).len(), wrong(place, &test(119)).len()), (0, 1));
    }

    #[test]
    fn homes() {
        let code = "//! A module.\nunsafe fn f() { core::arch::asm!(); }";
        assert_eq!(wrong("crates/simd/src/x.rs", code), [""; 0]);
        assert_eq!(wrong("crates/checkpoint/src/map.rs", code).len(), 1, "core::arch");
        assert_eq!(wrong("crates/checkpoint/src/gguf.rs", code).len(), 2);
    }

    #[test]
    fn safe_crates_say_so() {
        let root = |path: &str, source: &str| check(Path::new(path), source, true).len();
        assert_eq!(root("crates/codec/src/lib.rs", "//! Codecs."), 1);
        assert_eq!(root("crates/codec/src/lib.rs", "//! Codecs.\n#![forbid(unsafe_code)]"), 0);
        assert_eq!(root("crates/checkpoint/src/lib.rs", "//! Containers."), 0, "has a memory map");
    }
}
