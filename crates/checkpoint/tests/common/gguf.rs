//! GGUF files put together byte by byte, and everything that can be wrong with them.
#![allow(dead_code)]

use super::EDGES;

/// What must come of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    Fine,
    Corrupt,
    Unsupported,
    /// Any error.
    Error,
}
use Expect::*;

#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn head(version: u32, n_tensors: u64, n_kv: u64) -> Bytes {
        Bytes(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_kv)
    }
    pub fn raw(mut self, bytes: &[u8]) -> Bytes {
        self.0.extend(bytes);
        self
    }
    pub fn u32(self, v: u32) -> Bytes {
        self.raw(&v.to_le_bytes())
    }
    pub fn u64(self, v: u64) -> Bytes {
        self.raw(&v.to_le_bytes())
    }
    pub fn string(self, s: &[u8]) -> Bytes {
        self.u64(s.len() as u64).raw(s)
    }
    pub fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Bytes {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
        self.string(name.as_bytes()).u32(dims.len() as u32).raw(&dims_bytes).u32(kind).u64(offset)
    }
    pub fn pad(mut self, alignment: usize) -> Bytes {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }
    pub fn zeros(mut self, n: usize) -> Bytes {
        self.0.resize(self.0.len() + n, 0);
        self
    }
}

/// One key of this type and value.
fn kv(key: &str, kind: u32, value: &[u8]) -> Bytes {
    Bytes::head(3, 0, 1).string(key.as_bytes()).u32(kind).raw(value)
}

/// Sizes of the scalar types by their number; 8 and 9 have none.
pub const SIZES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const F32: u32 = 0;
const Q8_0: u32 = 8;

fn headers(out: &mut Vec<(String, Vec<u8>, Expect)>) {
    let mut add = |what: &str, bytes: Bytes, expect| out.push((what.into(), bytes.0, expect));
    add("nothing", Bytes::default(), Corrupt);
    add("bad magic", Bytes(b"GGUX".to_vec()).u32(3).u64(0).u64(0), Corrupt);
    add("GGML", Bytes(b"ggml".to_vec()).u32(3).u64(0).u64(0), Corrupt);
    add("version 0", Bytes::head(0, 0, 0), Corrupt);
    add("version 1", Bytes::head(1, 0, 0), Unsupported);
    add("version 2", Bytes::head(2, 0, 0), Fine);
    add("version 4", Bytes::head(4, 0, 0), Unsupported);
    add("version 2^32-1", Bytes::head(u32::MAX, 0, 0), Unsupported);
    add("big-endian", Bytes::head(3 << 24, 0, 0), Unsupported);
    add("no keys, no tensors", Bytes::head(3, 0, 0), Fine);
    for edge in EDGES.iter().filter(|e| **e > 0) {
        add(&format!("{edge} tensors"), Bytes::head(3, *edge, 0), Corrupt);
        add(&format!("{edge} tensors, some bytes"), Bytes::head(3, *edge, 0).zeros(1000), Corrupt);
        add(&format!("{edge} keys"), Bytes::head(3, 0, *edge), Corrupt);
        add(&format!("{edge} keys, some bytes"), Bytes::head(3, 0, *edge).zeros(1000), Corrupt);
    }
}

fn keys(out: &mut Vec<(String, Vec<u8>, Expect)>) {
    let mut add = |what: &str, bytes: Bytes, expect| out.push((what.into(), bytes.0, expect));
    add("empty key", kv("", 0, &[1]), Corrupt);
    add("long key", kv(&"k".repeat(65_536), 0, &[1]), Corrupt);
    add("key not UTF-8", Bytes::head(3, 0, 1).string(b"\xff").u32(0).raw(&[1]), Corrupt);
    for edge in EDGES {
        let bytes = Bytes::head(3, 0, 1).u64(*edge).raw(b"key").zeros(50);
        add(&format!("key of {edge} bytes"), bytes, Corrupt);
        add(
            &format!("string of {edge} bytes"),
            kv("k", 8, &edge.to_le_bytes()),
            if *edge == 0 { Fine } else { Corrupt },
        );
        for (kind, size) in SIZES.iter().enumerate().filter(|(kind, _)| *kind != 9) {
            let value = [&(kind as u32).to_le_bytes()[..], &edge.to_le_bytes()].concat();
            let expect = if *edge == 0 { Fine } else { Corrupt };
            add(&format!("{edge} values of type {kind}"), kv("k", 9, &value), expect);
            add(
                &format!("{edge} values of type {kind}, some bytes"),
                kv("k", 9, &value).zeros(100 * size),
                expect,
            );
        }
        let strings =
            [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &1u64.to_le_bytes(), b"a", &edge.to_le_bytes()];
        add(
            &format!("second string of {edge} bytes"),
            kv("k", 9, &strings.concat()),
            if *edge == 0 { Fine } else { Corrupt },
        );
    }
    for kind in [13, 14, 255, 1 << 31, u32::MAX] {
        add(&format!("value of type {kind}"), kv("k", kind, &[0; 16]), Corrupt);
        let value = [&kind.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 8]].concat();
        add(&format!("array of type {kind}"), kv("k", 9, &value), Corrupt);
    }
    for (kind, size) in SIZES.iter().enumerate() {
        for len in 0..*size {
            add(&format!("{len} bytes of type {kind}"), kv("k", kind as u32, &vec![0; len]), Corrupt);
        }
    }
    add("truth 2", kv("k", 7, &[2]), Corrupt);
    add(
        "array of truths with 255",
        kv("k", 9, &[&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 255]].concat()),
        Corrupt,
    );
    add("text not UTF-8", kv("k", 8, &[&1u64.to_le_bytes()[..], b"\xff"].concat()), Corrupt);
    let halves = [
        &8u32.to_le_bytes()[..],
        &2u64.to_le_bytes(),
        &1u64.to_le_bytes(),
        b"\xc3",
        &1u64.to_le_bytes(),
        b"\xa4",
    ];
    add("letter cut into two strings", kv("k", 9, &halves.concat()), Corrupt);
    add(
        "array not UTF-8",
        kv("k", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1u64.to_le_bytes(), b"\xff"].concat()),
        Corrupt,
    );
    let nest = |n: usize| [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(n);
    add(
        "array of arrays",
        kv("k", 9, &[&nest(1)[..], &0u32.to_le_bytes(), &0u64.to_le_bytes()].concat()),
        Unsupported,
    );
    add("100,000 arrays deep", kv("k", 9, &nest(100_000)), Unsupported);
    add(
        "key twice",
        Bytes::head(3, 0, 2).string(b"k").u32(0).raw(&[1]).string(b"k").u32(0).raw(&[1]),
        Corrupt,
    );
}

fn tensors(out: &mut Vec<(String, Vec<u8>, Expect)>) {
    let mut add = |what: &str, bytes: Bytes, expect| out.push((what.into(), bytes.0, expect));
    let one = |dims: &[u64], kind, offset, data| {
        Bytes::head(3, 1, 0).tensor("t", dims, kind, offset).pad(32).zeros(data)
    };
    add("a tensor", one(&[4, 2], F32, 0, 32), Fine);
    add("no name", Bytes::head(3, 1, 0).tensor("", &[1], F32, 0).pad(32).zeros(4), Fine);
    add("no dimension", one(&[], F32, 0, 4), Fine);
    add("zero dimension", one(&[4, 0, 3], F32, 0, 0), Fine);
    add("zero dimension, no padding", Bytes::head(3, 1, 0).tensor("t", &[0], F32, 0), Fine);
    add("name of 63", Bytes::head(3, 1, 0).tensor(&"n".repeat(63), &[1], F32, 0).pad(32).zeros(4), Fine);
    add("name of 64", Bytes::head(3, 1, 0).tensor(&"n".repeat(64), &[1], F32, 0).pad(32).zeros(4), Corrupt);
    add(
        "name not UTF-8",
        Bytes::head(3, 1, 0).string(b"\xff").u32(0).u32(0).u64(0).pad(32).zeros(4),
        Corrupt,
    );
    add("five dimensions", one(&[1; 5], F32, 0, 4), Corrupt);
    add("no whole block", one(&[33], Q8_0, 0, 68), Corrupt);
    add("half a block", one(&[16, 2], Q8_0, 0, 34), Corrupt);
    add("a byte short", one(&[4, 2], F32, 0, 31), Corrupt);
    add("data missing", Bytes::head(3, 1, 0).tensor("t", &[1], F32, 0), Corrupt);
    add(
        "name twice",
        Bytes::head(3, 2, 0).tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).pad(32).zeros(64),
        Corrupt,
    );
    for edge in EDGES {
        let name = Bytes::head(3, 1, 0).u64(*edge).raw(b"t").u32(0).u32(F32).u64(0).pad(32).zeros(32);
        add(&format!("name of {edge} bytes"), name, Error);
        let n_dims = Bytes::head(3, 1, 0).string(b"t").u32(*edge as u32).u32(F32).u64(0).pad(32).zeros(96);
        if *edge > 0 && *edge <= u32::MAX.into() {
            add(&format!("{edge} dimensions"), n_dims, Corrupt);
        }
        for place in 0..4 {
            let mut dims = [1u64; 4];
            dims[place] = *edge;
            for kind in [F32, Q8_0] {
                let fine = *edge == 0 && (kind == F32 || place == 0);
                add(
                    &format!("dimensions {dims:?} of type {kind}"),
                    one(&dims, kind, 0, 64),
                    if fine { Fine } else { Corrupt },
                );
            }
            dims[(place + 1) % 4] = 0;
            let bytes = one(&dims, F32, 0, 64);
            add(&format!("dimensions {dims:?}"), bytes, if *edge < 1 << 61 { Fine } else { Corrupt });
            let dims = [*edge; 4];
            add(
                &format!("dimensions {dims:?}"),
                one(&dims, F32, 0, 64),
                if *edge == 0 { Fine } else { Corrupt },
            );
        }
        add(&format!("offset {edge}"), one(&[4, 2], F32, *edge, 64), if *edge == 0 { Fine } else { Corrupt });
        let two =
            Bytes::head(3, 2, 0).tensor("t", &[3], F32, 0).tensor("u", &[3], F32, *edge).pad(32).zeros(64);
        add(&format!("second offset {edge}"), two, Corrupt);
        let wraps =
            Bytes::head(3, 2, 0).tensor("t", &[*edge], 24, 0).tensor("u", &[3], F32, 0).pad(32).zeros(64);
        add(&format!("{edge} bytes and their padding"), wraps, if *edge == 0 { Fine } else { Corrupt });
    }
    for offset in [1, 12, 16, 64, 31, 33] {
        let two =
            Bytes::head(3, 2, 0).tensor("t", &[3], F32, 0).tensor("u", &[3], F32, offset).pad(32).zeros(128);
        add(&format!("second offset {offset}"), two, Corrupt);
    }
    for kind in [4, 5, 31, 32, 33, 36, 37, 38, 1000, 1 << 31, u32::MAX] {
        add(&format!("tensor type {kind}"), one(&[256], kind, 0, 1024), Unsupported);
    }
}

fn alignment(out: &mut Vec<(String, Vec<u8>, Expect)>) {
    let with = |kind: u32, value: &[u8], second: u64, pad: usize| {
        let bytes = Bytes::head(3, 2, 1).string(b"general.alignment").u32(kind).raw(value);
        bytes.tensor("t", &[3], F32, 0).tensor("u", &[3], F32, second).pad(pad).zeros(64 + pad).0
    };
    let mut add = |what: &str, bytes: Vec<u8>, expect| out.push((format!("alignment {what}"), bytes, expect));
    for good in [1u32, 2, 4, 8, 16, 32, 64, 1 << 12] {
        let second = 12u64.next_multiple_of(good.into());
        add(&good.to_string(), with(4, &good.to_le_bytes(), second, good as usize), Fine);
        if good != 32 {
            let usual = if second == 32 { 16 } else { 32 };
            add(&format!("{good}, offsets of 32"), with(4, &good.to_le_bytes(), usual, 32), Corrupt);
        }
    }
    for bad in [0u32, 3, 24, 33, u32::MAX, (1 << 31) + 1] {
        add(&bad.to_string(), with(4, &bad.to_le_bytes(), 32, 32), Corrupt);
    }
    add("2^31", with(4, &(1u32 << 31).to_le_bytes(), 1 << 31, 32), Corrupt);
    for (kind, size) in SIZES.iter().enumerate().filter(|(kind, _)| *kind != 4) {
        let mut value = 32u64.to_le_bytes().to_vec();
        value.resize((*size).max(1), 0);
        let value = match kind {
            7 => vec![1],
            8 => [&2u64.to_le_bytes()[..], b"32"].concat(),
            9 => [&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &32u32.to_le_bytes()].concat(),
            _ => value,
        };
        add(&format!("of type {kind}"), with(kind as u32, &value, 32, 32), Corrupt);
    }
}

/// Every rule broken, with what must come of it.
pub fn cases() -> Vec<(String, Vec<u8>, Expect)> {
    let mut out = Vec::new();
    headers(&mut out);
    keys(&mut out);
    tensors(&mut out);
    alignment(&mut out);
    out
}
