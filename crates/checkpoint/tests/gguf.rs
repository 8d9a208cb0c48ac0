//! GGUF: what is written is read again, sets, folders, real files.

mod common;

use common::Dir;
use fonio_checkpoint::{
    Array, Checkpoint, Error, Metadata, Strings, TensorPlan, Value, WriteOptions, list, open,
};
use fonio_codec::DType;
use fonio_conformance::home;
use std::path::{Path, PathBuf};

fn dtype(name: &str) -> DType {
    DType::named(name).unwrap()
}

fn plan(name: &str, dtype_name: &str, shape: &[u64]) -> TensorPlan {
    TensorPlan::new(name, dtype(dtype_name), shape)
}

fn every_kind() -> Metadata {
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("u8", Value::U8(200));
    m.insert("i8", Value::I8(-100));
    m.insert("u16", Value::U16(60_000));
    m.insert("i16", Value::I16(-30_000));
    m.insert("u32", Value::U32(4_000_000_000));
    m.insert("i32", Value::I32(-2_000_000_000));
    m.insert("f32", 1.5f32);
    m.insert("bool", true);
    m.insert("string", "grüße\0 ok");
    m.insert("empty", "");
    m.insert("u64", u64::MAX);
    m.insert("i64", i64::MIN);
    m.insert("f64", -0.1f64);
    m.insert("a.u8", Value::Array(Array::U8(vec![1, 2, 255])));
    m.insert("a.i8", Value::Array(Array::I8(vec![-1, 2])));
    m.insert("a.u16", Value::Array(Array::U16(vec![1, 65_535])));
    m.insert("a.i16", Value::Array(Array::I16(vec![-1, 5])));
    m.insert("a.u32", vec![1u32, u32::MAX]);
    m.insert("a.i32", vec![1i32, i32::MIN]);
    m.insert("a.f32", vec![0.5f32, -2.0]);
    m.insert("a.bool", vec![true, false, true]);
    m.insert("a.string", ["a", "", "日本", "b"].into_iter().collect::<Strings>());
    m.insert("a.u64", Value::Array(Array::U64(vec![u64::MAX])));
    m.insert("a.i64", Value::Array(Array::I64(vec![i64::MIN, 0])));
    m.insert("a.f64", Value::Array(Array::F64(vec![1e300])));
    m.insert("a.none", Value::Array(Array::F64(vec![])));
    m.insert("a.nostring", Strings::new());
    m
}

fn tensors() -> Vec<TensorPlan> {
    vec![
        plan("token_embd.weight", "Q8_0", &[3, 64]),
        plan("scalar", "F32", &[]),
        plan("norm", "F32", &[5]),
        plan("none", "F16", &[4, 0, 2]),
        plan("experts", "F16", &[2, 3, 4, 5]),
        plan("i8", "I8", &[1]),
        plan("last", "BF16", &[7, 1]),
    ]
}

fn contents(plans: &[TensorPlan]) -> Vec<u8> {
    let total: u64 = plans.iter().map(|p| p.nbytes().unwrap()).sum();
    (0..total).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn write(
    path: &Path,
    m: &Metadata,
    plans: &[TensorPlan],
    options: &WriteOptions,
) -> Result<Vec<PathBuf>, Error> {
    let create = list::named("gguf").unwrap().create.unwrap();
    let mut writer = create(path, m, plans, options)?;
    for chunk in contents(plans).chunks(97) {
        writer.append(chunk)?;
    }
    writer.finish()
}

fn check(opened: &dyn Checkpoint, m: &Metadata, plans: &[TensorPlan]) {
    assert_eq!(opened.metadata(), m);
    let all = contents(plans);
    let mut at = 0;
    assert_eq!(opened.tensors().len(), plans.len());
    for (i, (info, plan)) in opened.tensors().iter().zip(plans).enumerate() {
        assert_eq!((&info.name, info.dtype, &info.shape), (&plan.name, plan.dtype, &plan.shape));
        assert_eq!(info.nbytes, plan.nbytes().unwrap());
        assert_eq!(opened.find(&info.name), Some(i));
        let want = &all[at..][..info.nbytes as usize];
        at += want.len();
        assert_eq!(*opened.bytes(i).unwrap(), *want);
        let mut read = vec![0; want.len()];
        opened.read(i, 0, &mut read).unwrap();
        assert_eq!(read, want);
        assert!(matches!(opened.read(i, 1, &mut vec![0; want.len()]), Err(Error::Refused { .. })));
    }
    assert_eq!(opened.find("absent"), None);
}

#[test]
fn written_is_read_again() {
    let dir = Dir::new();
    let path = dir.join("m.gguf");
    for alignment in [None, Some(1u32), Some(8), Some(64), Some(4096)] {
        let mut m = every_kind();
        if let Some(a) = alignment {
            m.insert("general.alignment", a);
        }
        let options = WriteOptions { force: true, ..Default::default() };
        assert_eq!(write(&path, &m, &tensors(), &options).unwrap(), [&*path]);
        let opened = open(&path).unwrap();
        assert_eq!((opened.container(), opened.files()), ("gguf", &[path.clone()][..]));
        check(&*opened, &m, &tensors());
        for info in opened.tensors().iter().filter(|t| t.nbytes > 0) {
            assert!(info.offset.is_multiple_of(alignment.unwrap_or(32).into()));
        }
    }
    assert_eq!(dir.names(), ["m.gguf"]);
}

#[test]
fn nothing_is_a_valid_file() {
    let dir = Dir::new();
    let path = dir.join("m.gguf");
    write(&path, &Metadata::new(), &[], &WriteOptions::default()).unwrap();
    check(&*open(&path).unwrap(), &Metadata::new(), &[]);
    let bytes = std::fs::read(&path).unwrap();
    // Without the padding too.
    check(&*open(&dir.write("n.gguf", &bytes[..24])).unwrap(), &Metadata::new(), &[]);
}

#[test]
fn sets_open_from_any_part() {
    let by_tensors = WriteOptions { max_file_tensors: Some(3), ..Default::default() };
    let by_bytes = WriteOptions { max_file_bytes: Some(1800), ..Default::default() };
    for (options, alignment) in [
        (by_tensors, None),
        (by_bytes, None),
        (WriteOptions { max_file_tensors: Some(2), ..Default::default() }, Some(64u32)),
    ] {
        let dir = Dir::new();
        let mut m = every_kind();
        if let Some(a) = alignment {
            m.insert("general.alignment", a);
        }
        let paths = write(&dir.join("m.gguf"), &m, &tensors(), &options).unwrap();
        let count = paths.len();
        assert!(count > 1);
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(*path, dir.join(&format!("m-{:05}-of-{count:05}.gguf", i + 1)));
            if let Some(max) = options.max_file_bytes {
                assert!(std::fs::metadata(path).unwrap().len() <= max);
            }
            let opened = open(path).unwrap();
            assert_eq!(opened.files(), paths);
            check(&*opened, &m, &tensors());
        }
        check(&*open(dir.path()).unwrap(), &m, &tensors());
        // A part that is missing, or of another set, or renamed.
        let second = std::fs::read(&paths[1]).unwrap();
        std::fs::remove_file(&paths[1]).unwrap();
        let error = open(&paths[0]).err().unwrap();
        assert!(matches!(&error, Error::Corrupt { file, .. } if *file == paths[1]), "{error}");
        assert!(error.to_string().contains("part 2 of a set"), "{error}");
        std::fs::copy(&paths[0], &paths[1]).unwrap();
        assert!(matches!(open(&paths[0]), Err(Error::Corrupt { .. })));
        let alone = dir.write("alone.gguf", &second);
        assert!(open(&alone).err().unwrap().to_string().contains("00001-of-"));
    }
}

#[test]
fn folders() {
    let dir = Dir::new();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("no model in this folder") && error.contains("*.gguf"), "{error}");
    write(&dir.join("a.gguf"), &every_kind(), &tensors(), &WriteOptions::default()).unwrap();
    dir.write("readme.txt", b"x");
    check(&*open(dir.path()).unwrap(), &every_kind(), &tensors());
    check(&*(list::named("gguf").unwrap().open)(dir.path()).unwrap(), &every_kind(), &tensors());
    write(&dir.join("b.gguf"), &every_kind(), &tensors(), &WriteOptions::default()).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("a.gguf, b.gguf"), "{error}");
    let error = open(&dir.join("readme.txt")).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let bad = dir.write("bad.gguf", b"GGUX");
    assert!(matches!(open(&bad), Err(Error::Corrupt { .. })));
}

#[test]
fn plans_that_cannot_be_written() {
    let dir = Dir::new();
    let path = dir.join("m.gguf");
    let refuse = |m: &Metadata, plans: &[TensorPlan], options: &WriteOptions| {
        let error = write(&path, m, plans, options).err().unwrap();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(dir.names(), [""; 0]);
        error.to_string()
    };
    let options = WriteOptions::default();
    let one = |name: &str, dtype: &str, shape: &[u64]| {
        refuse(&Metadata::new(), &[plan(name, dtype, shape)], &options)
    };
    assert!(one("t", "U8", &[1]).contains("GGUF has no type U8"));
    assert!(one("t", "Q8_0", &[1, 33]).contains("33"));
    assert!(one("t", "F32", &[1, 1, 1, 1, 1]).contains("more than 4"));
    assert!(one(&"t".repeat(64), "F32", &[1]).contains("longer"));
    assert!(one("t", "F32", &[1 << 40, 1 << 40]).contains("overflow"));
    assert!(one("t", "F32", &[0, 1 << 40, 1 << 40]).contains("overflow"));
    let two = [plan("t", "F32", &[1]), plan("t", "F32", &[1])];
    assert!(refuse(&Metadata::new(), &two, &options).contains("two tensors"));
    for bad in [Value::U32(0), Value::U32(24), Value::U64(32), Value::U32(1 << 30), Value::from("32")] {
        let mut m = Metadata::new();
        m.insert("general.alignment", bad);
        assert!(refuse(&m, &[], &options).contains("alignment"));
    }
    let mut m = Metadata::new();
    m.insert("", 1u32);
    assert!(refuse(&m, &[], &options).contains("key"));
    let none = WriteOptions { max_file_tensors: Some(0), ..Default::default() };
    assert!(refuse(&Metadata::new(), &[], &none).contains("at most 0"));
}

#[test]
fn real_files() {
    for (name, tensors, vocabulary) in [(home::SMOLLM2, 272, 49_152), (home::GEMMA3, 236, 262_144)] {
        let Some(path) = home::need(name, home::model(name)) else { continue };
        let begin = std::time::Instant::now();
        let opened = open(&path).unwrap();
        eprintln!("{name}: opened in {:?}", begin.elapsed());
        assert_eq!(opened.tensors().len(), tensors);
        let tokens = opened.metadata().get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap();
        assert_eq!(tokens.len(), vocabulary);
        let last = opened.tensors().iter().max_by_key(|t| t.offset).unwrap();
        let end = (last.offset + last.nbytes).next_multiple_of(32);
        assert_eq!(end, std::fs::metadata(&path).unwrap().len());
        let norm = opened.find("output_norm.weight").unwrap();
        assert_eq!(opened.tensors()[norm].shape.len(), 1);
        assert_eq!(opened.bytes(norm).unwrap().len() as u64, opened.tensors()[norm].nbytes);
    }
}
