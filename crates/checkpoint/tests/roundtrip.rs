//! Whatever metadata and tensors are written are read again, in one file or several.

mod common;

use common::Dir;
use fonio_checkpoint::{Array, Metadata, TensorPlan, Value, WriteOptions, list, open};
use fonio_codec::DType;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn array() -> impl Strategy<Value = Array> {
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(-1e30f32..1e30, 0..9).prop_map(Array::F32),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(any::<String>(), 0..9).prop_map(|v| Array::String(v.into_iter().collect())),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(-1e300f64..1e300, 0..9).prop_map(Array::F64),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e30f32..1e30).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e300f64..1e300).prop_map(Value::F64),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let alignment = prop::option::of((0u32..9).prop_map(|n| 1u32 << n));
    (vec((".{1,20}", value()), 0..12), alignment).prop_map(|(pairs, alignment)| {
        let mut m = Metadata::new();
        for (key, value) in pairs {
            m.insert(key, value);
        }
        if let Some(alignment) = alignment {
            m.insert("general.alignment", alignment);
        }
        m
    })
}

/// Tensors of types that `can` takes, with different names.
fn tensors(can: fn(DType) -> bool, dims: usize) -> impl Strategy<Value = Vec<TensorPlan>> {
    let types: Vec<DType> = fonio_codec::list::ALL.iter().copied().filter(|t| can(*t)).collect();
    let one = (prop::sample::select(types), vec(0u64..4, 0..=dims));
    (btree_set(".{0,15}", 0..12), vec(one, 12)).prop_map(|(names, plans)| {
        let plan = |(name, (dtype, mut shape)): (String, (DType, Vec<u64>))| {
            match shape.last_mut() {
                Some(row) => *row *= dtype.block_len() as u64,
                None if dtype.block_len() > 1 => shape = vec![dtype.block_len() as u64],
                None => {}
            }
            TensorPlan::new(name, dtype, shape)
        };
        names.into_iter().zip(plans).map(plan).collect()
    })
}

fn options() -> impl Strategy<Value = WriteOptions> {
    let bytes = prop::option::of(0u64..4000);
    (bytes, prop::option::of(1usize..5)).prop_map(|(max_file_bytes, max_file_tensors)| WriteOptions {
        max_file_bytes,
        max_file_tensors,
        ..WriteOptions::default()
    })
}

/// Writes, opens by each file, and compares the tensors.
fn round(
    container: &str,
    m: &Metadata,
    plans: &[TensorPlan],
    options: &WriteOptions,
    cut: usize,
) -> Metadata {
    let dir = Dir::new();
    let container = list::named(container).unwrap();
    let path = dir.join("model").with_extension(container.extensions[0]);
    let mut writer = (container.create.unwrap())(&path, m, plans, options).unwrap();
    let total: u64 = plans.iter().map(|p| p.nbytes().unwrap()).sum();
    let bytes: Vec<u8> = (0..total).map(|i| (i * 31 + i / 97) as u8).collect();
    bytes.chunks(cut).for_each(|part| writer.append(part).unwrap());
    let files = writer.finish().unwrap();
    assert_eq!(dir.names().len(), files.len());
    for file in &files {
        let opened = open(file).unwrap();
        assert_eq!(opened.tensors().len(), plans.len());
        let mut at = 0;
        for plan in plans {
            let i = opened.find(&plan.name).unwrap();
            let info = &opened.tensors()[i];
            assert_eq!((info.dtype, &info.shape), (plan.dtype, &plan.shape));
            assert_eq!(*opened.bytes(i).unwrap(), bytes[at..][..info.nbytes as usize]);
            at += info.nbytes as usize;
        }
    }
    open(&files[0]).unwrap().metadata().clone()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf(m in metadata(), plans in tensors(|t| t.ggml_type().is_some(), 4), options in options(), cut in 1usize..3000) {
        let short: Vec<TensorPlan> = plans.into_iter().filter(|p| p.name.len() < 64).collect();
        prop_assert_eq!(round("gguf", &m, &short, &options, cut), m);
    }

    #[test]
    fn safetensors(m in metadata(), plans in tensors(|t| !t.is_quantized(), 6), options in options(), cut in 1usize..3000) {
        let found = round("safetensors", &m, &plans, &options, cut);
        for (key, value) in m.iter() {
            let kept = matches!(value, Value::String(_)).then_some(value);
            prop_assert!(found.get(key) == kept || key == "format");
        }
    }

    #[test]
    fn the_same_bytes_each_time(m in metadata(), plans in tensors(|t| t.ggml_type().is_some(), 2)) {
        let plans: Vec<TensorPlan> = plans.into_iter().filter(|p| p.name.len() < 64).collect();
        let total: u64 = plans.iter().map(|p| p.nbytes().unwrap()).sum();
        let dir = Dir::new();
        let write = |name: &str, cut: usize| {
            let create = list::named("gguf").unwrap().create.unwrap();
            let mut writer = create(&dir.join(name), &m, &plans, &WriteOptions::default()).unwrap();
            vec![5; total as usize].chunks(cut).for_each(|part| writer.append(part).unwrap());
            std::fs::read(&writer.finish().unwrap()[0]).unwrap()
        };
        prop_assert_eq!(write("a.gguf", 7), write("b.gguf", 1000));
    }
}
