//! The fuzz target's body over its corpus and over mutations of it: the same ones in every run.

use std::path::Path;

use fonio_text::{Error, fuzzing};

fn files() -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/tokenizer");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(read).collect();
    files.sort();
    assert!(files.len() >= 8, "{}", files.len());
    files
}

fn random(state: &mut u64, n: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % n.max(1) as u64) as usize
}

/// One to four changes of the kinds that break parsers.
fn mutate(state: &mut u64, bytes: &mut Vec<u8>, other: &[u8]) {
    const EDGES: [&[u8]; 8] =
        [b"-1", b"4294967295", b"1e400", b"null", b"\"\"", b"\\ud800", &[0xff; 9], &[0x80; 11]];
    for _ in 0..1 + random(state, 4) {
        let at = random(state, bytes.len() + 1);
        let end = (at + random(state, 40)).min(bytes.len());
        match random(state, 6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random(state, 8),
            1 if at < bytes.len() => bytes[at] = random(state, 256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            4 => drop(bytes.splice(at..end, EDGES[random(state, 8)].iter().copied())),
            _ => {
                let from = random(state, other.len() + 1);
                let to = (from + random(state, 60)).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
}

#[test]
fn tokenizer() {
    let files = files();
    for (name, bytes) in &files {
        let read = fuzzing::tokenizer(bytes);
        assert_eq!(read.is_ok(), !name.starts_with("bad-"), "{name}: {:?}", read.err());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let runs = 4000;
    let (mut fine, mut bad) = (0, 0);
    for _ in 0..runs {
        let mut bytes = files[random(&mut state, files.len())].1.clone();
        let other = random(&mut state, files.len());
        mutate(&mut state, &mut bytes, &files[other].1);
        match fuzzing::tokenizer(&bytes) {
            Ok(_) => fine += 1,
            Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => bad += 1,
            Err(other) => panic!("{other}"),
        }
    }
    // Neither is the corpus refused as a whole, nor is everything taken.
    assert!(fine > runs / 100 && bad > runs / 10, "{fine} of {runs} were accepted");
}
