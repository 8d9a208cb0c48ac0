//! Models by name: fonio's store, the Hugging Face cache, Ollama's store.

use super::*;
use std::fs;

#[test]
fn names_are_found_in_fonios_store() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("models");
    fs::create_dir_all(&store).unwrap();
    gguf(&store, "llama-gqa", &[]);
    let run = |name: &str| {
        fonio().env("FONIO_HOME", home.path()).args(["inspect", name, "--json"]).output().unwrap()
    };
    assert!(run("llama-gqa").status.success());
    assert!(run("llama-gqa.gguf").status.success());
    assert_eq!(run("other").status.code(), Some(1));
    assert_eq!(run("../models/llama-gqa").status.code(), Some(1));
}

#[test]
fn names_are_found_in_the_hugging_face_cache() {
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("hub/models--some--tiny");
    let snapshot = repository.join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "abc").unwrap();
    for name in names(&model("llama-gqa")) {
        if !name.starts_with("expected") {
            fs::copy(model("llama-gqa").join(&name), snapshot.join(&name)).unwrap();
        }
    }
    let run = |name: &str| fonio().env("HF_HOME", home.path()).args(["inspect", name]).output().unwrap();
    for name in ["some/tiny", "some/tiny@main", "some/tiny@abc"] {
        assert!(run(name).status.success(), "{name}");
    }
    for name in ["some/other", "some/tiny@def", "some/tiny@.."] {
        assert_eq!(run(name).status.code(), Some(1), "{name}");
    }
    fs::write(repository.join("refs/main"), "../../..").unwrap();
    assert_eq!(run("some/tiny").status.code(), Some(1), "a reference leads out of the cache");
}

#[test]
fn names_are_found_in_ollamas_store() {
    let home = tempfile::tempdir().unwrap();
    let manifests = home.path().join("manifests/registry.ollama.ai/library/tiny");
    fs::create_dir_all(&manifests).unwrap();
    fs::create_dir_all(home.path().join("blobs")).unwrap();
    let digest = "0123456789abcdef".repeat(4);
    let file = gguf(home.path(), "llama-gqa", &[]);
    fs::rename(file, home.path().join(format!("blobs/sha256-{digest}"))).unwrap();
    let manifest = |digest: &str| {
        let layer = format!(r#"{{"mediaType":"application/vnd.ollama.image.model","digest":"{digest}"}}"#);
        format!(r#"{{"layers":[{{"mediaType":"other","digest":"x"}},{layer}]}}"#)
    };
    fs::write(manifests.join("latest"), manifest(&format!("sha256:{digest}"))).unwrap();
    fs::write(manifests.join("bad"), manifest("sha256:../../../etc/passwd")).unwrap();
    fs::write(manifests.join("odd"), "[".repeat(100_000)).unwrap();
    let run =
        |name: &str| fonio().env("OLLAMA_MODELS", home.path()).args(["inspect", name]).output().unwrap();
    assert!(run("tiny").status.success() && run("tiny:latest").status.success());
    for name in ["tiny:none", "tiny:bad", "tiny:odd", "other"] {
        assert_eq!(run(name).status.code(), Some(1), "{name}");
    }
}
