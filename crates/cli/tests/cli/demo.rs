//! `fonio demo` and the embedded model.

use super::*;

#[test]
fn the_demonstration_goes_all_the_way() {
    let scratch = tempfile::tempdir().unwrap();
    let (home, out) = (scratch.path().join("home"), scratch.path().join("out"));
    let run = |arguments: &[&str]| fonio().env("FONIO_HOME", &home).args(arguments).output().unwrap();
    let output = run(&["demo", "-o", arg(&out)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    for part in ["Q8_0", "Q4_K_M", "sound", "perplexity", "Once upon a time", "tokens/s"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(names(&out), ["grain-Q4_K_M.gguf", "grain-Q8_0.gguf"]);
    for file in names(&out) {
        good(&["verify", arg(&out.join(file))]);
    }
    let ran = run(&["run", "grain", "-p", "Once upon a time", "-n", "20", "--json"]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    // A model of one's own with that name is meant before the embedded one.
    std::fs::copy(out.join("grain-Q8_0.gguf"), home.join("models/grain.gguf")).unwrap();
    assert!(text(&run(&["inspect", "grain"]).stdout).contains("Q8_0"));
    assert_eq!(names(&home.join("models")), [".embedded", "grain.gguf"]);
}

#[test]
fn half_unpacked_models_are_not_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let run =
        || fonio().env("FONIO_HOME", scratch.path()).args(["inspect", "grain", "--json"]).output().unwrap();
    let seen: serde_json::Value = serde_json::from_slice(&run().stdout).unwrap();
    let file = PathBuf::from(seen["files"][0]["path"].as_str().unwrap());
    assert!(file.starts_with(scratch.path()), "{}", file.display());
    std::fs::write(&file, "spoilt").unwrap();
    let output = fonio()
        .env("FONIO_HOME", scratch.path())
        .env("TMPDIR", scratch.path().join("tmp"))
        .args(["verify", "grain"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
