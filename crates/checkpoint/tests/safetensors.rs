//! safetensors: what is written is read again, sharded models, every rule broken once.

mod common;

use common::Dir;
use fonio_checkpoint::{Checkpoint, Error, Metadata, TensorPlan, Value, WriteOptions, fuzzing, list, open};
use fonio_codec::DType;
use fonio_conformance::home;
use std::path::{Path, PathBuf};

fn plan(name: &str, dtype: &str, shape: &[u64]) -> TensorPlan {
    TensorPlan::new(name, DType::named(dtype).unwrap(), shape)
}

fn tensors() -> Vec<TensorPlan> {
    vec![
        plan("model.embed", "BF16", &[3, 5]),
        plan("scalar", "F64", &[]),
        plan("none", "F16", &[4, 0, 2]),
        plan("i64", "I64", &[2, 1, 1, 1, 1, 2]),
        plan("quote\"\n", "U8", &[3]),
        plan("mask", "BOOL", &[2, 2]),
        plan("größe", "I8", &[1]),
        plan("i16", "I16", &[2]),
        plan("last", "F32", &[7]),
    ]
}

fn contents(plans: &[TensorPlan]) -> Vec<u8> {
    let total: u64 = plans.iter().map(|p| p.nbytes().unwrap()).sum();
    (0..total).map(|i| (i * 5 + 1) as u8).collect()
}

fn write(
    path: &Path,
    m: &Metadata,
    plans: &[TensorPlan],
    options: &WriteOptions,
) -> Result<Vec<PathBuf>, Error> {
    let create = list::named("safetensors").unwrap().create.unwrap();
    let mut writer = create(path, m, plans, options)?;
    for chunk in contents(plans).chunks(11) {
        writer.append(chunk)?;
    }
    writer.finish()
}

fn check(opened: &dyn Checkpoint, plans: &[TensorPlan]) {
    let all = contents(plans);
    let mut at = 0;
    assert_eq!(opened.tensors().len(), plans.len());
    for plan in plans {
        let want = &all[at..][..plan.nbytes().unwrap() as usize];
        at += want.len();
        let i = opened.find(&plan.name).unwrap();
        let info = &opened.tensors()[i];
        assert_eq!((&info.name, info.dtype, &info.shape), (&plan.name, plan.dtype, &plan.shape));
        assert_eq!(*opened.bytes(i).unwrap(), *want);
        let mut read = vec![0; want.len()];
        opened.read(i, 0, &mut read).unwrap();
        assert_eq!(read, want);
    }
}

#[test]
fn written_is_read_again() {
    let dir = Dir::new();
    let path = dir.join("m.safetensors");
    let mut m = Metadata::new();
    m.insert("author", "a \"b\" \u{1F33E}");
    m.insert("number", 3u32);
    write(&path, &m, &tensors(), &WriteOptions::default()).unwrap();
    let opened = open(&path).unwrap();
    assert_eq!((opened.container(), opened.files()), ("safetensors", &[path.clone()][..]));
    check(&*opened, &tensors());
    let keys: Vec<_> = opened.metadata().iter().map(|(k, v)| (k, v.as_str().unwrap())).collect();
    assert_eq!(keys, [("format", "pt"), ("author", "a \"b\" \u{1F33E}")]);
    let header = u64::from_le_bytes(std::fs::read(&path).unwrap()[..8].try_into().unwrap());
    assert!(header.is_multiple_of(8));
    write(&dir.join("none.safetensors"), &Metadata::new(), &[], &WriteOptions::default()).unwrap();
    check(&*open(&dir.join("none.safetensors")).unwrap(), &[]);
}

#[test]
fn sharded_models() {
    let by_tensors = WriteOptions { max_file_tensors: Some(4), ..Default::default() };
    let by_bytes = WriteOptions { max_file_bytes: Some(500), ..Default::default() };
    for options in [by_tensors, by_bytes] {
        let dir = Dir::new();
        let paths = write(&dir.join("model.safetensors"), &Metadata::new(), &tensors(), &options).unwrap();
        let (index, files) = paths.split_last().unwrap();
        assert_eq!(*index, dir.join("model.safetensors.index.json"));
        assert!(files.len() > 1);
        for (i, file) in files.iter().enumerate() {
            assert_eq!(*file, dir.join(&format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len())));
            if let Some(max) = options.max_file_bytes {
                assert!(std::fs::metadata(file).unwrap().len() <= max);
            }
        }
        for by in [dir.path(), index, &files[0], &files[1]] {
            let opened = open(by).unwrap();
            assert_eq!(opened.files(), files);
            check(&*opened, &tensors());
        }
        let text = std::fs::read_to_string(index).unwrap();
        // The index names what is not there, and does not name what is.
        let more = format!("\"weight_map\": {{\"more\": {:?},", files[0].file_name().unwrap());
        for (from, to) in [("\"last\"", "\"first\""), ("\"weight_map\": {", &*more)] {
            std::fs::write(index, text.replace(from, to)).unwrap();
            let error = open(index).err().unwrap();
            assert!(matches!(error, Error::Corrupt { tensor: Some(_), .. }), "{error}");
        }
        std::fs::write(index, text.replace("model-00001", "../model-00001")).unwrap();
        assert!(open(index).err().unwrap().to_string().contains("not the name of a file beside the index"));
        // Without an index the names say what belongs together.
        std::fs::remove_file(index).unwrap();
        check(&*open(&files[1]).unwrap(), &tensors());
        std::fs::remove_file(&files[0]).unwrap();
        let error = open(&files[1]).err().unwrap();
        assert!(matches!(&error, Error::Corrupt { file, .. } if *file == files[0]), "{error}");
        std::fs::write(index, text).unwrap();
        let error = open(index).err().unwrap();
        assert!(matches!(&error, Error::Corrupt { file, .. } if *file == files[0]), "{error}");
    }
}

#[test]
fn plans_that_cannot_be_written() {
    let dir = Dir::new();
    let refuse = |plans: &[TensorPlan]| {
        let error = write(&dir.join("m.safetensors"), &Metadata::new(), plans, &WriteOptions::default());
        let error = error.err().unwrap();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(dir.names(), [""; 0]);
        error.to_string()
    };
    assert!(refuse(&[plan("t", "Q8_0", &[32])]).contains("no type Q8_0"));
    assert!(refuse(&[plan("t", "F32", &[1]), plan("t", "F32", &[1])]).contains("two"));
    assert!(refuse(&[plan("__metadata__", "F32", &[1])]).contains("two"));
    assert!(refuse(&[plan("t", "F32", &[1 << 32, 1 << 32])]).contains("overflow"));
    let halves = [plan("t", "U8", &[1 << 62]), plan("u", "U8", &[1 << 62]), plan("v", "F32", &[1 << 60])];
    assert!(
        refuse(&[halves.clone().to_vec(), vec![plan("w", "F32", &[1 << 60])]].concat()).contains("overflow")
    );
}

#[test]
fn a_real_file() {
    let Some(path) = home::need(home::MINILM, home::model(home::MINILM)) else { return };
    let opened = open(&path).unwrap();
    assert_eq!(opened.metadata().get("format").and_then(Value::as_str), Some("pt"));
    let at = opened.find("embeddings.word_embeddings.weight").unwrap();
    assert_eq!(opened.tensors()[at].shape, [30_522, 384]);
    assert_eq!(opened.bytes(at).unwrap().len(), 30_522 * 384 * 4);
    let all: u64 = opened.tensors().iter().map(|t| t.nbytes).sum();
    let last = opened.tensors().last().unwrap();
    assert_eq!(last.offset + last.nbytes, std::fs::metadata(&path).unwrap().len());
    assert!(all > 90_000_000);
    assert_eq!(open(path.parent().unwrap()).unwrap().tensors().len(), opened.tensors().len());
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

#[test]
fn files_at_the_edge_of_the_rules() {
    for (header, data, tensors) in [
        ("{}", 0, 0),
        ("{}      ", 0, 0),
        ("{\"__metadata__\":{}}\n\t ", 0, 0),
        (r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 4, 1),
        (r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, 0, 1),
        (r#"{"a":{"dtype":"F32","shape":[1152921504606846975,0],"data_offsets":[0,0]}}"#, 0, 1),
        (
            r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"shape":[1],"data_offsets":[0,1],"dtype":"BOOL"},"z":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}"#,
            2,
            3,
        ),
        (r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1, 1),
    ] {
        let opened = fuzzing::safetensors(&file(header, data)).unwrap_or_else(|e| panic!("{header}: {e}"));
        assert_eq!(opened.tensors().len(), tensors, "{header}");
        assert!(opened.tensors().windows(2).all(|t| t[0].offset <= t[1].offset));
    }
}

#[test]
fn every_rule_broken() {
    let one = |fields: &str| file(&format!("{{\"a\":{{{fields}}}}}"), 4);
    let two = |a: (u64, u64), b: (u64, u64), data| {
        let entry = |r: (u64, u64)| {
            format!(
                r#"{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}"#,
                r.1.saturating_sub(r.0),
                r.0,
                r.1
            )
        };
        file(&format!("{{\"a\":{},\"b\":{}}}", entry(a), entry(b)), data)
    };
    let named = |len: u64, header: &str| [&len.to_le_bytes()[..], header.as_bytes()].concat();
    let long = |n: usize| format!("[{}1]", "1,".repeat(n));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "too few"),
        ("seven bytes", vec![0; 7], "too few"),
        ("a header of no bytes", named(0, ""), "begin with {"),
        ("a header of no bytes, then data", named(0, "{}"), "begin with {"),
        ("past the end", named(3, "{}"), "a header of 3 bytes"),
        ("past every end", named(u64::MAX, "{}"), "a header of"),
        ("space before", file(" {}", 0), "begin with {"),
        ("no object", file("[]", 0), "begin with {"),
        ("open", file("{", 0), "EOF"),
        ("two objects", file("{}{}", 0), "trailing"),
        ("zero after", file("{}\0", 0), "trailing"),
        ("not UTF-8", [&named(9, "{\"a\":\"")[..], b"\xff\"}"].concat(), "JSON"),
        ("key not UTF-8", [&named(7, "{\"")[..], b"\xff\":1}"].concat(), "unicode"),
        ("lone surrogate", file("{\"\\ud800\":1}", 0), "JSON"),
        ("number", file(r#"{"a":1}"#, 0), "expected an object"),
        ("array for a tensor", file(r#"{"a":["F32",[1],[0,4]]}"#, 4), "expected an object"),
        ("null", file(r#"{"a":null}"#, 0), "expected an object"),
        ("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "twice"),
        ("metadata key twice", file(r#"{"__metadata__":{"a":"","a":""}}"#, 0), "twice"),
        ("metadata number", file(r#"{"__metadata__":{"a":1}}"#, 0), "string"),
        ("metadata nested", file(r#"{"__metadata__":{"a":{}}}"#, 0), "string"),
        (
            "name twice",
            file(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            ),
            "twice",
        ),
        (
            "name twice, escaped",
            file(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                0,
            ),
            "twice",
        ),
        ("field twice", one(r#""dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]"#), "twice"),
        ("field unknown", one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1"#), "unknown"),
        ("no dtype", one(r#""shape":[1],"data_offsets":[0,4]"#), "missing"),
        ("no shape", one(r#""dtype":"F32","data_offsets":[0,4]"#), "missing"),
        ("no offsets", one(r#""dtype":"F32","shape":[1]"#), "missing"),
        ("three offsets", one(r#""dtype":"F32","shape":[1],"data_offsets":[0,4,4]"#), "JSON"),
        ("one offset", one(r#""dtype":"F32","shape":[1],"data_offsets":[4]"#), "JSON"),
        ("negative dimension", one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), "JSON"),
        ("fraction", one(r#""dtype":"F32","shape":[1.0],"data_offsets":[0,4]"#), "JSON"),
        (
            "above 64 bits",
            one(r#""dtype":"F32","shape":[18446744073709551617],"data_offsets":[0,4]"#),
            "JSON",
        ),
        ("text dimension", one(r#""dtype":"F32","shape":["1"],"data_offsets":[0,4]"#), "JSON"),
        ("nested shape", one(r#""dtype":"F32","shape":[[1]],"data_offsets":[0,4]"#), "JSON"),
        ("shape too small", one(r#""dtype":"F32","shape":[],"data_offsets":[0,0]"#), "has 4 bytes"),
        ("shape too large", one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), "has 8 bytes"),
        (
            "overflow",
            one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]"#),
            "overflow",
        ),
        (
            "overflow behind a zero",
            one(r#""dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,4]"#),
            "overflow",
        ),
        (
            "overflow to the right size",
            one(r#""dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]"#),
            "overflow",
        ),
        ("backwards", two((2, 0), (2, 4), 4), "out of range"),
        ("begins late", two((1, 2), (2, 4), 4), "gap"),
        ("hole", two((0, 1), (2, 4), 4), "gap"),
        ("overlap", two((0, 3), (2, 4), 4), "overlap"),
        ("same place", two((0, 4), (0, 4), 4), "overlap"),
        ("inside", two((0, 4), (1, 2), 4), "overlap"),
        ("data missing", two((0, 2), (2, 4), 3), "out of range"),
        ("data left", two((0, 2), (2, 4), 5), "end after 4"),
        ("data without tensors", file("{}", 1), "end after 0"),
        ("offset of 2^64-1", two((0, 4), (4, u64::MAX), 4), "out of range"),
    ];
    for (what, bytes, reason) in &cases {
        let error = fuzzing::safetensors(bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
        let text = error.to_string();
        assert!(matches!(error, Error::Corrupt { offset: Some(_), .. }), "{what}: {error:?}");
        assert!(text.contains(reason), "{what}: {text}");
    }
    let named_tensor = one(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#);
    let error = fuzzing::safetensors(&named_tensor).err().unwrap();
    assert!(matches!(error, Error::Corrupt { tensor: Some(name), .. } if name == "a"));
    for dtype in ["F8_E4M3FNUZ", "F8_E3M4", "U16", "U64", "C64", "F4", "Q8_0", "f32", ""] {
        let bytes = one(&format!(r#""dtype":"{dtype}","shape":[1],"data_offsets":[0,4]"#));
        let error = fuzzing::safetensors(&bytes).err().unwrap();
        assert!(matches!(&error, Error::Unsupported { tensor: Some(name), .. } if name == "a"), "{error}");
        assert!(error.to_string().contains(dtype));
    }
    let dims = one(&format!(r#""dtype":"F32","shape":{},"data_offsets":[0,4]"#, long(64)));
    assert!(matches!(fuzzing::safetensors(&dims), Err(Error::Limit { .. })));
    let deep = file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0);
    assert!(matches!(fuzzing::safetensors(&deep), Err(Error::Corrupt { .. })));
    let deep = file(&format!("{{\"a\":{{\"shape\":{}", "[".repeat(100_000)), 0);
    assert!(matches!(fuzzing::safetensors(&deep), Err(Error::Corrupt { .. })));
}

#[test]
fn a_header_beyond_the_limit() {
    // Sparse: it takes no room on the disk.
    let dir = Dir::new();
    let path = dir.write("m.safetensors", &[&100_000_001u64.to_le_bytes()[..], b"{"].concat());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    assert!(matches!(open(&path), Err(Error::Limit { .. })));
}
