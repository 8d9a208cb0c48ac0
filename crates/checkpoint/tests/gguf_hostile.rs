//! GGUF files that break a rule, one by one.

mod common;

use common::gguf::{Bytes, Expect, SIZES, cases};
use common::{Dir, EDGES, Random};
use fonio_checkpoint::{Error, fuzzing, open};
use fonio_codec::DType;
use fonio_conformance::home;

#[test]
fn every_rule_broken() {
    let cases = cases();
    assert!(cases.len() >= 600, "{}", cases.len());
    for (what, bytes, expect) in cases {
        let found = match fuzzing::gguf(&bytes) {
            Ok(_) => Expect::Fine,
            Err(Error::Corrupt { .. }) => Expect::Corrupt,
            Err(Error::Unsupported { .. }) => Expect::Unsupported,
            Err(other) => panic!("{what}: {other}"),
        };
        let good = found == expect || (expect == Expect::Error && found != Expect::Fine);
        assert!(good, "{what}: {found:?}, {:?}", fuzzing::gguf(&bytes).err().map(|e| e.to_string()));
    }
}

#[test]
fn errors_say_where() {
    let twice = Bytes::head(3, 0, 2).string(b"k").u32(0).raw(&[1]).string(b"k").u32(0).raw(&[1]);
    let error = fuzzing::gguf(&twice.0).err().unwrap();
    assert!(
        matches!(&error, Error::Corrupt { tensor: Some(k), offset: Some(47), .. } if k == "k"),
        "{error:?}"
    );
    let kind = Bytes::head(3, 1, 0).tensor("some.weight", &[256], 1000, 0).pad(32).zeros(64);
    let error = fuzzing::gguf(&kind.0).err().unwrap();
    assert!(matches!(&error, Error::Unsupported { tensor: Some(t), .. } if t == "some.weight"), "{error:?}");
    assert!(error.to_string().contains("1000"), "{error}");
    let short = Bytes::head(3, 1, 0).tensor("some.weight", &[8], 0, 0).pad(32).zeros(31);
    let error = fuzzing::gguf(&short.0).err().unwrap();
    assert!(
        matches!(&error, Error::Corrupt { tensor: Some(t), offset: Some(96), .. } if t == "some.weight"),
        "{error:?}"
    );
}

/// Size arithmetic agrees with arithmetic that is wide enough, or there is an error.
#[test]
fn sizes_against_wide_arithmetic() {
    let mut random = Random(7);
    let mut fine = 0;
    for _ in 0..20_000 {
        let dtype = fonio_codec::list::ALL[random.below(fonio_codec::list::ALL.len())];
        let Some(kind) = dtype.ggml_type() else { continue };
        let mut dims = vec![0u64; random.below(5)];
        for dim in &mut dims {
            let near = EDGES[random.below(EDGES.len())].wrapping_add(random.next() % 3).wrapping_sub(1);
            *dim = [near, random.next() % 4, 256 * (random.next() % 4), random.next() >> random.below(64)]
                [random.below(4)];
        }
        let mut bytes = Bytes::head(3, 1, 0).tensor("t", &dims, kind, 0).pad(32).zeros(random.below(5000));
        let data = bytes.0.len() as u128;
        let row = dims.first().copied().unwrap_or(1);
        let blocks = u128::from(row) / dtype.block_len() as u128;
        let whole = u128::from(row).is_multiple_of(dtype.block_len() as u128);
        let nbytes = dims
            .iter()
            .skip(1)
            .try_fold(blocks * dtype.block_bytes() as u128, |n, d| n.checked_mul((*d).into()));
        bytes.0.push(0);
        match (fuzzing::gguf(&bytes.0), nbytes) {
            (Ok(opened), Some(nbytes)) => {
                let info = &opened.tensors()[0];
                assert!(whole && u128::from(info.nbytes) == nbytes, "{dtype} {dims:?}");
                assert!(u128::from(info.offset) + nbytes <= data + 1, "{dtype} {dims:?}");
                assert!(info.shape.iter().rev().eq(&dims));
                fine += 1;
            }
            (Ok(_), None) => panic!("{dtype} {dims:?}"),
            (Err(Error::Corrupt { .. }), _) => {}
            (Err(error), _) => panic!("{dtype} {dims:?}: {error}"),
        }
    }
    assert!(fine > 1000, "{fine}");
}

/// Keys that the container itself reads, with values of every type.
#[test]
fn every_key_of_every_type() {
    for key in ["general.alignment", "split.no", "split.count", "split.tensors.count"] {
        for kind in 0..13u32 {
            for value in [0u64, 1, 2, 32, u64::MAX] {
                for array in [false, true] {
                    let scalar = |bytes: Bytes| match kind {
                        8 => bytes.string(value.to_string().as_bytes()),
                        9 => bytes.u32(4).u64(1).u32(value as u32),
                        _ => bytes.raw(&value.to_le_bytes()[..SIZES[kind as usize]]),
                    };
                    let bytes = Bytes::head(3, 0, 1).string(key.as_bytes());
                    let bytes =
                        if array { scalar(bytes.u32(9).u32(kind).u64(1)) } else { scalar(bytes.u32(kind)) };
                    let result = fuzzing::gguf(&bytes.0);
                    let number = !array && !matches!(kind, 6..=9 | 12);
                    assert!(number || result.is_err(), "{key}: {value} of type {kind}");
                    assert!(!matches!(
                        result,
                        Err(Error::Io { .. } | Error::Refused { .. } | Error::Limit { .. })
                    ));
                }
            }
        }
    }
}

#[test]
fn cut_anywhere() {
    let whole = Bytes::head(3, 2, 4)
        .string(b"general.architecture")
        .u32(8)
        .string(b"llama")
        .string(b"tokens")
        .u32(9)
        .u32(8)
        .u64(3)
        .string(b"a")
        .string("ß".as_bytes())
        .string(b"")
        .string(b"scores")
        .u32(9)
        .u32(6)
        .u64(2)
        .u64(0)
        .string(b"x")
        .u32(12)
        .u64(1)
        .tensor("a", &[4, 3], 0, 0)
        .tensor("b", &[32], 8, 64)
        .pad(32)
        .zeros(64 + 34)
        .0;
    assert!(fuzzing::gguf(&whole).is_ok());
    let dir = Dir::new();
    let path = dir.join("m.gguf");
    for cut in 0..whole.len() {
        assert!(matches!(fuzzing::gguf(&whole[..cut]), Err(Error::Corrupt { .. })), "{cut}");
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(matches!(open(&path), Err(Error::Corrupt { .. })), "{cut}");
    }
}

#[test]
fn a_real_file_cut() {
    let Some(path) = home::need(home::SMOLLM2, home::model(home::SMOLLM2)) else { return };
    let data = open(&path).unwrap().tensors().iter().map(|t| t.offset).min().unwrap() as usize;
    let mut head = vec![0; data];
    std::io::Read::read_exact(&mut std::fs::File::open(&path).unwrap(), &mut head).unwrap();
    let mut random = Random(3);
    let cuts = (0..2000).chain((0..100).map(|_| random.below(data))).chain(data - 100..=data);
    for cut in cuts {
        assert!(matches!(fuzzing::gguf(&head[..cut]), Err(Error::Corrupt { .. })), "{cut}");
    }
}

#[test]
fn parts_that_lie() {
    let part = |no: u16, count: u16, tensors: i32, name: &str| {
        let split =
            |b: Bytes, key: &str, kind: u32, value: &[u8]| b.string(key.as_bytes()).u32(kind).raw(value);
        let bytes = split(Bytes::head(3, 1, 3), "split.no", 2, &no.to_le_bytes());
        let bytes = split(bytes, "split.count", 2, &count.to_le_bytes());
        let bytes = split(bytes, "split.tensors.count", 5, &tensors.to_le_bytes());
        bytes.tensor(name, &[8], 0, 0).pad(32).zeros(32).0
    };
    let set = |first: &[u8], second: &[u8]| {
        let dir = Dir::new();
        let path = dir.write("m-00001-of-00002.gguf", first);
        dir.write("m-00002-of-00002.gguf", second);
        open(&path).map(|opened| opened.tensors().len())
    };
    assert_eq!(set(&part(0, 2, 2, "a"), &part(1, 2, 2, "b")).unwrap(), 2);
    for (what, first, second) in [
        ("same part", part(0, 2, 2, "a"), part(0, 2, 2, "b")),
        ("other order", part(1, 2, 2, "a"), part(0, 2, 2, "b")),
        ("other count", part(0, 2, 2, "a"), part(1, 3, 2, "b")),
        ("count not as named", part(0, 3, 2, "a"), part(1, 3, 2, "b")),
        ("beyond the count", part(2, 2, 2, "a"), part(1, 2, 2, "b")),
        ("other total", part(0, 2, 2, "a"), part(1, 2, 3, "b")),
        ("wrong total", part(0, 2, 3, "a"), part(1, 2, 3, "b")),
        ("negative total", part(0, 2, -1, "a"), part(1, 2, -1, "b")),
        ("tensor in both", part(0, 2, 2, "a"), part(1, 2, 2, "a")),
        ("a part that is none", part(0, 2, 2, "a"), Bytes::head(3, 0, 0).0),
        ("an empty part", part(0, 2, 2, "a"), vec![]),
        ("65,535 parts", part(0, 65_535, 2, "a"), part(1, 2, 2, "b")),
    ] {
        let error = set(&first, &second).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
    }
}

#[test]
fn unknown_types_are_the_test() {
    // The table above takes these numbers for types that nobody has; a codec that gets one must move it there.
    for kind in [4, 5, 31, 32, 33, 36, 37, 38, 1000] {
        assert_eq!(DType::from_ggml(kind), None);
    }
}
