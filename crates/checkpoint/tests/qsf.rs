//! QSF version 1: files of the format's first converter against an independent decoding, and hostile ones.
//!
//! `data/qsf/t_*.qsf` were made from one checkpoint and `c_*.qsf` from another whose weights repeat, so that LZ4 has
//! something to find. `source.crc` has CRC-32s of the first one's weights, rounded to half precision; `make.py` made it.

mod common;

use common::{Dir, EDGES};
use fonio_checkpoint::{Checkpoint, Checksums, Error, Value, fuzzing, open};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const ALL: [&str; 10] = [
    "t_2bit",
    "t_2bit_outlier",
    "t_3bit",
    "t_4bit",
    "t_4bit_outlier",
    "t_4bit_sym",
    "t_fp16",
    "c_4bit",
    "c_4bit_lz4",
    "c_2bit_outlier_lz4",
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/qsf").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(data(&format!("{name}.qsf"))).unwrap()
}

fn u16_at(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap()).into()
}

fn u32_at(b: &[u8], at: usize) -> usize {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize
}

fn u64_at(b: &[u8], at: usize) -> usize {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap()) as usize
}

/// Half precision by its definition.
fn half(bits: usize) -> f32 {
    let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f32);
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// A raw LZ4 block by its definition.
fn unpack_lz4(src: &[u8]) -> Vec<u8> {
    let (mut out, mut i) = (Vec::new(), 0);
    while i < src.len() {
        let token = src[i] as usize;
        i += 1;
        let length = |short: usize, i: &mut usize| {
            let (mut n, mut more) = (short, if short == 15 { 255 } else { 0 });
            while more == 255 {
                more = src[*i] as usize;
                n += more;
                *i += 1;
            }
            n
        };
        let n = length(token >> 4, &mut i);
        out.extend_from_slice(&src[i..i + n]);
        i += n;
        if i == src.len() {
            break;
        }
        let back = u16_at(src, i);
        i += 2;
        for _ in 0..length(token & 15, &mut i) + 4 {
            out.push(out[out.len() - back]);
        }
    }
    out
}

/// The values of a tensor of `n` values, bit by bit, and how many bytes they took.
fn decode(quant: usize, n: usize, block: usize, data: &[u8]) -> (Vec<f32>, usize) {
    let bits = match quant {
        0 | 9 => 2,
        2 => 3,
        3 | 4 | 10 => 4,
        7 => return (data.chunks(2).take(n).map(|b| half(u16_at(b, 0))).collect(), 2 * n),
        _ => panic!("type {quant}"),
    };
    let mut at = 0;
    let mut outliers = Vec::new();
    if quant >= 9 {
        let count = u32_at(data, 0);
        outliers.extend((0..count).map(|i| (u32_at(data, 4 + 6 * i), half(u16_at(data, 8 + 6 * i)))));
        at = 4 + 6 * count;
    }
    let mut values = Vec::new();
    while values.len() < n {
        let (scale, min) = (half(u16_at(data, at)), half(u16_at(data, at + 2)));
        for i in 0..block {
            let bit =
                |k: usize| usize::from(data[at + 4 + (i * bits + k) / 8] >> ((i * bits + k) % 8) & 1) << k;
            let q: usize = (0..bits).map(bit).sum();
            values.push(if quant == 4 { scale * (q as f32 - 8.0) } else { scale * q as f32 + min });
        }
        at += 4 + block * bits / 8;
    }
    values.truncate(n);
    for (index, value) in outliers {
        values[index] = value;
    }
    (values, at)
}

/// Every tensor of a file, straight from the format's description.
fn expected(b: &[u8]) -> HashMap<String, (Vec<u64>, Vec<f32>)> {
    let mut all = HashMap::new();
    let (width, vocab, block) = (u32_at(b, 20), u32_at(b, 32), u32_at(b, 60));
    let (index, embedding, last) = (u64_at(b, 64), u64_at(b, 72), u64_at(b, 80));
    let names = ["q", "k", "v", "o", "gate", "up", "down", "attn_norm", "", "ffn_norm"];
    for i in 0..u32_at(b, 16) {
        let entry = &b[index + 48 * i..];
        let stored = &b[u64_at(entry, 0)..][..u32_at(entry, 8)];
        let layer = if entry[17] == 0 { stored.to_vec() } else { unpack_lz4(stored) };
        assert_eq!(layer.len(), u32_at(entry, 12));
        let mut at = 0;
        for _ in 0..u16_at(entry, 18) {
            let head = &layer[at..];
            let (id, rows, cols, size) =
                (u16_at(head, 0), u32_at(head, 4), u32_at(head, 8), u32_at(head, 12));
            let (values, used) = decode(head[2].into(), rows * cols, block, &head[24..]);
            assert_eq!(used, size);
            let shape = if id == 7 || id == 9 { vec![cols as u64] } else { vec![rows as u64, cols as u64] };
            let name = names.get(id).copied().unwrap_or("experts.0.up");
            all.insert(format!("layers.{i}.{name}.weight"), (shape, values));
            at += 24 + size;
        }
        assert_eq!(at, layer.len());
    }
    let shape = vec![vocab as u64, width as u64];
    let head = &b[embedding..];
    let stored = &head[32..];
    let plain = if head[16] == 0 { stored.to_vec() } else { unpack_lz4(&stored[..u32_at(head, 4)]) };
    all.insert(
        "embedding.weight".into(),
        (shape.clone(), decode(u32_at(head, 0), vocab * width, block, &plain).0),
    );
    let norm = decode(7, width, block, &b[last + 16..]).0;
    all.insert("final_norm.weight".into(), (vec![width as u64], norm));
    let weights = decode(b[48].into(), vocab * width, block, &b[last + 16 + u32_at(b, last + 4)..]).0;
    all.insert("head.weight".into(), (shape, weights));
    all
}

fn values(file: &dyn Checkpoint, at: usize) -> Vec<f32> {
    let bytes = file.bytes(at).unwrap();
    match file.tensors()[at].dtype.name() {
        "F16" => bytes.chunks(2).map(|b| half(u16_at(b, 0))).collect(),
        "F32" => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn files_of_the_converter_are_read_exactly() {
    for name in ALL {
        let (file, mut want) = (open(&data(&format!("{name}.qsf"))).unwrap(), expected(&file(name)));
        assert_eq!((file.container(), file.tensors().len()), ("qsf", 21), "{name}");
        for (at, info) in file.tensors().iter().enumerate() {
            let (shape, expected) = want.remove(&info.name).unwrap();
            assert_eq!(info.shape, shape, "{name} {}", info.name);
            assert_eq!(info.dtype.name() == "F16", name == "t_fp16" || info.name.contains("norm"));
            let got = values(file.as_ref(), at);
            let same = got.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()));
            assert!(same && got.len() == expected.len(), "{name} {}", info.name);
        }
        assert!(want.is_empty());
        // The header, the vocabulary, two layers with two sums each, the embedding, the final section.
        assert_eq!(file.verify_checksums().unwrap(), Checksums::Valid(8), "{name}");
    }
}

/// Files of `fuzz/corpus/qsf/make.py`: blocks of 32 that cross rows and end behind a tensor, an expert, a compressed
/// embedding with outliers.
#[test]
fn blocks_run_over_whole_tensors() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/qsf");
    for name in ["4bit.qsf", "3bit-two-layers.qsf", "2bit-outlier-lz4.qsf"] {
        let path = corpus.join(name);
        let (file, want) = (open(&path).unwrap(), expected(&std::fs::read(&path).unwrap()));
        assert_eq!(file.tensors().len(), want.len());
        for (at, info) in file.tensors().iter().enumerate() {
            assert_eq!(
                (info.shape.clone(), values(file.as_ref(), at)),
                want[&info.name],
                "{name} {}",
                info.name
            );
        }
        assert!(want["layers.0.q.weight"].0 == [5, 16] && want.contains_key("layers.0.experts.0.up.weight"));
    }
}

#[test]
fn pieces_are_parts_of_the_whole() {
    for name in ["t_3bit", "t_4bit_outlier", "c_2bit_outlier_lz4", "t_fp16"] {
        let file = open(&data(&format!("{name}.qsf"))).unwrap();
        for (at, info) in file.tensors().iter().enumerate() {
            let whole = file.bytes(at).unwrap();
            for (from, len) in [(0, 1), (3, 7), (250, 520), (255, 2), (whole.len() - 5, 5), (17, 0)] {
                let end = (from + len).min(whole.len());
                let from = from.min(end);
                let mut piece = vec![0; end - from];
                file.read(at, from as u64, &mut piece).unwrap();
                assert_eq!(piece, whole[from..end], "{name} {} {from} {len}", info.name);
            }
            let mut beyond = [0; 2];
            let refused = file.read(at, info.nbytes - 1, &mut beyond);
            assert!(matches!(refused, Err(Error::Refused { .. })));
        }
        assert!(matches!(file.bytes(99), Err(Error::Refused { .. })));
    }
}

/// Half precision is the source checkpoint, rounded.
#[test]
fn half_precision_is_the_source() {
    let sums = std::fs::read_to_string(data("source.crc")).unwrap();
    let file = open(&data("t_fp16.qsf")).unwrap();
    let mut n = 0;
    for line in sums.lines() {
        let (name, sum) = line.split_once(' ').unwrap();
        let bytes = file.bytes(file.find(name).unwrap()).unwrap();
        assert_eq!(format!("{:08x}", crc32fast::hash(&bytes)), sum, "{name}");
        n += 1;
    }
    assert_eq!(n, file.tensors().len());
}

#[test]
fn header_and_tokenizer_are_metadata() {
    let file = open(&data("t_4bit.qsf")).unwrap();
    let number = |key: &str| file.metadata().get(&format!("qsf.{key}")).and_then(Value::as_u64);
    let keys =
        ["version", "architecture", "num_layers", "hidden_dim", "num_heads", "num_kv_heads", "vocab_size"];
    assert_eq!(keys.map(|key| number(key).unwrap()), [1, 1, 2, 64, 4, 2, 300]);
    let keys = ["max_seq_len", "intermediate_dim", "head_dim", "quant_type", "block_size", "ffn_type"];
    assert_eq!(keys.map(|key| number(key).unwrap()), [128, 128, 16, 3, 64, 1]);
    assert_eq!(number("bos"), None);
    assert_eq!(file.metadata().get("qsf.rope_theta"), Some(&Value::F32(10_000.0)));
    let tokens = file.metadata().get("qsf.tokenizer.tokens").and_then(Value::as_strings).unwrap();
    assert_eq!((tokens.len(), tokens.get(0), tokens.get(299)), (300, Some("!"), Some("tok299")));
    let merges = file.metadata().get("qsf.tokenizer.merges");
    assert_eq!(merges, Some(&vec![64u32, 65, 0, 0, 66, 0].into()));
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Makes the header's checksum right again, so that what is behind it is reached.
fn seal(bytes: &mut [u8]) {
    let sum = crc32fast::hash(&bytes[..168]).to_le_bytes();
    put(bytes, 168, &sum);
}

/// The same, and the file's size.
fn seal_all(bytes: &mut [u8]) {
    let len = (bytes.len() as u64).to_le_bytes();
    put(bytes, 160, &len);
    seal(bytes);
}

fn error(bytes: &[u8]) -> Error {
    match fuzzing::qsf(bytes) {
        Err(e) => e,
        Ok(file) => {
            let all = (0..file.tensors().len()).find_map(|at| file.bytes(at).err());
            all.or_else(|| file.verify_checksums().err()).expect("nothing is wrong")
        }
    }
}

fn corrupt(what: &str, bytes: &[u8], part: &str) {
    let e = error(bytes);
    assert!(matches!(e, Error::Corrupt { .. }) && e.to_string().contains(part), "{what}: {e}");
}

#[test]
fn truncated_files_are_corrupt() {
    let whole = file("t_4bit");
    let bounds = [
        0, 3, 4, 8, 100, 255, 256, 300, 384, 416, 11_264, 11_300, 13_248, 13_260, 34_496, 55_744, 55_760,
        66_687,
    ];
    for end in bounds {
        let mut cut = whole[..end].to_vec();
        assert!(matches!(error(&cut), Error::Corrupt { .. }), "{end}");
        // The header may lie about the size as well.
        if end >= 256 {
            seal_all(&mut cut);
            assert!(matches!(error(&cut), Error::Corrupt { .. }), "{end} sealed");
        }
    }
    let longer = [&whole[..], &[0]].concat();
    corrupt("longer", &longer, "the file should have 66688 bytes");
}

#[test]
fn wrong_checksums_say_where() {
    for (at, part) in [
        (20, "header: the checksum"),
        (600, "embedding"),
        (11_300, "vocabulary"),
        (13_248 + 5000, "layer 0"),
        (34_496 + 21_000, "layer 1"),
        (55_744 + 500, "final section"),
    ] {
        let mut bytes = file("t_4bit");
        bytes[at] ^= 1;
        corrupt(part, &bytes, part);
    }
    let mut bytes = file("c_4bit_lz4");
    bytes[2624 + 700] ^= 1;
    corrupt("compressed", &bytes, "layer 0: the checksum of its bytes");
    let mut bytes = file("c_4bit_lz4");
    bytes[256 + 24] ^= 1;
    corrupt("decompressed", &bytes, "layer 0: the checksum of what it holds");
}

/// Every number of every header with the values that break arithmetic: an error or a file that reads, never more.
#[test]
fn numbers_that_cannot_be_are_errors() {
    for name in ["t_2bit_outlier", "c_2bit_outlier_lz4"] {
        let whole = file(name);
        let (embedding, tokenizer, last) = (u64_at(&whole, 72), u64_at(&whole, 88), u64_at(&whole, 80));
        let layer = u64_at(&whole, 256);
        let places =
            (4..256).chain(256..304).chain(embedding..embedding + 40).chain(tokenizer..tokenizer + 36);
        let places = places.chain(last..last + 24).chain(layer..layer + 40);
        let changes = places.flat_map(|at| {
            let wide = EDGES.iter().flat_map(move |edge| [(at, *edge, 4), (at, *edge, 8)]);
            wide.filter(move |_| at % 4 == 0).chain([(at, 0xff, 1)])
        });
        for (at, edge, width) in changes {
            let mut bytes = whole.clone();
            put(&mut bytes, at, &edge.to_le_bytes()[..width]);
            if !(160..172).contains(&at) {
                seal(&mut bytes);
            }
            if let Err(e) = fuzzing::qsf(&bytes) {
                let typed =
                    matches!(e, Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Limit { .. });
                assert!(typed, "{name} {at} {edge}: {e}");
            }
        }
    }
}

#[test]
fn sections_have_places_of_their_own() {
    let whole = file("t_4bit");
    let layer = |at: u64| {
        let mut bytes = whole.clone();
        put(&mut bytes, 256 + 48, &at.to_le_bytes());
        bytes
    };
    corrupt("layer 1 is layer 0", &layer(13_248), "overlaps the layer");
    corrupt("layer 1 is the header", &layer(0), "overlaps the header");
    corrupt("layer 1 is behind the end", &layer(66_688 - 100), "past the end");
    corrupt("layer 1 is nowhere", &layer(u64::MAX), "past the end");
    for at in [64, 72, 80, 88] {
        for to in [0u64, 128, 256, 66_680, 1 << 40, u64::MAX] {
            if (at, to) == (64, 256) || (at, to) == (88, 0) {
                continue;
            }
            let mut bytes = whole.clone();
            put(&mut bytes, at, &to.to_le_bytes());
            seal(&mut bytes);
            assert!(matches!(error(&bytes), Error::Corrupt { .. } | Error::Unsupported { .. }), "{at} {to}");
        }
    }
}

/// Replaces what layer 0 stores, with right checksums but for that of its content.
fn with_layer(stored: &[u8], len: u32) -> Vec<u8> {
    let mut bytes = file("c_4bit_lz4");
    let at = bytes.len() as u64;
    bytes.extend_from_slice(stored);
    put(&mut bytes, 256, &at.to_le_bytes());
    put(&mut bytes, 264, &(stored.len() as u32).to_le_bytes());
    put(&mut bytes, 268, &len.to_le_bytes());
    put(&mut bytes, 276, &crc32fast::hash(stored).to_le_bytes());
    seal_all(&mut bytes);
    bytes
}

#[test]
fn compressed_layers_hold_what_they_say() {
    let whole = file("c_4bit_lz4");
    let stored = &whole[2624..2624 + 1460];
    assert!(fuzzing::qsf(&with_layer(stored, 21_208)).is_ok());
    corrupt("too little", &with_layer(stored, 21_209), "layer 0: it holds 21208 bytes, not 21209");
    corrupt("too much", &with_layer(stored, 21_207), "layer 0");
    corrupt("cut", &with_layer(&stored[..1000], 21_208), "layer 0");
    corrupt("garbage", &with_layer(&[0xa5; 1460], 21_208), "layer 0");
    corrupt("nothing", &with_layer(&[], 21_208), "layer 0: 0 bytes cannot hold 21208");
    // Sizes that LZ4 cannot reach are refused before there is memory for them.
    corrupt("a bomb", &with_layer(stored, u32::MAX), "layer 0: 1460 bytes cannot hold 4294967295");
    // Zeros as far as LZ4 goes: right as a block, but no tensors.
    let zeros = [&[0x1f, 0, 1, 0][..], &[255; 1000], &[0, 0x50, 0, 0, 0, 0, 0]].concat();
    let len = unpack_lz4(&zeros).len() as u32;
    corrupt("zeros", &with_layer(&zeros, len), "layer 0");
}

#[test]
fn what_is_not_read_is_named() {
    let cases: [(usize, &[u8], &str); 6] = [
        (4, &[3], "QSF version 3"),
        (104, &[1], "calibration"),
        (256 + 17, &[3], "zstd"),
        (256 + 17, &[9], "compression 9"),
        (384, &[6], "type 6 (8-bit)"),
        (172, &[2], "byte order 2"),
    ];
    for (at, value, part) in cases {
        let mut bytes = file("t_4bit");
        put(&mut bytes, at, value);
        seal(&mut bytes);
        let e = error(&bytes);
        assert!(matches!(e, Error::Unsupported { .. }) && e.to_string().contains(part), "{part}: {e}");
    }
    let mut bytes = file("t_4bit");
    put(&mut bytes, 60, &[48]);
    seal(&mut bytes);
    corrupt("block size", &bytes, "blocks of 48 values");
}

/// By its first bytes under any name, and alone in a folder.
#[test]
fn files_are_found() {
    let dir = Dir::new();
    assert_eq!(open(&dir.write("x.bin", &file("t_2bit"))).unwrap().container(), "qsf");
    let dir = Dir::new();
    dir.write("x.qsf", &file("t_2bit"));
    assert_eq!(open(dir.path()).unwrap().container(), "qsf");
}
