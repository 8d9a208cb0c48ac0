//! The fuzz targets' bodies over their corpus and over mutations of it: the same ones in every run.

mod common;

use common::{Dir, EDGES, Random};
use fonio_checkpoint::{
    Checkpoint, Compression, Error, Group, Metadata, TensorPlan, Term, Value, WriteOptions, fuzzing, list,
};
use fonio_codec::DType;
use std::path::{Path, PathBuf};

type Body = fn(&[u8]) -> Result<Box<dyn Checkpoint>, Error>;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(corpus(target))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_none_or(|e| e != "py"))
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{target}: {}", files.len());
    files
}

/// One to four changes of the kinds that break parsers.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        let len = random.below(40).min(bytes.len() - at);
        let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => drop(bytes.splice(at..at, edge[..1 << random.below(4)].iter().copied())),
            5 => {
                let width = (1 << random.below(4)).min(bytes.len() - at);
                bytes[at..][..width].copy_from_slice(&edge[..width]);
            }
            6 => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            7 => {
                let from = random.below(other.len() + 1);
                let part = &other[from..][..random.below(60).min(other.len() - from)];
                drop(bytes.splice(at..at + len, part.iter().copied()));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add(1);
                }
            }
        }
    }
}

fn replay(target: &str, body: Body, runs: usize) {
    let files = files(target);
    for (name, bytes) in &files {
        let opened = body(bytes);
        assert_eq!(opened.is_ok(), !name.starts_with("bad-"), "{target}/{name}: {:?}", opened.err());
    }
    let mut random = Random(target.len() as u64);
    let (mut fine, mut bad) = (0, 0);
    for _ in 0..runs {
        let mut bytes = files[random.below(files.len())].1.clone();
        let other = random.below(files.len());
        mutate(&mut random, &mut bytes, &files[other].1);
        match body(&bytes) {
            Ok(_) => fine += 1,
            Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => bad += 1,
            Err(other) => panic!("{target}: {other}"),
        }
    }
    // Neither is the corpus refused as a whole, nor is everything taken.
    assert!(fine > runs / 1000 && bad > runs / 10, "{target}: {fine} of {runs} were accepted");
}

#[test]
fn gguf() {
    replay("gguf", fuzzing::gguf, 10_000);
}

#[test]
fn safetensors() {
    replay("safetensors", fuzzing::safetensors, 10_000);
}

#[test]
fn pytorch() {
    replay("pytorch", fuzzing::pytorch, 10_000);
}

#[test]
fn pickle() {
    replay("pickle", fuzzing::pickle, 10_000);
}

#[test]
fn cawsf() {
    for (name, bytes) in common::cawsf::corpus().into_iter().chain(common::cawsf2::corpus()) {
        let kept = corpus("cawsf").join(name);
        if std::env::var_os("FONIO_BLESS").is_some() {
            std::fs::create_dir_all(corpus("cawsf")).unwrap();
            std::fs::write(&kept, &bytes).unwrap();
        }
        assert!(std::fs::read(&kept).unwrap() == bytes, "{} is not what is made now", kept.display());
    }
    replay("cawsf", fuzzing::cawsf_sealed, 10_000);
}

#[test]
fn qsf() {
    replay("qsf", fuzzing::qsf_sealed, 10_000);
}

/// Those files of the corpus that fonio writes are what it writes now; with `FONIO_BLESS=1` they are written anew.
#[test]
fn written_files() {
    let plan =
        |name: &str, dtype: &str, shape: &[u64]| TensorPlan::new(name, DType::named(dtype).unwrap(), shape);
    let write = |target: &str, name: &str, m: &Metadata, plans: &[TensorPlan], options: &WriteOptions| {
        let (dir, container) = (Dir::new(), list::named(target).unwrap());
        let path = dir.join("x").with_extension(container.extensions[0]);
        let mut writer = (container.create.unwrap())(&path, m, plans, options).unwrap();
        let total: u64 = plans.iter().map(|p| p.nbytes().unwrap()).sum();
        writer.append(&vec![3; total as usize]).unwrap();
        let files = writer.finish().unwrap();
        let (bytes, kept) = (std::fs::read(&files[0]).unwrap(), corpus(target).join(name));
        if std::env::var_os("FONIO_BLESS").is_some() {
            std::fs::write(&kept, &bytes).unwrap();
        }
        assert!(std::fs::read(&kept).unwrap() == bytes, "{} is not what is written now", kept.display());
    };
    let plans = [plan("a.weight", "F32", &[2, 3]), plan("empty", "F16", &[0, 4]), plan("s", "BF16", &[])];
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("general.alignment", 64u32);
    m.insert("scores", vec![0.5f32, 1.0]);
    m.insert("tokens", Value::Array(fonio_checkpoint::Array::String(["a", "ß", ""].into_iter().collect())));
    m.insert("flags", vec![true, false]);
    let (one, two) =
        (WriteOptions::default(), WriteOptions { max_file_tensors: Some(1), ..Default::default() });
    write("gguf", "kinds.gguf", &m, &plans, &one);
    write("gguf", "part.gguf", &m, &plans, &two);
    write("gguf", "none.gguf", &Metadata::new(), &[], &one);
    let packed = [plan("q", "Q4_0", &[2, 32]), plan("k", "Q6_K", &[256]), plan("i8", "I8", &[5])];
    write("gguf", "packed.gguf", &Metadata::new(), &packed, &one);
    write("safetensors", "kinds.safetensors", &m, &plans, &one);
    write("safetensors", "none.safetensors", &Metadata::new(), &[], &one);
    let of = |group: Group, plan: TensorPlan| TensorPlan { group, ..plan };
    let mut parts = vec![
        plan("token_embd.weight", "Q8_0", &[2, 32]),
        of(Group::Layer(0), plan("norm", "F32", &[3])),
        of(Group::Layer(0), plan("q", "4bit_32", &[9, 32])),
        of(Group::Experts(0), plan("up", "F16", &[2, 30, 8])),
        of(Group::Experts(0), plan("down", "Q4_0", &[2, 5, 32])),
        of(Group::Layer(1), plan("empty", "F16", &[0, 4])),
    ];
    write("qsf", "v2-kinds.qsf", &m, &parts, &one);
    write("qsf", "v2-none.qsf", &Metadata::new(), &[], &one);
    for (name, method) in [("v2-lz4.qsf", Compression::Lz4), ("v2-zstd.qsf", Compression::Zstd)] {
        write("qsf", name, &Metadata::new(), &parts, &WriteOptions { compress: Some(method), ..one.clone() });
    }
    // Codes of 3 have a row in tables of four.
    parts.push(of(Group::Layer(0), plan("codes", "U8", &[9, 8])));
    parts.push(of(Group::Layer(0), plan("tables", "F16", &[2, 4, 4])));
    parts.push(of(Group::Layer(0), plan("left", "F32", &[9, 2])));
    parts.push(of(Group::Layer(0), plan("right", "F32", &[2, 32])));
    parts.push(of(Group::Layer(0), plan("bands", "F16", &[2, 9])));
    let terms = vec![
        Term::Whole { plane: 2 },
        Term::Vectors { codes: 6, tables: 7 },
        Term::Product { left: 8, right: 9 },
        Term::Band { plane: 10, first: -1 },
    ];
    parts.push(TensorPlan { terms, ..of(Group::Layer(0), plan("sum", "F32", &[9, 32])) });
    write("qsf", "v2-sum.qsf", &Metadata::new(), &parts, &one);
}
