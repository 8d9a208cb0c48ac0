//! CAWSF: real files of the first converter, and what a hostile one could try.
//!
//! `data/cawsf/test_partial_arch.cawsf` is one of two files that the format's first tool wrote; the other differs from
//! it in META alone, which is `test_qwen2_final.meta.json`, so that it is put together here and compared with the
//! checksum of the whole. The reference, the dense sum that the tool wrote as GGUF, is there as checksums of its bytes
//! and a few values.

mod common;

use common::cawsf::{LZ4, RAW, Whole, ZSTD, dense, file, quantized, sections, shard, sparse, sums, table};
use common::{Dir, EDGES, Random};
use fonio_checkpoint::cawsf::{Cawsf, Kind, cost};
use fonio_checkpoint::{Checkpoint, Checksums, Error, fuzzing, open};
use std::path::{Path, PathBuf};

const NAME: &str = "model.layers.0.self_attn.k_proj.weight";
/// CRC-32 of each 32 rows of the reference.
const REFERENCE: [u32; 8] =
    [0x9ea2_eb0a, 0x2686_f2ac, 0x37e7_1486, 0xf13d_d4c6, 0x42a0_ed3a, 0xc11a_6c69, 0xbc32_88ea, 0x971f_af5a];
/// CRC-32 of the other file.
const OTHER: u32 = 0xaa20_51a6;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cawsf").join(name)
}

fn values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn same_as_the_reference(opened: &dyn Checkpoint) {
    assert_eq!(opened.container(), "cawsf");
    let info = &opened.tensors()[opened.find(NAME).unwrap()];
    assert_eq!((info.dtype.name(), &info.shape[..], info.nbytes), ("F32", &[256, 1536][..], 1_572_864));
    let bytes = opened.bytes(0).unwrap();
    let found: Vec<u32> = bytes.chunks(32 * 6144).map(crc32fast::hash).collect();
    assert_eq!(found, REFERENCE);
    // An outlier and what follows it.
    let row = values(&bytes[6 * 6144 + 1023 * 4..][..12]);
    assert_eq!(row, [-0.251_826_58, -0.007_348_954_7, -0.002_001_046_7]);
    assert_eq!(opened.verify_checksums().unwrap(), Checksums::Valid(4));
    for (from, len) in [(0, 6144), (6144 * 255, 6144), (4097, 3), (6143, 6145), (1_572_863, 1), (9, 0)] {
        let mut part = vec![0; len];
        opened.read(0, from as u64, &mut part).unwrap();
        assert_eq!(part, bytes[from..from + len]);
    }
    assert!(matches!(opened.read(0, 1_572_863, &mut [0; 2]), Err(Error::Refused { .. })));
    assert!(matches!(opened.bytes(1), Err(Error::Refused { .. })));
}

#[test]
fn a_real_file_is_its_reference_bit_for_bit() {
    let opened = open(&data("test_partial_arch.cawsf")).unwrap();
    same_as_the_reference(&*opened);
    let config = opened.metadata().get("cawsf.hf_config").and_then(|v| v.as_str()).unwrap();
    assert!(config.starts_with('{') && config.contains("\"model_type\":\"qwen2\""));
    assert_eq!(opened.metadata().get("cawsf.tokenizer").and_then(|v| v.as_str()), Some("local"));
}

#[test]
fn the_other_real_file_too() {
    let mut all = sections(&std::fs::read(data("test_partial_arch.cawsf")).unwrap());
    all[0].2 = std::fs::read(data("test_qwen2_final.meta.json")).unwrap();
    let bytes = file(&all);
    assert_eq!((bytes.len(), crc32fast::hash(&bytes)), (877_606, OTHER));
    let opened = fuzzing::cawsf(&bytes).unwrap();
    same_as_the_reference(&*opened);
    assert!(opened.metadata().get("cawsf.hf_tokenizer_config").is_some());
}

#[test]
fn shards_are_data() {
    let opened = Cawsf::open(&data("test_partial_arch.cawsf")).unwrap();
    let [scope] = opened.scopes() else { panic!() };
    assert_eq!((scope.id, scope.rows, scope.cols), (0, 256, 1536));
    let found: Vec<_> = opened.shards().unwrap().iter().map(|s| (s.kind, s.scope, s.size)).collect();
    let expected = [(Kind::D, 786_440), (Kind::L, 786_440), (Kind::R, 24_596), (Kind::S, 4752)];
    assert_eq!(found, expected.map(|(kind, size)| (kind, 0, size)));
    let routing = opened.routing().unwrap();
    let ranked = routing.rank("hello world");
    assert_eq!((routing.dim(), ranked.len()), (64, 4));
    for choice in &ranked {
        // Stored as f32.
        assert_eq!(choice.cost, cost(found[choice.shard as usize].2) as f32);
        assert!(choice.cosine.abs() <= 1.0);
    }
    assert!(ranked.is_sorted_by(|a, b| a.cosine >= b.cosine));
    let cheap = routing.select("hello world", 8, Some(0.03));
    assert_eq!(cheap.iter().map(|c| c.shard).max(), Some(3));
    assert!(cheap.len() == 2 && cheap.iter().all(|c| c.shard >= 2), "{cheap:?}");
}

/// |W̃x − Wx| of a row, where W̃ is the f32 sum of four parts: three roundings of partial sums, none larger than the
/// sum of the parts' absolute values `a`, so 3 · 2⁻²⁴ · Σ|x|a; the result's own rounding, 2⁻²⁴ · |y|. The product's
/// outliers are added in f64, so one of the three is in the reference alone. f64's roundings are 2⁻²⁹ of these.
fn check_product(opened: &Cawsf, largest: f64, random: &mut Random) {
    for (at, scope) in opened.scopes().iter().enumerate() {
        let cols = scope.cols as usize;
        let x: Vec<f32> = (0..cols).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect();
        let w = values(&opened.bytes(at).unwrap());
        let y = opened.apply(scope.id, &x).unwrap();
        assert_eq!(y.len() as u64, scope.rows);
        for (y, row) in y.iter().zip(w.chunks(cols)) {
            let terms = || row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            // Parts of opposite signs may be larger than their sum; `largest` is what they come to together.
            let weight: f64 = x.iter().map(|x| f64::from(x.abs()) * largest).sum();
            let most = (weight + f64::from(y.abs())) * 2f64.powi(-22);
            let expected: f64 = terms().sum();
            assert!((f64::from(*y) - expected).abs() <= most, "{}: {y} {expected}", scope.name);
        }
        assert!(matches!(opened.apply(scope.id, &x[1..]), Err(Error::Refused { .. })));
    }
    assert!(matches!(opened.apply(999, &[]), Err(Error::Refused { .. })));
}

#[test]
fn products_of_shards_are_those_of_the_dense_matrix() {
    let mut random = Random(7);
    check_product(&Cawsf::open(&data("test_partial_arch.cawsf")).unwrap(), 1.0, &mut random);
    let dir = Dir::new();
    check_product(&Cawsf::open(&dir.write("x.cawsf", &Whole::new().bytes())).unwrap(), 16.0, &mut random);
}

#[test]
fn every_packing_and_kind_of_codebook() {
    // By hand: the table's value number i is i / 64 − 0.3; codes 0 2, 1 1, 2 0 of 2 · 3 rows of 2 values.
    let code = |i: u32| i as f32 / 64.0 - 0.3;
    let residual = [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7, 0, 0, 0];
    let mut a: Vec<f32> = (0..15u32)
        .map(|i| {
            let d = if i % 6 == 0 { 1.5 } else { 0.0 };
            let r = if i < 12 { code(residual[i as usize]) } else { 0.0 };
            (d + i as f32 / 16.0) + r
        })
        .collect();
    a[1] += 0.25;
    a[14] -= 3.0;
    a[5] += 1e-3;
    let mut b: Vec<f32> = [4, 5, 6, 7, 0, 1, 2, 3].map(code).to_vec();
    b[7] += 8.0;
    for packings in [[RAW; 4], [ZSTD; 4], [LZ4; 4], [LZ4, ZSTD, RAW, ZSTD], [RAW, 3, LZ4, 3]] {
        let mut whole = Whole { packings, ..Whole::new() };
        if packings[1] == 3 {
            // zstd wins.
            whole.packings = [RAW, ZSTD, LZ4, ZSTD];
            let mut all = sections(&whole.bytes());
            (all[1].1, all[3].1) = (3, 3);
            let opened = fuzzing::cawsf(&file(&all)).unwrap();
            assert_eq!(values(&opened.bytes(0).unwrap()), a);
            continue;
        }
        let opened = fuzzing::cawsf(&whole.bytes()).unwrap_or_else(|e| panic!("{packings:?}: {e}"));
        assert_eq!(values(&opened.bytes(0).unwrap()), a, "{packings:?}");
        assert_eq!(values(&opened.bytes(1).unwrap()), b, "{packings:?}");
        assert_eq!(opened.verify_checksums().unwrap(), Checksums::Valid(3));
        // Matrices in turn: what is kept of one is not taken for the other's.
        let mut four = [0; 4];
        for (at, want) in [(0, a[0]), (1, b[0]), (0, a[0])] {
            opened.read(at, 0, &mut four).unwrap();
            assert_eq!(f32::from_le_bytes(four), want);
        }
    }
    let none = Whole { checksums: false, ..Whole::new() };
    assert_eq!(fuzzing::cawsf(&none.bytes()).unwrap().verify_checksums().unwrap(), Checksums::None);
}

fn corrupt(what: &str, bytes: &[u8]) {
    match fuzzing::cawsf(bytes) {
        Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => {}
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what} was accepted"),
    }
}

#[test]
fn truncated_files_are_errors() {
    let whole = Whole::new().bytes();
    for len in (0..whole.len()).step_by(7).chain(0..120).chain(whole.len() - 400..whole.len()) {
        corrupt(&format!("the first {len} bytes"), &whole[..len]);
    }
}

#[test]
fn wrong_tables_are_errors() {
    let whole = Whole::new().bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut out = whole.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    };
    for (what, at, bytes) in [
        ("magic", 0, &b"c"[..]),
        ("version 2", 8, &[2]),
        ("the reserved field", 16, &[1]),
        ("no section", 12, &[0]),
        ("more sections than there are", 12, &[255, 255, 255, 255]),
        ("a section of kind 0", 20, &[0]),
        ("a section of kind 5", 20, &[5]),
        ("two sections of a kind", 20, &[2]),
        ("unknown flags", 40, &[4]),
        ("a section that is not aligned", 24, &[1]),
        ("sections at the same place", 48, &whole[24..32]),
        ("a section over the table", 24, &[0; 8]),
        ("META as zstd", 40, &[1]),
        ("META as LZ4", 40, &[2]),
    ] {
        corrupt(what, &patched(at, bytes));
    }
    for entry in 0..4 {
        for edge in EDGES.iter().filter(|e| **e > 0) {
            corrupt(&format!("offset {edge}"), &patched(24 + 24 * entry, &edge.to_le_bytes()));
            corrupt(&format!("size {edge}"), &patched(32 + 24 * entry, &edge.to_le_bytes()));
        }
    }
}

#[test]
fn every_byte_of_a_section_is_covered() {
    for packings in [[RAW; 4], [RAW, ZSTD, LZ4, ZSTD]] {
        let whole = Whole { packings, ..Whole::new() };
        let mut all = sections(&whole.bytes());
        for section in 1..4 {
            for at in 0..all[section].2.len() {
                all[section].2[at] ^= 1;
                match fuzzing::cawsf(&file(&all)) {
                    Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => {}
                    // A bit that a packing does not use; what comes out is what it was.
                    Ok(opened) if packings[section] != RAW => same_as_before(&*opened),
                    other => panic!("{section} {at}: {:?}", other.err()),
                }
                all[section].2[at] ^= 1;
            }
        }
    }
}

fn same_as_before(opened: &dyn Checkpoint) {
    let whole = fuzzing::cawsf(&Whole::new().bytes()).unwrap();
    for at in 0..2 {
        assert_eq!(opened.bytes(at).unwrap(), whole.bytes(at).unwrap());
    }
}

#[test]
fn wrong_meta_is_an_error() {
    let whole = Whole::new();
    let meta = whole.meta();
    assert!(fuzzing::cawsf(&whole.with_meta(&meta)).is_ok());
    let bank = sums(&whole.bank);
    for (from, to) in [
        ("\"format_version\":1", "\"format_version\":2".to_owned()),
        ("\"format_version\":1,", String::new()),
        ("\"scope_id\":7", "\"scope_id\":1".into()),
        ("\"scope_id\":7", "\"scope_id\":65536".into()),
        ("\"scope_id\":7", "\"scope_id\":8".into()),
        ("b.weight", "a.weight".into()),
        ("[3,5]", "[3,5,1]".into()),
        ("[3,5]", "[15]".into()),
        ("[3,5]", "[0,5]".into()),
        ("[3,5]", "[-3,5]".into()),
        ("[3,5]", "[4294967295,4294967295]".into()),
        ("[3,5]", "[18446744073709551615,18446744073709551615]".into()),
        ("[3,5]", "[1000000,1000000]".into()),
        ("xxh3-64", "xxh64".into()),
        ("1048576", "1048575".into()),
        (&bank, bank.replace("\"count\":1", "\"count\":2")),
        (&bank, bank.replace("\"hashes_hex\":[\"", "\"hashes_hex\":[\"0")),
        (
            &bank,
            bank.replace("\"hashes_hex\":[", "\"hashes_hex\":[\"0000000000000000\",")
                .replace("\"count\":1", "\"count\":2"),
        ),
        (&bank, r#"{"algo":"xxh3-64","chunk_size":1048576,"count":0,"hashes_hex":[]}"#.into()),
        ("\"layers\":[", "\"layers\":[{\"scope_id\":3,\"name\":\"c\",\"shape\":[1,1]},".into()),
        ("}]", "}".into()),
    ] {
        let wrong = meta.replacen(from, &to, 1);
        assert_ne!(wrong, meta, "{from}");
        corrupt(&format!("{from} → {to}"), &whole.with_meta(&wrong));
    }
}

#[test]
fn wrong_shards_are_errors() {
    let scopes = vec![(0, "a", 2, 4)];
    let shape = [4, 2, 3];
    let base = |bank: Vec<u8>| Whole {
        scopes: scopes.clone(),
        bank,
        routing: common::cawsf::routing(&[0.1]),
        ..Whole::new()
    };
    let fine = shard(3, 0, RAW, &dense(2, 4, |_| 1.0));
    assert!(fuzzing::cawsf(&base(fine.clone()).bytes()).is_ok());
    let header = |at: usize, byte: u8| {
        let mut out = fine.clone();
        out[at] = byte;
        out
    };
    for (what, bank) in [
        ("nothing", Vec::new()),
        ("kind 4", header(0, 4)),
        ("another scope", header(1, 1)),
        ("packing 3", header(3, 3)),
        ("raw, with another size", header(4, 23)),
        ("twice", [fine.clone(), fine.clone()].concat()),
        ("cut", fine[..fine.len() - 1].to_vec()),
        ("a long stored size", header(11, 255)),
    ] {
        corrupt(what, &base(bank).bytes());
    }
    // What is wrong inside of a shard is found when its matrix is read.
    let own = table(shape);
    for (what, kind, how, payload) in [
        ("other shape", 3, RAW, dense(4, 2, |_| 1.0)),
        ("short dense", 0, RAW, dense(2, 4, |_| 1.0)[..22].to_vec()),
        ("long dense", 0, RAW, [dense(2, 4, |_| 1.0), vec![0]].concat()),
        ("no codebook", 1, RAW, quantized(2, 4, shape, Ok(8), &[0; 4])),
        ("codebook of another shape", 1, RAW, quantized(2, 4, [4, 2, 2], Ok(9), &[0; 4])),
        ("code 3 of 3", 1, RAW, quantized(2, 4, shape, Ok(9), &[0, 0, 0, 3])),
        ("code 255 of the first sub-space", 1, RAW, quantized(2, 4, shape, Err(&own), &[3, 0, 0, 0])),
        ("more vectors than values", 1, RAW, quantized(2, 4, shape, Ok(9), &[0; 6])),
        ("no whole sub-spaces", 1, RAW, quantized(2, 4, [5, 2, 3], Ok(9), &[0; 4])),
        ("no sub-spaces", 1, RAW, [&quantized(2, 4, shape, Ok(9), &[])[..10], &[0; 16]].concat()),
        ("short codebook", 1, RAW, quantized(2, 4, shape, Err(&own[4..]), &[0; 4])),
        ("outside", 2, RAW, sparse(2, 4, &[(2, 0, 1.0)])),
        ("negative", 2, RAW, sparse(2, 4, &[(0, -1, 1.0)])),
        ("short outliers", 2, RAW, sparse(2, 4, &[(0, 1, 1.0)])[..20].to_vec()),
        ("many outliers", 2, RAW, [&sparse(2, 4, &[])[..8], &[255; 4]].concat()),
        ("packed, cut", 3, LZ4, dense(2, 4, |_| 1.0)[..10].to_vec()),
    ] {
        let opened = fuzzing::cawsf(&base(shard(kind, 0, how, &payload)).bytes()).unwrap();
        assert!(matches!(opened.bytes(0), Err(Error::Corrupt { .. })), "{what}");
        assert!(opened.read(0, 0, &mut [0; 32]).is_err(), "{what}");
    }
    // A shard that says less than it unpacks to, or more.
    for size in [0, 23, 25, u32::MAX] {
        let mut bank = shard(3, 0, ZSTD, &dense(2, 4, |_| 1.0));
        bank[4..8].copy_from_slice(&size.to_le_bytes());
        let opened = fuzzing::cawsf(&base(bank).bytes()).unwrap();
        let found = opened.bytes(0);
        assert!(matches!(found, Err(Error::Corrupt { .. } | Error::Limit { .. })), "{size}: {found:?}");
    }
}

#[test]
fn what_unpacks_to_more_than_it_can_have_is_stopped() {
    let zeros = vec![0; 100 << 20];
    for how in [ZSTD, LZ4] {
        for section in 1..4 {
            let whole = Whole::new();
            let mut all = sections(&whole.bytes());
            all[section] = (all[section].0, how, common::cawsf::pack(how, &zeros));
            // With room for it in META's checksums, the shapes are the limit.
            for meta in [whole.meta(), Whole { checksums: false, ..Whole::new() }.meta()] {
                all[0].2 = meta.into_bytes();
                let found = fuzzing::cawsf(&file(&all)).map(drop);
                assert!(
                    matches!(found, Err(Error::Limit { .. } | Error::Corrupt { .. })),
                    "{how} {section}: {found:?}"
                );
            }
        }
    }
}
