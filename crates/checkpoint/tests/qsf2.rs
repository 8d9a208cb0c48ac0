//! QSF version 2: what is written is read again, and files that break a rule.

mod common;

use common::{Dir, Random};
use fonio_checkpoint::{
    Checkpoint, Checksums, Compression, Error, Group, Location, Metadata, Rows, TensorPlan, Term, Value,
    WriteOptions, fuzzing, list, open,
};
use fonio_codec::DType;
use proptest::prelude::*;
use std::borrow::Cow;

fn dtype(name: &str) -> DType {
    DType::named(name).unwrap()
}

fn plan(name: &str, t: &str, shape: &[u64], group: Group) -> TensorPlan {
    TensorPlan { group, ..TensorPlan::new(name, dtype(t), shape) }
}

/// Bytes that compress a little and are fine as numbers of any type.
fn data(plan: &TensorPlan) -> Vec<u8> {
    let n = plan.nbytes().unwrap() as usize;
    let seed = plan.name.len() * 7 + n;
    (0..n).map(|i| ((i / 5 * 13 + seed + i % 3) % 61) as u8).collect()
}

/// Writes in the writer's order, cut into appends of `cut` bytes.
fn write(
    path: &std::path::Path,
    m: &Metadata,
    plans: &[TensorPlan],
    bytes: &[Vec<u8>],
    options: &WriteOptions,
    cut: usize,
) -> Result<(), Error> {
    let mut writer = (list::named("qsf").unwrap().create.unwrap())(path, m, plans, options)?;
    let mut all = Vec::new();
    for Rows { tensor, rows } in writer.order().unwrap() {
        let count: u64 = plans[tensor].shape.iter().rev().skip(1).product();
        let row = bytes[tensor].len() as u64 / count.max(1);
        all.extend_from_slice(&bytes[tensor][(rows.start * row) as usize..(rows.end * row) as usize]);
    }
    let skip = writer.resumed().bytes as usize;
    all[skip..].chunks(cut.max(1)).try_for_each(|part| writer.append(part))?;
    writer.finish().map(drop)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A small model's plan with everything that there is: layers, experts, a sum of all terms, an empty tensor, a scalar.
fn everything() -> (Metadata, Vec<TensorPlan>, Vec<Vec<u8>>) {
    let mut m = Metadata::new();
    m.insert("general.architecture", "llama");
    m.insert("llama.block_count", 2u32);
    m.insert("names", Value::Array(fonio_checkpoint::Array::String(["a", "ß", ""].into_iter().collect())));
    let layer = Group::Layer(0);
    let mut plans = vec![
        plan("token_embd.weight", "Q8_0", &[70, 64], Group::Alone),
        plan("blk.0.attn_norm.weight", "F32", &[64], layer),
        plan("blk.0.attn_q.weight", "Q4_0", &[40, 64], layer),
        plan("blk.0.ffn_up_exps.weight", "Q4_0", &[3, 8, 64], Group::Experts(0)),
        plan("blk.0.ffn_down_exps.weight", "F16", &[3, 5, 7], Group::Experts(0)),
        plan("blk.1.attn_norm.weight", "F32", &[64], Group::Layer(1)),
        plan("blk.0.late.weight", "BF16", &[9, 3], layer),
        plan("empty", "F16", &[0, 4], Group::Layer(1)),
        plan("scalar", "F32", &[], Group::Alone),
        plan("last.empty", "F32", &[3, 0], Group::Alone),
    ];
    let mut bytes: Vec<Vec<u8>> = plans.iter().map(data).collect();
    let first = plans.len();
    let mut add = |name: &str, t: &str, shape: &[u64], group, data: Vec<u8>| {
        plans.push(plan(name, t, shape, group));
        bytes.push(data);
        first + plans.len() - first - 1
    };
    let q8 = |n: usize| (0..n * 34).map(|i| if i % 34 < 2 { 40 } else { (i % 90) as u8 }).collect();
    let terms = vec![
        Term::Whole { plane: add("s.whole", "Q8_0", &[4, 32], layer, q8(4)) },
        Term::Product {
            left: add("s.left", "F32", &[4, 2], layer, floats(&[1.5; 8])),
            right: add("s.right", "F32", &[2, 32], layer, floats(&[0.25; 64])),
        },
        Term::Band { plane: add("s.band", "F32", &[3, 4], layer, floats(&[2.0; 12])), first: -1 },
        Term::Sparse {
            starts: add("s.starts", "U32", &[5], layer, numbers(&[0, 1, 1, 3, 4])),
            columns: add("s.columns", "U32", &[4], layer, numbers(&[31, 0, 7, 5])),
            values: add("s.values", "F16", &[4], layer, vec![0, 60, 0, 64, 0, 56, 0, 188]),
        },
        Term::Vectors {
            codes: add("s.codes", "U8", &[4, 11], layer, (0..44).map(|i| i % 4).collect()),
            tables: add("s.tables", "F32", &[2, 4, 3], layer, floats(&[0.125; 24])),
        },
    ];
    plans.push(TensorPlan { terms, ..plan("blk.0.sum.weight", "F32", &[4, 32], layer) });
    bytes.push(Vec::new());
    (m, plans, bytes)
}

fn options(compress: Option<Compression>) -> WriteOptions {
    WriteOptions { compress, ..WriteOptions::default() }
}

const WAYS: [Option<Compression>; 3] = [None, Some(Compression::Lz4), Some(Compression::Zstd)];

fn file(compress: Option<Compression>) -> Vec<u8> {
    let dir = Dir::new();
    let (m, plans, bytes) = everything();
    write(&dir.join("m.qsf"), &m, &plans, &bytes, &options(compress), 1000).unwrap();
    assert_eq!(dir.names(), ["m.qsf"]);
    std::fs::read(dir.join("m.qsf")).unwrap()
}

/// Compares everything that a reader offers with what was written.
fn compare(opened: &dyn Checkpoint, m: &Metadata, plans: &[TensorPlan], bytes: &[Vec<u8>]) {
    assert_eq!(opened.metadata(), m);
    let all = opened.tensors().len() + opened.planes().len();
    assert_eq!(all, plans.len());
    for (plan, want) in plans.iter().zip(bytes) {
        let at = (0..all).find(|at| opened.info(*at).unwrap().name == plan.name).unwrap();
        let info = opened.info(at).unwrap();
        assert_eq!((info.dtype, &info.shape), (plan.dtype, &plan.shape));
        let found = opened.bytes(at).unwrap();
        assert_eq!(found.len() as u64, info.nbytes);
        let mut read = vec![0; found.len()];
        opened.read(at, 0, &mut read).unwrap();
        assert_eq!(read, *found);
        let (from, to) = (info.nbytes / 3, info.nbytes - info.nbytes / 5);
        assert_eq!(*opened.slice(at, from..to).unwrap(), found[from as usize..to as usize]);
        let beyond = opened.read(at, info.nbytes, &mut [0]);
        assert!(matches!(beyond, Err(Error::Refused { .. })));
        if plan.terms.is_empty() {
            assert_eq!(*found, want[..], "{}", plan.name);
        } else {
            assert_eq!(opened.terms(at).len(), plan.terms.len());
        }
    }
    assert!(matches!(opened.bytes(all), Err(Error::Refused { .. })));
    assert_eq!(opened.verify_checksums().unwrap(), Checksums::Valid(opened.extents().len() + 2));
}

#[test]
fn everything_is_read_again_however_it_is_packed() {
    let (m, plans, bytes) = everything();
    for compress in WAYS {
        let file = file(compress);
        let opened = fuzzing::qsf(&file).unwrap();
        compare(&*opened, &m, &plans, &bytes);
        // Terms count planes as the reader does.
        let sum = opened.find("blk.0.sum.weight").unwrap();
        let planes: Vec<&str> = opened
            .terms(sum)
            .iter()
            .flat_map(|t| t.planes())
            .map(|p| opened.info(p).unwrap().name.as_str())
            .collect();
        let want = ["whole", "left", "right", "band", "starts", "columns", "values", "codes", "tables"];
        assert_eq!(planes, want.map(|n| format!("s.{n}")));
        assert_eq!(opened.find("s.whole"), None, "planes are no tensors");
        let names: Vec<&str> = opened.extents().iter().map(|e| e.name.as_str()).collect();
        let experts = [0, 1, 2].map(|i| format!("layer 0 expert {i}"));
        let want = ["token_embd.weight", "layer 0", &experts[0], &experts[1], &experts[2], "layer 1"];
        assert_eq!(names, [&want[..], &["scalar", "last.empty"]].concat());
        let packed = opened.extents().iter().filter(|e| e.compressed).count();
        assert_eq!(packed > 0, compress.is_some());
        for (at, extent) in opened.extents().iter().enumerate() {
            assert_eq!(extent.offset % 4096, 0);
            let stored = &file[extent.offset as usize..][..extent.stored as usize];
            let mut plain = vec![1, 2, 3];
            opened.unpack(at, stored, &mut plain).unwrap();
            assert_eq!(plain.len() as u64, if extent.compressed { extent.nbytes } else { 0 });
            let plain = if extent.compressed { plain } else { stored.to_vec() };
            // What is located in an extent is there.
            for t in (0..plans.len()).filter(|t| opened.terms(*t).is_empty()) {
                let info = opened.info(t).unwrap();
                for range in [0..info.nbytes, 0..info.nbytes.min(1), info.nbytes / 3..info.nbytes / 3 * 2] {
                    if let Some(Location::Extent { extent, offset }) = opened.locate(t, range.clone())
                        && extent == at
                    {
                        let len = (range.end - range.start) as usize;
                        assert_eq!(plain[offset as usize..][..len], *opened.slice(t, range).unwrap());
                    }
                }
            }
            let mut bad = stored.to_vec();
            if let Some(byte) = bad.last_mut() {
                *byte ^= 1;
                assert!(matches!(opened.unpack(at, &bad, &mut Vec::new()), Err(Error::Corrupt { .. })));
            }
        }
        let embedding = opened.find("token_embd.weight").unwrap();
        let row = 64 / 32 * 34;
        let at = opened.locate(embedding, row..2 * row).unwrap();
        assert_eq!(at, Location::File { file: 0, offset: opened.extents()[0].offset + row });
        let experts = opened.find("blk.0.ffn_down_exps.weight").unwrap();
        assert!(opened.locate(experts, 0..70).is_some() && opened.locate(experts, 0..71).is_none());
        if compress.is_none() {
            assert!(matches!(opened.bytes(embedding).unwrap(), Cow::Borrowed(_)));
            assert!(matches!(opened.slice(experts, 70..140).unwrap(), Cow::Borrowed(_)));
        }
    }
}

#[test]
fn the_same_bytes_however_they_are_given() {
    let dir = Dir::new();
    let (m, plans, bytes) = everything();
    for compress in WAYS {
        let want = file(compress);
        for cut in [1, 7, 4096, 1 << 20] {
            let options = WriteOptions { force: true, ..options(compress) };
            write(&dir.join("m.qsf"), &m, &plans, &bytes, &options, cut).unwrap();
            assert!(std::fs::read(dir.join("m.qsf")).unwrap() == want, "{compress:?} {cut}");
        }
    }
}

#[test]
fn a_file_without_tensors() {
    let dir = Dir::new();
    write(&dir.join("m.qsf"), &Metadata::new(), &[], &[], &options(None), 1).unwrap();
    let bytes = std::fs::read(dir.join("m.qsf")).unwrap();
    assert_eq!(bytes.len(), 64 + 5 * 8);
    compare(&*open(&dir.join("m.qsf")).unwrap(), &Metadata::new(), &[], &[]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_is_read(
        tensors in prop::collection::vec((0usize..99, prop::collection::vec(0u64..4, 0..4), 0u32..4, any::<bool>()), 0..14),
        (way, cut) in (0usize..3, 1usize..3000),
    ) {
        let types = fonio_codec::list::ALL;
        let plans: Vec<TensorPlan> = tensors.into_iter().enumerate().map(|(i, (t, mut shape, layer, experts))| {
            let t = types[t % types.len()];
            match shape.last_mut() {
                Some(row) => *row *= t.block_len() as u64,
                None => shape = vec![t.block_len() as u64],
            }
            let group = match layer {
                3 => Group::Alone,
                // As many experts as there are in the others of the layer.
                _ if experts && shape.len() > 1 => { shape[0] = u64::from(layer) + 2; Group::Experts(layer) }
                _ => Group::Layer(layer),
            };
            TensorPlan { group, ..TensorPlan::new(format!("t{i}"), t, shape) }
        }).collect();
        let bytes: Vec<Vec<u8>> = plans.iter().map(data).collect();
        let dir = Dir::new();
        let path = dir.join("m.qsf");
        write(&path, &Metadata::new(), &plans, &bytes, &options(WAYS[way]), cut).unwrap();
        compare(&*open(&path).unwrap(), &Metadata::new(), &plans, &bytes);
    }
}

#[test]
fn plans_that_cannot_be_written_are_refused() {
    let dir = Dir::new();
    let refused = |what: &str, plans: &[TensorPlan], options: &WriteOptions| {
        let bytes: Vec<Vec<u8>> = plans.iter().map(|p| vec![0; p.nbytes().unwrap_or(0) as usize]).collect();
        let e = write(&dir.join("m.qsf"), &Metadata::new(), plans, &bytes, options, 10).unwrap_err();
        assert!(matches!(e, Error::Refused { .. }), "{what}: {e}");
        assert_eq!(dir.names(), [""; 0], "{what}");
    };
    let none = WriteOptions::default();
    let a = |shape: &[u64], group| plan("a", "F32", shape, group);
    refused("twice", &[a(&[1], Group::Alone), a(&[2], Group::Alone)], &none);
    let other = plan("b", "F32", &[4, 2], Group::Experts(0));
    refused("not as many experts", &[a(&[3, 2], Group::Experts(0)), other], &none);
    refused("experts without rows", &[a(&[3], Group::Experts(0))], &none);
    refused("part of a block", &[plan("a", "Q8_0", &[33], Group::Alone)], &none);
    refused("overflow", &[a(&[1 << 40, 1 << 40], Group::Alone)], &none);
    refused("nine dimensions", &[a(&[1; 9], Group::Alone)], &none);
    let sum = |plane| TensorPlan { terms: vec![Term::Whole { plane }], ..a(&[2], Group::Alone) };
    refused("a sum of itself", &[sum(0)], &none);
    refused("a sum of nothing", &[sum(7)], &none);
    refused("a sum of another shape", &[plan("b", "F32", &[3], Group::Alone), sum(0)], &none);
    let split = WriteOptions { max_file_bytes: Some(100), ..none.clone() };
    refused("split", &[a(&[1], Group::Alone)], &split);
    let create = list::named("qsf").unwrap().create.unwrap();
    let plans = [a(&[2], Group::Alone)];
    let writer = create(&dir.join("m.qsf"), &Metadata::new(), &plans, &none).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Refused { .. })), "nothing was given");
    let mut writer = create(&dir.join("m.qsf"), &Metadata::new(), &plans, &none).unwrap();
    assert!(matches!(writer.append(&[0; 9]), Err(Error::Refused { .. })), "a byte too many");
    drop(writer);
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn every_bit_is_under_a_checksum() {
    for compress in WAYS {
        let whole = file(compress);
        let mut random = Random(5);
        for _ in 0..600 {
            let mut bytes = whole.clone();
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            let found = fuzzing::qsf(&bytes).and_then(|f| f.verify_checksums());
            assert!(found.is_err(), "byte {at}");
        }
        // And every byte of the header.
        for at in 0..64 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(fuzzing::qsf(&bytes).is_err(), "byte {at}");
        }
    }
}

#[test]
fn errors_name_extent_tensor_and_place() {
    for compress in WAYS {
        let whole = file(compress);
        let extents = fuzzing::qsf(&whole).unwrap().extents().to_vec();
        let layer = &extents[1];
        let mut bytes = whole.clone();
        bytes[layer.offset as usize + 9] ^= 1;
        let opened = fuzzing::qsf(&bytes).unwrap();
        let at = opened.find("blk.0.attn_q.weight").unwrap();
        let says = |e: Error| {
            let text = e.to_string();
            assert!(text.contains("layer 0: the checksum"), "{text}");
            assert!(text.contains("blk.0.attn_q.weight"), "{text}");
            assert!(matches!(e, Error::Corrupt { offset: Some(o), .. } if o == layer.offset), "{text}");
        };
        says(opened.bytes(at).unwrap_err());
        says(opened.read(at, 1, &mut [0]).unwrap_err());
        says(opened.slice(at, 1..2).unwrap_err());
        // What lies elsewhere is fine.
        assert!(opened.bytes(opened.find("token_embd.weight").unwrap()).is_ok());
        assert!(opened.verify_checksums().unwrap_err().to_string().contains("layer 0"));
    }
}

/// A section's bytes by hand.
struct Section(Vec<u8>);

impl Section {
    fn n(mut self, n: u64) -> Section {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn w(mut self, n: u32) -> Section {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn s(self, text: &str) -> Section {
        let mut s = self.n(text.len() as u64);
        s.0.extend(text.as_bytes());
        s
    }
}

/// What a small file says, each number where a test can change it.
#[derive(Clone)]
struct Small {
    types: Vec<(&'static str, u64, u64)>,
    groups: Vec<(u32, u32, u64, u64)>,
    tensors: Vec<(&'static str, u32, Vec<u64>, u64, u64)>,
    sums: Vec<(&'static str, Vec<u64>, Vec<u64>)>,
    extents: Vec<(u64, u64, u32)>,
    counts: [Option<u64>; 5],
    len: u64,
}

/// Two tensors of a layer, and two experts.
fn small() -> Small {
    Small {
        types: vec![("F32", 1, 4), ("Q8_0", 32, 34)],
        groups: vec![(1, 0, 1, 98), (2, 0, 2, 8)],
        tensors: vec![("a", 0, vec![3], 0, 0), ("b", 1, vec![1, 32], 0, 64), ("e", 0, vec![2, 2], 1, 0)],
        sums: vec![],
        extents: vec![(4096, 98, 0), (8192, 8, 0), (12_288, 8, 0)],
        counts: [None; 5],
        len: 12_296,
    }
}

fn xxh3(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

impl Small {
    fn section(&self, data: &[u8]) -> Vec<u8> {
        let count = |i: usize, n: usize| self.counts[i].unwrap_or(n as u64);
        let mut s = Section(Vec::new()).n(count(0, 0)).n(count(1, self.types.len()));
        for (name, len, bytes) in &self.types {
            s = s.s(name).n(*len).n(*bytes);
        }
        s = s.n(count(2, self.groups.len()));
        for (kind, number, parts, nbytes) in &self.groups {
            s = s.w(*kind).w(*number).n(*parts).n(*nbytes);
        }
        s = s.n(count(3, self.tensors.len() + self.sums.len()));
        for (name, dtype, shape, group, offset) in &self.tensors {
            s = s.s(name).w(*dtype).w(shape.len() as u32).w(0).w(0);
            s = shape.iter().fold(s, |s, dim| s.n(*dim)).n(*group).n(*offset);
        }
        for (name, shape, terms) in &self.sums {
            s = s.s(name).w(0).w(shape.len() as u32).w(1).w(0);
            s = shape.iter().fold(s, |s, dim| s.n(*dim));
            s = terms.iter().fold(s, |s, n| s.n(*n));
        }
        s = s.n(count(4, self.extents.len()));
        for (offset, stored, packing) in &self.extents {
            let end = offset.saturating_add(*stored).min(data.len() as u64);
            let sum = xxh3(&data[(*offset).min(end) as usize..end as usize]);
            s = s.n(*offset).n(*stored).n(sum).w(*packing).w(0);
        }
        s.0
    }

    fn file(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        for (i, byte) in bytes.iter_mut().enumerate().skip(4096) {
            let inside = self.extents.iter().any(|(at, len, _)| (i as u64) >= *at && (i as u64) - at < *len);
            *byte = if inside { 7 } else { 0 };
        }
        let section = self.section(&bytes);
        bytes[64..64 + section.len()].copy_from_slice(&section);
        head(&mut bytes, section.len() as u64);
        bytes
    }
}

/// Writes the header of a section of this length.
fn head(bytes: &mut [u8], section: u64) {
    let sum = xxh3(&bytes[64..64 + section as usize]);
    let len = bytes.len() as u64;
    let front = Section(b"1FSQ".to_vec()).w(2).w(64).w(0).n(len).n(section).n(sum).n(0).n(0);
    let front = front.0.clone().into_iter().chain(xxh3(&front.0).to_le_bytes());
    bytes.iter_mut().zip(front).for_each(|(to, from)| *to = from);
}

fn found(bytes: &[u8]) -> Result<(), Error> {
    let opened = fuzzing::qsf(bytes)?;
    for at in 0..opened.tensors().len() {
        opened.bytes(at)?;
    }
    opened.verify_checksums().map(drop)
}

#[test]
fn a_file_by_hand_is_read() {
    let opened = fuzzing::qsf(&small().file()).unwrap();
    assert_eq!(opened.tensors().len(), 3);
    assert_eq!(opened.verify_checksums().unwrap(), Checksums::Valid(5));
    assert_eq!(*opened.bytes(2).unwrap(), [7; 16]);
}

#[test]
fn every_rule_broken() {
    let corrupt = |what: &str, change: &dyn Fn(&mut Small)| {
        let mut file = small();
        change(&mut file);
        let e = found(&file.file()).expect_err(what);
        // What is read in the place of a type's name may be one that nobody knows.
        assert!(matches!(e, Error::Corrupt { .. } | Error::Unsupported { .. }), "{what}: {e}");
    };
    for i in 0..5 {
        for count in [1 << 20, 1 << 40, u64::MAX] {
            corrupt("counts", &|f| f.counts[i] = Some(count));
        }
        corrupt("one more", &|f| {
            let n = [0, 2, 2, 3, 3][i];
            f.counts[i] = Some(n + 1);
        });
    }
    corrupt("a type twice", &|f| f.types[1] = ("F32", 1, 4));
    corrupt("blocks of another length", &|f| f.types[1].1 = 64);
    corrupt("blocks of more bytes", &|f| f.types[1].2 = 36);
    corrupt("a kind of group", &|f| f.groups[0].0 = 4);
    corrupt("a layer twice", &|f| f.groups[1] = (1, 0, 1, 16));
    corrupt("a layer in parts", &|f| f.groups[0].2 = 2);
    corrupt("no parts", &|f| f.groups[1].2 = 0);
    corrupt("too many parts", &|f| f.groups[1].2 = u64::MAX);
    corrupt("three parts of two", &|f| f.groups[1].2 = 3);
    corrupt("a group that is longer", &|f| f.groups[0].3 = 99);
    corrupt("a group that is shorter", &|f| f.groups[0].3 = 97);
    corrupt("a name twice", &|f| f.tensors[1].0 = "a");
    corrupt("no such type", &|f| f.tensors[0].1 = 2);
    corrupt("too many dimensions", &|f| f.tensors[0].2 = vec![1; 9]);
    corrupt("dimensions overflow", &|f| f.tensors[0].2 = vec![1 << 40, 1 << 40]);
    corrupt("an overflow behind a zero", &|f| f.tensors[0].2 = vec![0, 1 << 40, 1 << 40]);
    corrupt("half a block", &|f| f.tensors[1].2 = vec![1, 16]);
    corrupt("larger than its group", &|f| f.tensors[0].2 = vec![1 << 30]);
    corrupt("no such group", &|f| f.tensors[0].3 = 2);
    corrupt("a group far away", &|f| f.tensors[0].3 = u64::MAX);
    corrupt("overlaps", &|f| f.tensors[1].4 = 0);
    corrupt("not aligned", &|f| f.tensors[1].4 = 12);
    corrupt("a gap", &|f| f.tensors[1].4 = 128);
    corrupt("far away", &|f| f.tensors[1].4 = u64::MAX - 10);
    corrupt("extents overlap", &|f| f.extents[1].0 = 4096);
    corrupt("an extent in the section", &|f| f.extents[0].0 = 0);
    corrupt("an extent off its page", &|f| f.extents[1].0 = 8256);
    corrupt("an extent behind the end", &|f| f.extents[2].0 = 1 << 40);
    corrupt("an extent that is longer", &|f| f.extents[0].1 = 99);
    corrupt("an extent past the end", &|f| f.extents[2].1 = u64::MAX);
    corrupt("LZ4 that is no less", &|f| f.extents[0].2 = 1);
    corrupt("LZ4 of nothing", &|f| {
        f.extents[0] = (4096, 50, 1);
        f.len = 12_296;
    });
    corrupt("zstd of nothing", &|f| f.extents[0] = (4096, 50, 2));
    corrupt("a file that is longer", &|f| f.len += 1);
    corrupt("a file that is shorter", &|f| f.len -= 1);
    let unsupported = |what: &str, change: &dyn Fn(&mut Small), part: &str| {
        let mut file = small();
        change(&mut file);
        let e = found(&file.file()).expect_err(what);
        assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains(part), "{what}: {e}");
    };
    unsupported("a type of tomorrow", &|f| f.types[1].0 = "5bit_96", "5bit_96");
    unsupported("another spelling", &|f| f.types[1].0 = "q8_0", "q8_0");
    unsupported("another compression", &|f| f.extents[0].2 = 3, "compression 3");
    unsupported("another term", &|f| f.sums = vec![("s", vec![3], vec![5, 0])], "kind 5");
}

#[test]
fn sums_that_do_not_fit_are_corrupt() {
    let with = |terms: &[u64], shape: &[u64]| {
        let mut file = small();
        file.sums = vec![("s", shape.to_vec(), terms.to_vec())];
        found(&file.file())
    };
    with(&[0, 0], &[3]).unwrap();
    with(&[0, 1], &[1, 32]).unwrap();
    for (what, terms, shape) in [
        ("another shape", &[0, 0][..], &[4][..]),
        ("no such plane", &[0, 9], &[3]),
        ("a plane far away", &[0, u64::MAX], &[3]),
        ("itself", &[0, 3], &[3]),
        ("factors that do not fit", &[1, 0, 1], &[3]),
        ("starts of another type", &[3, 0, 1, 2], &[2, 3]),
        ("codes of another type", &[4, 0, 2], &[1]),
        ("a matrix of nothing", &[2, 2, 0], &[1 << 30, 2]),
        ("overflow", &[0, 0], &[1 << 40, 1 << 40]),
    ] {
        let e = with(terms, shape).expect_err(what);
        assert!(matches!(&e, Error::Corrupt { tensor: Some(t), .. } if t == "s"), "{what}: {e}");
    }
}

#[test]
fn headers_that_cannot_be() {
    let whole = small().file();
    let section = u64::from_le_bytes(whole[24..32].try_into().unwrap());
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let sum = xxh3(&bytes[..56]).to_le_bytes();
        bytes[56..64].copy_from_slice(&sum);
        found(&bytes).unwrap_err()
    };
    let put = |at: usize, n: u64, width: usize| {
        sealed(&move |bytes| bytes[at..at + width].copy_from_slice(&n.to_le_bytes()[..width]))
    };
    assert!(matches!(put(8, 128, 4), Error::Corrupt { offset: Some(8), .. }));
    assert!(matches!(put(12, 1, 4), Error::Unsupported { .. }));
    assert!(matches!(put(40, 1, 8), Error::Unsupported { .. }));
    assert!(matches!(put(16, 12_297, 8), Error::Corrupt { .. }));
    assert!(matches!(put(24, section + 1, 8), Error::Corrupt { .. }));
    assert!(matches!(put(24, 1 << 29, 8), Error::Corrupt { .. }));
    assert!(matches!(put(24, u64::MAX, 8), Error::Limit { .. }));
    assert!(matches!(put(32, 5, 8), Error::Corrupt { offset: Some(64), .. }));
    for end in [0, 4, 8, 63, 64, 65, 64 + section as usize, 4096, 8191, 12_295] {
        assert!(matches!(found(&whole[..end]), Err(Error::Corrupt { .. })), "{end}");
    }
    // Bytes between extents are zeros, and that is looked at.
    for at in [64 + section as usize, 4095, 4096 + 98, 8191, 8200] {
        let mut bytes = whole.clone();
        bytes[at] = 1;
        let e = found(&bytes).unwrap_err();
        assert!(matches!(e, Error::Corrupt { offset: Some(o), .. } if o == at as u64), "{at}: {e}");
    }
}

/// Frames whose sizes lie, and frames of zeros as far as they go.
#[test]
fn packed_extents_that_lie() {
    let with = |frame: &[u8], nbytes: u64| {
        let mut file = small();
        file.groups = vec![(1, 0, 1, nbytes)];
        file.tensors = vec![("a", 0, vec![nbytes / 4], 0, 0)];
        file.extents = vec![(4096, frame.len() as u64, if frame[0] == 4 { 1 } else { 2 })];
        file.len = 4096 + frame.len() as u64;
        let mut bytes = file.file();
        bytes[4096..].copy_from_slice(frame);
        let section = file.section(&bytes);
        bytes[64..64 + section.len()].copy_from_slice(&section);
        head(&mut bytes, section.len() as u64);
        found(&bytes)
    };
    for compress in [Compression::Lz4, Compression::Zstd] {
        let dir = Dir::new();
        let plans = [plan("a", "F32", &[5000], Group::Layer(0))];
        let zeros = vec![vec![1; 20_000]];
        write(&dir.join("m.qsf"), &Metadata::new(), &plans, &zeros, &options(Some(compress)), 999).unwrap();
        let file = std::fs::read(dir.join("m.qsf")).unwrap();
        let frame = &file[4096..];
        assert!(frame.len() < 1000);
        with(frame, 20_000).unwrap();
        for nbytes in [19_996, 20_004, 1 << 18] {
            assert!(matches!(with(frame, nbytes), Err(Error::Corrupt { .. })), "{nbytes}");
        }
        // The last four bytes only say that it is the end.
        assert!(matches!(with(&frame[..frame.len() - 8], 20_000), Err(Error::Corrupt { .. })));
        assert!(matches!(with(&[frame, &[0]].concat(), 20_000), Err(Error::Corrupt { .. })));
        assert!(matches!(with(&[frame, frame].concat(), 20_000), Err(Error::Corrupt { .. })));
        // More than any frame of this size could be is refused before there is memory for it.
        let e = with(frame, 1 << 40).unwrap_err();
        assert!(matches!(e, Error::Corrupt { .. }) && e.to_string().contains("cannot hold"), "{e}");
    }
}

/// The file that the specification shows byte by byte is what is written.
#[test]
fn the_specification_shows_what_is_written() {
    let dir = Dir::new();
    let mut m = Metadata::new();
    m.insert("general.architecture", "tiny");
    let plans = [plan("e", "F32", &[2], Group::Alone), plan("blk.0.w", "2bit_32", &[1, 32], Group::Layer(0))];
    let block = [&[0x00, 0x38, 0x00, 0xbc][..], &[0xe4; 8]].concat();
    let mut back = vec![0.0; 32];
    dtype("2bit_32").dequantize(fonio_simd::Isa::detect(), &block, &mut back).unwrap();
    assert_eq!(back[..5], [-1.0, -0.5, 0.0, 0.5, -1.0]);
    let bytes = [floats(&[1.0, 2.0]), block];
    write(&dir.join("m.qsf"), &m, &plans, &bytes, &options(None), 5).unwrap();
    let want = std::fs::read(dir.join("m.qsf")).unwrap();
    let text = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats/qsf.md");
    let text = std::fs::read_to_string(text).unwrap();
    let mut shown = vec![0u8; want.len()];
    for line in text.lines().filter_map(|line| line.split_once(" |")).map(|(left, _)| left.trim()) {
        let mut words = line.split_whitespace();
        let Some(at) = words.next().filter(|w| w.len() == 4).and_then(|w| usize::from_str_radix(w, 16).ok())
        else {
            continue;
        };
        for (i, word) in words.enumerate() {
            shown[at + i] = u8::from_str_radix(word, 16).unwrap();
        }
    }
    let differ = shown.iter().zip(&want).position(|(a, b)| a != b);
    assert_eq!(differ, None, "{:02x?}", &want[differ.unwrap_or(0)..][..16]);
}
