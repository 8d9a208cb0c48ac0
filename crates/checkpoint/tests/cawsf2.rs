//! CAWSF version 2: what is written is read, and what hostile files could try.

mod common;

use common::cawsf2::{TRAILER, changed, entry, halves, index, metadata, routing, stored, whole};
use common::{Dir, EDGES};
use fonio_checkpoint::cawsf::v2::{Content, Kind, V2, Writer};
use fonio_checkpoint::cawsf::{File, Packing};
use fonio_checkpoint::{Checkpoint, Checksums, Error, Location, Metadata, Term, fuzzing, open};
use fonio_codec::list;
use proptest::prelude::*;

fn opened(dir: &Dir, bytes: &[u8]) -> Box<V2> {
    match File::open(&dir.write("x.cawsf", bytes)).unwrap() {
        File::V2(file) => file,
        File::V1(_) => panic!("version 1"),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

/// The matrix of 9 × 7 by its definition.
fn dense() -> Vec<f32> {
    let left = |r: usize, i: usize| ((r * 3 + i) % 5) as f32 / 4.0;
    let right = |i: usize, c: usize| ((i * 7 + c) % 7) as f32 / 8.0;
    let mut out = Vec::new();
    for r in 0..9usize {
        for c in 0..7usize {
            let mut sum = (0..3).map(|i| left(r, i) * right(i, c)).sum::<f32>();
            for d in 0..2usize {
                if r < 7 && (r + d) as i64 - 1 == c as i64 {
                    sum += (d * 7 + r) as f32 / 16.0;
                }
            }
            let outliers = [((0, 0), 1.0), ((0, 6), -2.0), ((2, 3), 3.0), ((8, 5), 0.5)];
            sum += outliers.iter().find(|(at, _)| *at == (r, c)).map_or(0.0, |(_, v)| *v);
            let (p, code) = (c / 2, (r * 4 + c / 2) % 5);
            sum += ((p % 2 * 5 + code) * 2 + c % 2) as f32 / 8.0 - 1.0;
            out.push(sum);
        }
    }
    out
}

#[test]
fn what_is_written_is_read() {
    for (packing, routed) in [(Packing::Raw, true), (Packing::Lz4, false), (Packing::Zstd, true)] {
        let dir = Dir::new();
        let file = opened(&dir, &whole(packing, routed));
        assert_eq!((file.container(), file.metadata()), ("cawsf", &metadata()));
        assert_eq!(file.routing(), routed.then(routing).as_ref());
        let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["norm", "embedding", "a.weight", "b.weight"]);
        assert_eq!(&file.bytes(1).unwrap()[..], [1; 136]);
        let a = file.bytes(2).unwrap();
        // Quarters and sixteenths: all sums are exact.
        assert_eq!(floats(&a), dense());
        assert!(matches!(
            file.terms(2),
            [Term::Product { .. }, Term::Band { first: -1, .. }, Term::Sparse { .. }, Term::Vectors { .. }]
        ));
        let [Term::Vectors { tables: ours, .. }] = file.terms(3) else { panic!() };
        let shared =
            file.terms(2).iter().any(|t| matches!(t, Term::Vectors { tables, .. } if tables == ours));
        assert!(shared, "a codebook is one plane");
        let sections = if routed { 3 } else { 2 };
        assert_eq!(file.verify_checksums().unwrap(), Checksums::Valid(8 + sections + 1));
        for (from, len) in [(0, 252), (3, 5), (100, 30), (251, 1), (9, 0)] {
            let mut part = vec![0; len];
            file.read(2, from as u64, &mut part).unwrap();
            assert_eq!(part, a[from..from + len]);
            assert_eq!(file.slice(2, from as u64..(from + len) as u64).unwrap(), part);
        }
        assert!(matches!(file.read(2, 251, &mut [0; 2]), Err(Error::Refused { .. })));
        assert!(matches!(file.bytes(99), Err(Error::Refused { .. })));
        assert!(open(&dir.join("x.cawsf")).unwrap().terms(2).len() == 4, "by its first bytes");
    }
}

#[test]
fn planes_are_where_they_are_said_to_be() {
    for packing in [Packing::Raw, Packing::Zstd] {
        let dir = Dir::new();
        let bytes = whole(packing, true);
        let file = opened(&dir, &bytes);
        let all = file.tensors().len() + file.planes().len();
        for at in (0..all).filter(|at| file.terms(*at).is_empty()) {
            let info = file.info(at).unwrap();
            let part = 1.min(info.nbytes)..info.nbytes;
            let want = file.slice(at, part.clone()).unwrap().into_owned();
            match file.locate(at, part).unwrap() {
                Location::File { offset, .. } => {
                    assert!(at < file.tensors().len(), "whole tensors are read as they are");
                    assert_eq!(bytes[offset as usize..][..want.len()], want);
                }
                Location::Extent { extent, offset } => {
                    let e = &file.extents()[extent];
                    let stored = &bytes[e.offset as usize..][..e.stored as usize];
                    let mut unpacked = vec![9; 3];
                    file.unpack(extent, stored, &mut unpacked).unwrap();
                    assert_eq!(unpacked.len() as u64, if e.compressed { e.nbytes } else { 0 });
                    let unpacked = if e.compressed { &unpacked[..] } else { stored };
                    assert_eq!(unpacked[offset as usize..][..want.len()], want, "{}", e.name);
                    let mut wrong = stored.to_vec();
                    wrong[0] ^= 1;
                    assert!(matches!(
                        file.unpack(extent, &wrong, &mut Vec::new()),
                        Err(Error::Corrupt { .. })
                    ));
                }
            }
        }
        assert_eq!(file.locate(2, 0..4), None, "a sum is nowhere");
        assert!(matches!(file.unpack(99, &[], &mut Vec::new()), Err(Error::Refused { .. })));
    }
}

#[test]
fn large_shards_begin_at_pages() {
    let dir = Dir::new();
    let path = dir.join("x.cawsf");
    let mut w = Writer::create(&path, false, Packing::Lz4).unwrap();
    let scope = w.sum("a", 64, 64).unwrap();
    let noise: Vec<u8> = (0..64 * 40 * 2).map(|i: usize| (i * i % 251) as u8 & 0x3f).collect();
    w.shard(scope, Content::LowRank { rank: 40, left: &noise, right: &noise }).unwrap();
    w.shard(scope, Content::Band { n: 1, first: 0, values: &[0; 128] }).unwrap();
    w.finish(&Metadata::new(), None).unwrap();
    let file = V2::open(&path).unwrap();
    for s in file.shards() {
        assert!(s.offset.is_multiple_of(if s.stored < 4096 { 8 } else { 4096 }), "{s:?}");
    }
    // A diagonal of zeros packs well; noise would not have become smaller.
    assert_eq!(file.shards()[1].packing, Packing::Lz4);
}

#[test]
fn products_need_no_matrix() {
    let dir = Dir::new();
    let file = opened(&dir, &whole(Packing::Zstd, false));
    for (at, cols) in [(2, 7), (3, 6), (1, 64)] {
        let x: Vec<f32> = (0..cols).map(|i| (i as f32 - 2.5) / 3.0).collect();
        let info = &file.tensors()[at];
        let mut w = vec![0f32; info.len() as usize];
        info.dtype.dequantize(fonio_simd::Isa::scalar(), &file.bytes(at).unwrap(), &mut w).unwrap();
        let y = file.apply(at, &x).unwrap();
        assert_eq!(y.len() as u64, info.shape[0]);
        for (y, row) in y.iter().zip(w.chunks(cols)) {
            let want: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let size: f64 = row.iter().zip(&x).map(|(w, x)| f64::from((w * x).abs())).sum();
            assert!((f64::from(*y) - want).abs() <= size * 2f64.powi(-23), "{y} {want}");
        }
        assert!(matches!(file.apply(at, &x[1..]), Err(Error::Refused { .. })));
    }
    assert!(matches!(file.apply(9, &[]), Err(Error::Refused { .. })));
}

#[test]
fn an_unfinished_file_is_not_there() {
    let dir = Dir::new();
    let path = dir.join("x.cawsf");
    let create = || Writer::create(&path, false, Packing::Zstd).unwrap();
    let mut w = create();
    w.whole("a", list::F32, &[4]).unwrap();
    w.append(&[0; 15]).unwrap();
    assert!(matches!(w.append(&[0; 2]), Err(Error::Refused { .. })), "too many");
    assert!(matches!(w.whole("b", list::F32, &[4]), Err(Error::Refused { .. })), "too few");
    drop(w);
    let refused = |made: &dyn Fn(&mut Writer)| {
        let mut w = create();
        made(&mut w);
        assert!(matches!(w.finish(&Metadata::new(), None), Err(Error::Refused { .. })));
    };
    refused(&|w| drop(w.sum("no parts", 3, 3)));
    refused(&|w| {
        let (a, x) = (w.sum("a", 2, 2).unwrap(), Content::Band { n: 1, first: 0, values: &[0; 4] });
        w.shard(a, x).unwrap();
        w.shard(a, x).unwrap();
    });
    refused(&|w| {
        let a = w.sum("a", 2, 2).unwrap();
        w.shard(a, Content::Band { n: 1, first: 0, values: &[0; 4] }).unwrap();
        w.shard(a, Content::LowRank { rank: 1, left: &[0; 4], right: &[0; 4] }).unwrap();
    });
    refused(&|w| {
        let a = w.sum("a", 2, 2).unwrap();
        w.shard(a, Content::Vectors { codebook: 0, codes: &[0; 4] }).unwrap();
    });
    refused(&|w| {
        for _ in 0..2 {
            w.whole("a", list::F32, &[0]).unwrap();
        }
    });
    let mut w = create();
    let a = w.sum("a", 2, 2).unwrap();
    let falling = Content::Sparse { starts: &[0, 2, 2], columns: &[1, 0], values: &[0; 4] };
    assert!(matches!(w.shard(a, falling), Err(Error::Refused { .. })));
    drop(w);
    assert_eq!(dir.names(), [""; 0]);
}

/// One lie after the other, with all checksums right.
#[test]
fn lies_are_found() {
    let file = whole(Packing::Raw, true);
    assert!(fuzzing::cawsf_sealed(&file).is_ok());
    let u64_of = |v: u64| v.to_le_bytes().to_vec();
    // Shards: norm 0, embedding 1, codebook 2, L 3, D 4, S 5, R 6, R of b 7.
    let at = |shard: usize, field: usize| entry(&file, shard) + field;
    let lies: Vec<(&str, usize, Vec<u8>)> = vec![
        ("a kind that is none", at(3, 0), vec![6]),
        ("another kind", at(3, 0), vec![3]),
        ("a codebook of no number", at(2, 0), vec![1]),
        ("a packing that is none", at(3, 1), vec![3]),
        ("a packing that it is not", at(3, 1), vec![1]),
        ("reserved", at(3, 2), vec![1]),
        ("a scope that is not there", at(3, 4), vec![4]),
        ("a scope that is whole", at(3, 4), vec![1]),
        ("another scope", at(3, 4), vec![3]),
        ("an offset in the header", at(0, 8), u64_of(8)),
        ("an odd offset", at(3, 8), u64_of(stored(&file, 3) as u64 + 1)),
        ("an overlap", at(4, 8), u64_of(stored(&file, 3) as u64)),
        ("an overlap with INDEX", at(4, 8), u64_of(index(&file).start as u64)),
        ("beyond the end", at(4, 8), u64_of((file.len() as u64).next_multiple_of(8))),
        ("shorter", at(3, 16), u64_of(95)),
        ("larger than it is", at(3, 24), u64_of(1 << 40)),
        ("a rank of 0", at(3, 40), u64_of(0)),
        ("another rank", at(3, 40), u64_of(4)),
        ("no diagonals", at(4, 40), u64_of(0)),
        ("more diagonals", at(4, 40), u64_of(3)),
        ("diagonals outside", at(4, 48), u64_of(100)),
        ("diagonals below", at(4, 48), u64_of((-9i64).cast_unsigned())),
        ("diagonals that overflow", at(4, 48), u64_of(i64::MAX.cast_unsigned())),
        ("no outliers", at(5, 40), u64_of(0)),
        ("fewer outliers", at(5, 40), u64_of(3)),
        ("more outliers", at(5, 40), u64_of(5)),
        ("outliers without end", at(5, 40), u64_of(u64::MAX)),
        ("a codebook that is not there", at(6, 40), u64_of(1)),
        ("no tables", at(2, 40), u64_of(0)),
        ("more tables", at(2, 40), u64_of(3)),
        ("rows that no code reaches", at(2, 48), u64_of(257)),
        ("longer rows", at(2, 56), u64_of(4)),
        ("a code that is no row", stored(&file, 6) + 7, vec![5]),
        ("a column that is not there", stored(&file, 5) + 10, vec![6]),
        ("more in a row", stored(&file, 5), vec![3]),
        ("a type that is none", index(&file).start + 4 + 2 + 4 + 2, b"G32".to_vec()),
        ("another shape", index(&file).start + 4 + 2 + 4 + 2 + 3 + 1, u64_of(4)),
        ("a shape that overflows", index(&file).start + 4 + 2 + 4 + 2 + 3 + 1, u64_of(u64::MAX)),
        ("more tensors", index(&file).start, vec![5]),
        ("version 3", 8, vec![3]),
        ("reserved in the header", 12, vec![1]),
        ("a section's packing", file.len() - TRAILER + 32, vec![7]),
        ("a section outside", file.len() - TRAILER, u64_of(u64::MAX - 3)),
        ("a section's size", file.len() - TRAILER + 16, u64_of(3)),
        ("no end", file.len() - 1, vec![0]),
    ];
    for (what, at, value) in lies {
        match changed(&file, at, &value) {
            Err(Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    for shard in 0..8 {
        for (field, edge) in [8, 16, 24, 40, 48, 56].iter().flat_map(|f| EDGES.iter().map(move |e| (*f, *e)))
        {
            // Some are the truth, or numbers that a kind does not use.
            drop(changed(&file, at(shard, field), &edge.to_le_bytes()));
        }
    }
}

#[test]
fn checksums_tell_what_changed() {
    let file = whole(Packing::Raw, true);
    let wrong = |at: usize| {
        let mut bytes = file.clone();
        bytes[at] ^= 1;
        fuzzing::cawsf(&bytes).err().unwrap_or_else(|| panic!("{at}")).to_string()
    };
    for (shard, name) in [(0, "norm"), (2, "codebook 0"), (3, "a.weight (scope 2, shard L)"), (7, "b.weight")]
    {
        let message = wrong(stored(&file, shard));
        assert!(
            message.contains(name) && message.contains("checksum") && message.contains("at byte"),
            "{message}"
        );
    }
    assert!(wrong(index(&file).start).contains("INDEX"));
    assert!(wrong(file.len() - TRAILER).contains("trailer"));
    assert!(wrong(file.len() - 20).contains("trailer"));
    for len in [0, 5, 12, 16, 17, 143, 160, file.len() - 1] {
        assert!(fuzzing::cawsf(&file[..len]).is_err(), "{len}");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(fuzzing::cawsf(&longer).is_err());
}

#[test]
fn bombs_are_refused_before_they_are_unpacked() {
    // 16 KiB of zeros in a few bytes: a real pack, and then one that says that it is more.
    let dir = Dir::new();
    let path = dir.join("x.cawsf");
    let mut w = Writer::create(&path, false, Packing::Lz4).unwrap();
    let a = w.sum("a", 64, 64).unwrap();
    w.shard(a, Content::LowRank { rank: 64, left: &[0; 8192], right: &[0; 8192] }).unwrap();
    w.finish(&Metadata::new(), None).unwrap();
    let file = std::fs::read(&path).unwrap();
    assert!(fuzzing::cawsf_sealed(&file).is_ok());
    let more = |size: u64, rank: u64| {
        let mut bytes = file.clone();
        let at = entry(&bytes, 0);
        bytes[at + 24..at + 32].copy_from_slice(&size.to_le_bytes());
        bytes[at + 40..at + 48].copy_from_slice(&rank.to_le_bytes());
        fuzzing::cawsf_sealed(&bytes).map(drop)
    };
    assert!(matches!(more(16_384 * 2, 128), Err(Error::Corrupt { .. })), "less than it says");
    assert!(matches!(more(8192, 32), Err(Error::Corrupt { .. } | Error::Limit { .. })), "more than it says");
    assert!(matches!(more(1 << 40, 1 << 32), Err(Error::Corrupt { .. })), "a terabyte");
    // A matrix of a terabyte out of two factors of a few megabytes' shape, stored as nothing.
    let mut w = Writer::create(&dir.join("y.cawsf"), false, Packing::Lz4).unwrap();
    let a = w.sum("a", 1 << 19, 1 << 19).unwrap();
    w.shard(a, Content::Band { n: 1, first: 0, values: &vec![0; 1 << 20] }).unwrap();
    assert!(matches!(w.finish(&Metadata::new(), None), Err(Error::Refused { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_parts_are_read_as_they_were_written(
        (rows, cols, rank, n) in (1u64..40, 1u64..40, 0u64..5, 0u64..4),
        (m, k, len) in (1u64..4, 1u64..9, 1u64..9),
        (how, seed) in (0usize..3, any::<u64>()),
    ) {
        let dir = Dir::new();
        let mut random = common::Random(seed);
        let mut half = |n: u64| halves((0..n).map(|_| (random.below(2000) as f32 - 1000.0) / 64.0));
        let packing = [Packing::Raw, Packing::Lz4, Packing::Zstd][how];
        let path = dir.join("x.cawsf");
        let mut w = Writer::create(&path, false, packing).unwrap();
        let book = w.codebook(m, k, len, &half(m * k * len)).unwrap();
        let a = w.sum("a", rows, cols).unwrap();
        let mut kinds = Vec::new();
        if rank > 0 {
            let (left, right) = (half(rows * rank), half(rank * cols));
            w.shard(a, Content::LowRank { rank, left: &left, right: &right }).unwrap();
            kinds.push(Kind::L);
        }
        let n = n.min(cols);
        if n > 0 {
            w.shard(a, Content::Band { n, first: 0, values: &half(n * rows.min(cols)) }).unwrap();
            kinds.push(Kind::D);
        }
        let columns: Vec<u32> = (0..cols as u32).filter(|c| c % 3 != 1).collect();
        let starts: Vec<u32> = (0..=rows).map(|r| if r == 0 { 0 } else { columns.len() as u32 }).collect();
        w.shard(a, Content::Sparse { starts: &starts, columns: &columns, values: &half(columns.len() as u64) }).unwrap();
        kinds.push(Kind::S);
        let codes: Vec<u8> = (0..rows * cols.div_ceil(len)).map(|i| (i % k) as u8).collect();
        w.shard(a, Content::Vectors { codebook: book, codes: &codes }).unwrap();
        kinds.push(Kind::R);
        w.finish(&metadata(), None).unwrap();
        let file = V2::open(&path).unwrap();
        let found: Vec<Kind> = file.shards_of(0).iter().map(|s| file.shards()[*s].kind).collect();
        prop_assert_eq!(found, kinds);
        let codes_at = file.tensors().len() + file.planes().iter().position(|p| p.name.ends_with("R.codes")).unwrap();
        prop_assert_eq!(&file.bytes(codes_at).unwrap()[..], &codes[..]);
        // Two ways to the same product.
        let w = floats(&file.bytes(0).unwrap());
        let x: Vec<f32> = (0..cols).map(|i| (i % 5) as f32 - 1.5).collect();
        for (y, row) in file.apply(0, &x).unwrap().iter().zip(w.chunks(cols as usize)) {
            let want: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            // A product's terms may be far larger than their sum: 5 of 250 · 16, in f32 by the one way.
            prop_assert!((f64::from(*y) - want).abs() < 5e-3 * cols as f64, "{y} {want}");
        }
        prop_assert!(fuzzing::cawsf(&std::fs::read(&path).unwrap()).is_ok());
    }
}
