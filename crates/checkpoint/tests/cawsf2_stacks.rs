//! CAWSF version 2: stacks of matrices that are sums, each by itself.

mod common;

use common::Dir;
use common::cawsf2::{changed, entry, halves, index, metadata, stacked, stored};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Content, Kind, V2, Writer};
use fonio_checkpoint::{Checkpoint, Error, Location, Term, fuzzing};

const ROWS: u64 = 5;
const COLS: u64 = 7;

/// Writes the parts that the lowest four bits of `set` say; numbers differ from matrix to matrix.
fn put(w: &mut Writer, scope: u32, matrix: u16, book: u32, set: usize) {
    let number = |i: u64| ((i * 7919 + set as u64 * 31) % 97) as f32 / 24.0 - 2.0;
    let some = |n: u64| halves((0..n).map(number));
    if set & 1 > 0 {
        let rank = 1 + set as u64 % 3;
        let (left, right) = (some(ROWS * rank), some(rank * COLS));
        w.shard_of(scope, matrix, Content::LowRank { rank, left: &left, right: &right }).unwrap();
    }
    if set & 2 > 0 {
        w.shard_of(scope, matrix, Content::Band { n: 2, first: -1, values: &some(2 * ROWS) }).unwrap();
    }
    if set & 4 > 0 {
        let columns: Vec<u32> = (0..COLS as u32).filter(|c| c % 5 != set as u32 % 5).collect();
        let n = columns.len() as u32;
        let starts: Vec<u32> = (0..=ROWS as u32).map(|r| if r > set as u32 % 3 { n } else { 0 }).collect();
        let values = some(n.into());
        w.shard_of(scope, matrix, Content::Sparse { starts: &starts, columns: &columns, values: &values })
            .unwrap();
    }
    if set & 8 > 0 {
        let codes: Vec<u8> = (0..ROWS * COLS.div_ceil(2)).map(|i| ((i + set as u64) % 5) as u8).collect();
        w.shard_of(scope, matrix, Content::Vectors { codebook: book, codes: &codes }).unwrap();
    }
}

/// A stack of all sets of parts, and each of its matrices as a tensor of its own.
fn both(dir: &Dir, packing: Packing) -> V2 {
    let mut w = Writer::create(&dir.join("x.cawsf"), false, packing).unwrap();
    let book = w.codebook(2, 5, 2, &halves((0..20).map(|i| i as f32 / 8.0 - 1.0))).unwrap();
    let stack = w.stack("stack", 15, ROWS, COLS).unwrap();
    (1..16).for_each(|set| put(&mut w, stack, set as u16 - 1, book, set));
    for set in 1..16 {
        let own = w.sum(&format!("{set}"), ROWS, COLS).unwrap();
        put(&mut w, own, 0, book, set);
    }
    V2::open(&w.finish(&metadata(), None).unwrap()).unwrap()
}

#[test]
fn each_matrix_is_the_sum_that_it_is_by_itself() {
    for packing in [Packing::Raw, Packing::Lz4, Packing::Zstd] {
        let dir = Dir::new();
        let file = both(&dir, packing);
        let info = &file.tensors()[0];
        assert_eq!((&info.shape[..], info.dtype.name()), (&[15, ROWS, COLS][..], "F32"));
        let matrices = file.matrices(0);
        assert_eq!((matrices.len(), file.matrices(1).is_empty(), file.is_sum(0)), (15, true, true));
        assert!(file.terms(0).is_empty() && file.locate(0, 0..4).is_none());
        let all = file.bytes(0).unwrap().into_owned();
        let each = all.len() / 15;
        let x: Vec<f32> = (0..COLS).map(|i| (i as f32 - 2.5) / 3.0).collect();
        for (i, matrix) in matrices.clone().enumerate() {
            let own = file.bytes(i + 1).unwrap();
            assert_eq!(all[i * each..][..each], own[..], "{packing:?} {i}");
            assert_eq!(file.bytes(matrix).unwrap(), own);
            let info = file.info(matrix).unwrap();
            assert_eq!((info.name.as_str(), &info.shape[..]), (&*format!("stack#{i}"), &[ROWS, COLS][..]));
            let kinds =
                |of: usize| file.shards_of(of).iter().map(|s| file.shards()[*s].kind).collect::<Vec<Kind>>();
            assert_eq!((kinds(matrix), file.terms(matrix).len()), (kinds(i + 1), kinds(i + 1).len()));
            assert_eq!(file.apply(matrix, &x).unwrap(), file.apply(i + 1, &x).unwrap());
            let first = &file.shards()[file.shards_of(matrix)[0]];
            assert_eq!(file.matrix_of(first), Some((matrix, &*format!("stack#{i}"))));
            assert_eq!(info.offset, first.offset);
        }
        assert!(matches!(file.apply(0, &x), Err(Error::Refused { .. })), "a stack is no matrix");
        assert!(matches!(file.apply(matrices.end, &x), Err(Error::Refused { .. })), "a plane is none either");
        // Across matrices, and bytes that begin and end anywhere.
        for (from, len) in
            [(0, all.len()), (each - 3, 7), (3 * each, each), (3 * each - 1, 2 * each + 2), (9, 0)]
        {
            let mut part = vec![0; len];
            file.read(0, from as u64, &mut part).unwrap();
            assert_eq!(part, all[from..from + len], "{from} {len}");
            assert_eq!(file.slice(0, from as u64..(from + len) as u64).unwrap(), part);
        }
        assert!(matches!(file.read(0, all.len() as u64 - 1, &mut [0; 2]), Err(Error::Refused { .. })));
        file.verify_checksums().unwrap();
    }
}

#[test]
fn a_matrix_is_read_from_its_own_shards() {
    let dir = Dir::new();
    let file = both(&dir, Packing::Zstd);
    let tables = |of: usize| {
        file.terms(of).iter().find_map(|t| match t {
            Term::Vectors { tables, .. } => Some(*tables),
            _ => None,
        })
    };
    let matrices = file.matrices(0);
    for matrix in matrices.clone() {
        for plane in file.terms(matrix).iter().flat_map(|t| t.planes()) {
            let nbytes = file.info(plane).unwrap().nbytes;
            let Some(Location::Extent { extent, .. }) = file.locate(plane, 0..nbytes) else {
                panic!("{plane}")
            };
            let shared = Some(plane) == tables(matrix);
            assert_eq!(file.shards_of(matrix).contains(&extent), !shared, "{plane}");
        }
        // One codebook for all that have one.
        assert!(tables(matrix).is_none_or(|t| Some(t) == tables(15)));
    }
    assert!(matrices.filter(|m| tables(*m).is_some()).count() == 8);
}

#[test]
fn incomplete_stacks_are_not_written() {
    let dir = Dir::new();
    let refused = |made: &dyn Fn(&mut Writer, u32)| {
        let mut w = Writer::create(&dir.join("x.cawsf"), false, Packing::Raw).unwrap();
        let book = w.codebook(2, 5, 2, &[0; 40]).unwrap();
        made(&mut w, book);
        assert!(matches!(w.finish(&metadata(), None), Err(Error::Refused { .. })));
    };
    let stack = |w: &mut Writer| w.stack("s", 3, ROWS, COLS).unwrap();
    refused(&|w, book| [0, 1].iter().for_each(|m| put(w, 1, *m, book, 15)));
    refused(&|w, book| {
        let s = stack(w);
        [0, 1].iter().for_each(|m| put(w, s, *m, book, 15));
    });
    refused(&|w, book| {
        let s = stack(w);
        [0, 2, 1].iter().for_each(|m| put(w, s, *m, book, 15));
    });
    refused(&|w, book| {
        let s = stack(w);
        [0, 1, 2, 3].iter().for_each(|m| put(w, s, *m, book, 15));
    });
    refused(&|w, book| {
        let s = stack(w);
        [0, 1, 1, 2].iter().for_each(|m| put(w, s, *m, book, 8));
    });
    let mut w = Writer::create(&dir.join("x.cawsf"), false, Packing::Raw).unwrap();
    for (name, n) in [("s".to_owned(), 0), ("s".to_owned(), (1 << 16) + 1), ("s".repeat(128), 2)] {
        assert!(matches!(w.stack(&name, n, ROWS, COLS), Err(Error::Refused { .. })), "{n}");
    }
    // Fewer bytes of a file than its matrices justify.
    let stack = w.stack("s", 1000, 1, 1).unwrap();
    let values = halves([1.0]);
    for matrix in 0..1000 {
        w.shard_of(stack, matrix, Content::Band { n: 1, first: 0, values: &values }).unwrap();
    }
    assert!(w.finish(&metadata(), None).is_ok());
    let packed = |n: u16| {
        let mut w = Writer::create(&dir.join("x.cawsf"), true, Packing::Lz4).unwrap();
        let stack = w.stack("s", n.into(), 1, 1).unwrap();
        for matrix in 0..n {
            w.shard_of(stack, matrix, Content::Band { n: 1, first: 0, values: &values }).unwrap();
        }
        w.finish(&metadata(), None)
    };
    assert!(packed(10).is_ok());
    assert!(packed(1000).unwrap_err().to_string().contains("1000 matrices"));
    assert_eq!(dir.names(), ["x.cawsf"]);
}

/// One lie after the other, with all checksums right.
#[test]
fn lies_are_found_and_placed() {
    let file = stacked(Packing::Raw);
    assert!(fuzzing::cawsf_sealed(&file).is_ok());
    // Shards: whole 0, codebook 1, L and R of matrix 0: 2, 3; S of 1: 4; D, S and R of 2: 5 to 7.
    let at = |shard: usize, field: usize| entry(&file, shard) + field;
    let name = file.windows(6).rposition(|w| w == b"e.exps").unwrap();
    assert!(index(&file).contains(&name));
    let shape = name + 6 + 2 + 1;
    let lies: Vec<(&str, usize, Vec<u8>)> = vec![
        ("a matrix that is not there", at(7, 2), vec![3]),
        ("a matrix far away", at(7, 2), vec![0, 0x80]),
        ("a matrix of a whole tensor", at(0, 2), vec![1]),
        ("a matrix of a codebook", at(1, 2), vec![1]),
        ("a matrix without shards", at(4, 2), vec![2]),
        ("the first without shards", at(2, 2), vec![1, 0]),
        ("the last without shards", shape, vec![4]),
        ("fewer matrices", shape, vec![2]),
        ("no matrices", shape, vec![0]),
        ("more than there can be", shape, vec![1, 0, 1]),
        ("a part twice", at(6, 0), vec![3]),
        ("parts out of order", at(5, 0), vec![1]),
        ("a matrix that comes back", at(5, 2), vec![0]),
        ("another scope", at(4, 4), vec![0]),
        ("more rows", shape + 8, vec![5]),
        ("fewer columns", shape + 16, vec![5]),
        ("rows without end", shape + 8, u64::MAX.to_le_bytes().to_vec()),
        ("four dimensions", shape - 1, vec![4]),
        ("another rank", at(2, 40), vec![2]),
        ("an overlap", at(3, 8), (stored(&file, 2) as u64).to_le_bytes().to_vec()),
        ("a code that is no row", stored(&file, 7), vec![5]),
        ("a column that is not there", stored(&file, 4) + 4, vec![6]),
    ];
    for (what, place, value) in lies {
        match changed(&file, place, &value) {
            Err(Error::Corrupt { tensor: Some(_), offset: Some(_), .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    // What it says of the parts of the second matrix.
    let said = changed(&file, stored(&file, 4), &[9]).unwrap_err().to_string();
    assert!(
        said.contains("e.exps#1") && said.contains("matrix 1, shard S") && said.contains("byte"),
        "{said}"
    );
}
