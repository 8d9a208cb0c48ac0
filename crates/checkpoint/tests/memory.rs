//! What hostile files cost: memory that their size justifies, and little time.
//!
//! One test in a process of its own, as it counts what the process allocates.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::EDGES;
use common::cawsf::{LZ4, RAW, Whole, file, pack};
use common::gguf::{Bytes, cases};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Content, Writer};
use fonio_checkpoint::{Checkpoint, Error, fuzzing};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Open = fn(&[u8]) -> Result<Box<dyn Checkpoint>, Error>;

/// Opens, and gives the most memory that was in use meanwhile beyond what was before.
fn cost(what: &str, open: Open, bytes: &[u8]) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let begin = Instant::now();
    drop(open(bytes));
    let (time, peak) = (begin.elapsed(), PEAK.load(Ordering::Relaxed) - before);
    assert!(peak < 64 << 20, "{what}: {peak} bytes for a file of {}", bytes.len());
    // A real file needs a multiple too: a description of 40 bytes becomes a record of 200.
    assert!(peak < 64 * bytes.len() + (1 << 20), "{what}: {peak} bytes for a file of {}", bytes.len());
    assert!(time < Duration::from_secs(2), "{what}: {time:?}");
    peak
}

const SIZE: usize = 1 << 20;

/// Files of 1 MiB that make as much as they can of it.
fn gguf_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let keys = |each: usize, kind: u32, value: &[u8]| {
        let n = (SIZE - 24) / each;
        (0..n as u32).fold(Bytes::head(3, 0, n as u64), |b, i| b.string(&base64(i)).u32(kind).raw(value)).0
    };
    let tensors = (SIZE - 24) / 60;
    let empty = |n: u64| Bytes::head(3, 0, 1).string(b"k").u32(9).u32(8).u64(n).zeros(8 * n as usize).0;
    vec![
        ("keys", keys(17, 0, &[1])),
        ("empty texts", keys(24, 8, &[0; 8])),
        ("empty arrays", keys(28, 9, &[0; 12])),
        ("empty strings", empty((SIZE / 8 - 8) as u64)),
        (
            "tensors",
            (0..tensors as u32)
                .fold(Bytes::head(3, tensors as u64, 0), |b, i| {
                    b.string(&base64(i)).u32(4).raw(&[0; 32]).u32(0).u64(0)
                })
                .0,
        ),
        ("one long string", Bytes::head(3, 0, 1).string(b"k").u32(8).string(&[b'a'; SIZE]).0),
        (
            "not UTF-8 at the end",
            Bytes::head(3, 0, 1).string(b"k").u32(8).string(&[&[b'a'; SIZE][..], b"\xff"].concat()).0,
        ),
    ]
}

/// Four letters for a number.
fn base64(n: u32) -> [u8; 4] {
    std::array::from_fn(|i| b'0' + (n >> (6 * i) & 63) as u8)
}

fn safetensors_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let file = |header: String| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let name = |n: u32| String::from_utf8(base64(n).to_vec()).unwrap().replace('\\', "/");
    let list = |n: usize, each: &dyn Fn(u32) -> String| (0..n as u32).map(each).collect::<Vec<_>>().join(",");
    let tensor = |n| format!(r#""{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, name(n));
    let ones = |n: usize| vec!["1"; n].join(",");
    vec![
        ("tensors", file(format!("{{{}}}", list(SIZE / 60, &tensor)))),
        (
            "metadata",
            file(format!(
                "{{\"__metadata__\":{{{}}}}}",
                list(SIZE / 10, &|n| format!("\"{}\":\"\"", name(n)))
            )),
        ),
        (
            "one shape",
            file(format!(r#"{{"a":{{"dtype":"U8","data_offsets":[0,1],"shape":[{}]}}}}"#, ones(SIZE / 2))),
        ),
        ("one name", file(format!("{{\"{}\":1}}", "a".repeat(SIZE)))),
        ("escaped name", file(format!("{{\"{}\":1}}", "\\u0061".repeat(SIZE / 6)))),
        ("one type", file(format!("{{\"a\":{{\"dtype\":\"{}\"}}}}", "a".repeat(SIZE)))),
        ("spaces", file(format!("{{}}{}", " ".repeat(SIZE)))),
        ("depth", file(format!("{{\"a\":{}", "[".repeat(SIZE)))),
        (
            "many shapes",
            file(format!(
                "{{{}}}",
                list(SIZE / 200, &|n| {
                    format!(r#""{}":{{"dtype":"U8","data_offsets":[0,0],"shape":[0,{}]}}"#, name(n), ones(63))
                })
            )),
        ),
    ]
}

/// A ZIP file with a pickle and a storage of 16 bytes.
fn zip(pickle: &[u8]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("a/data.pkl", pickle), ("a/data/0", &[0; 16])] {
        let (len, header) = ((data.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
        let name_len = [name.len() as u8, 0];
        out.extend(
            [b"PK\x03\x04", &[0; 14][..], &len, &len, &name_len, &[0; 2], name.as_bytes(), data].concat(),
        );
        directory.extend(
            [b"PK\x01\x02", &[0; 16][..], &len, &len, &name_len, &[0; 12], &header, name.as_bytes()].concat(),
        );
    }
    let (offset, len) = ((out.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    out.extend(directory);
    out.extend([&b"PK\x05\x06\0\0\0\0\x02\0\x02\0"[..], &len, &offset, &[0; 2]].concat());
    out
}

fn pytorch_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let fill = |head: &[u8], body: &[u8], tail: &[u8]| {
        zip(&[b"\x80\x02", head, &body.repeat(SIZE / body.len()), tail].concat())
    };
    let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\0\0\0\0K\x04tQq\x00";
    let arguments =
        [&b"0ctorch._utils\n_rebuild_tensor_v2\nq\x010(h\x00K\0K\x04\x85K\x01\x85N}tq\x02"[..], b"0]"]
            .concat();
    let many = [&storage[..], &arguments].concat();
    vec![
        ("nothings", fill(b"", b"N", b".")),
        ("lists in a list", fill(b"]", b"]a", b".")),
        ("lists thrown away", fill(b"", b"]0", b"].")),
        ("dictionaries thrown away", fill(b"", b"}0", b"].")),
        ("tuples of three", fill(b"", b"NNN\x870", b"].")),
        ("remembered", fill(b"N", b"\x94", b".")),
        ("one tensor rebuilt", fill(&many, b"h\x01h\x02Ra", b".")),
        ("one tensor again and again", fill(&[&many[..], b"h\x01h\x02Rq\x03"].concat(), b"0h\x03", b".")),
        ("one key again and again", fill(b"}X\xff\0\0\0", b"N", b".")),
        ("doubling", fill(b"]", b"q\x00]q\x00h\x00ah\x00a", b".")),
        ("texts", fill(b"", b"X\0\0\0\x000", b"].")),
        ("long names", {
            let key = [&b"}X\0\0\x02\0"[..], &[b'k'; 1 << 17], b"q\x000"].concat();
            fill(&key, b"h\x00N", b".")
        }),
        ("long names, one inside the other", {
            let key = [&b"}q\x00X\0\x20\0\0"[..], &[b'k'; 1 << 13], b"q\x01"].concat();
            fill(&key, b"}h\x01", b"N.")
        }),
    ]
}

fn cawsf_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let meta = |text: String| file(&[(1, RAW, text.into_bytes())]);
    let layers = |each: &dyn Fn(u32) -> String| {
        let all: Vec<String> = (0..SIZE as u32 / 60).map(each).collect();
        meta(format!(r#"{{"format_version":1,"layers":[{}]}}"#, all.join(",")))
    };
    let zeros = vec![0; 200 << 20];
    let packed = |how, section: u32| {
        let whole = Whole { checksums: false, ..Whole::new() };
        let mut all = common::cawsf::sections(&whole.bytes());
        all[section as usize - 1] = (section, how, pack(how, &zeros));
        file(&all)
    };
    let config = |text: &str| {
        meta(format!(r#"{{"format_version":1,"layers":[],"hf_config":{}}}"#, text.repeat(SIZE / text.len())))
    };
    vec![
        ("layers", layers(&|n| format!(r#"{{"scope_id":{n},"name":"{n}","shape":[1,1]}}"#))),
        ("depth", config("[")),
        ("spaces", config(" ")),
        (
            "checksums",
            meta(format!(
                r#"{{"format_version":1,"layers":[],"checksum_index":{{"3":{{"algo":"xxh3-64","chunk_size":1048576,"count":1,"hashes_hex":[{}""]}}}}}}"#,
                "\"\",".repeat(SIZE / 3)
            )),
        ),
        ("codebooks as LZ4", packed(LZ4, 2)),
        ("shards as LZ4", packed(LZ4, 3)),
        ("routing as LZ4", packed(LZ4, 4)),
        ("META as LZ4", packed(LZ4, 1)),
    ]
}

/// Stacks of matrices of one value with all parts and the longest name, as they are and packed.
fn stack_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let of = |packing| {
        let dir = common::Dir::new();
        let mut w = Writer::create(&dir.join("x.cawsf"), false, packing).unwrap();
        let book = w.codebook(1, 1, 1, &[0; 2]).unwrap();
        let scope = w.stack(&"s".repeat(127), 4_000, 1, 1).unwrap();
        for matrix in 0..4_000 {
            let mut put = |content| w.shard_of(scope, matrix, content).unwrap();
            put(Content::LowRank { rank: 1, left: &[0; 2], right: &[0; 2] });
            put(Content::Band { n: 1, first: 0, values: &[0; 2] });
            put(Content::Sparse { starts: &[0, 1], columns: &[0], values: &[0; 2] });
            put(Content::Vectors { codebook: book, codes: &[0] });
        }
        std::fs::read(w.finish(&Default::default(), None).unwrap()).unwrap()
    };
    vec![("a stack", of(Packing::Raw)), ("a packed stack", of(Packing::Lz4))]
}

/// A whole file, with an index or a tokenizer of 1 MiB behind it.
fn qsf_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/qsf/4bit.qsf");
    let whole = std::fs::read(corpus).unwrap();
    let with = |at: usize, behind: &[u8], more: &[(usize, u32)]| {
        let mut bytes = [&whole[..], behind].concat();
        bytes[at..at + 8].copy_from_slice(&(whole.len() as u64).to_le_bytes());
        for (at, value) in more {
            bytes[*at..*at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    };
    let size = SIZE as u32;
    let tokenizer = |[tokens, merges, added]: [u32; 3]| {
        let fields = [0, tokens, merges, added, 2 * tokens, 12 * merges, 7 * added, 0];
        let head: Vec<u8> = fields.iter().flat_map(|n: &u32| n.to_le_bytes()).collect();
        let vocabulary = vec![0; 2 * tokens as usize];
        let sum = crc32fast::hash(&vocabulary).to_le_bytes();
        with(88, &[&head, &vocabulary, &sum[..], &vec![0; (12 * merges + 7 * added) as usize]].concat(), &[])
    };
    vec![
        ("layers", with(64, &[0; SIZE], &[(16, size / 48)])),
        ("layers that are not there", with(64, &[0; SIZE], &[(16, u32::MAX)])),
        ("tokens", tokenizer([size / 2, 0, 0])),
        ("merges", tokenizer([1, size / 12, 0])),
        ("added tokens", tokenizer([1, 0, size / 7])),
    ]
}

#[test]
fn hostile_files_cost_little() {
    let mut worst = [0; 5];
    for (what, bytes, _) in cases() {
        worst[0] = cost(&what, fuzzing::gguf, &bytes).max(worst[0]);
    }
    for (what, bytes) in gguf_bombs() {
        worst[0] = cost(what, fuzzing::gguf, &bytes).max(worst[0]);
    }
    for edge in EDGES {
        worst[1] = cost("header", fuzzing::safetensors, &edge.to_le_bytes()).max(worst[1]);
        let offsets = format!(r#"{{"a":{{"dtype":"F32","shape":[{edge}],"data_offsets":[0,{edge}]}}}}"#);
        let file = [&(offsets.len() as u64).to_le_bytes()[..], offsets.as_bytes()].concat();
        worst[1] = cost(&offsets, fuzzing::safetensors, &file).max(worst[1]);
    }
    for (what, bytes) in safetensors_bombs() {
        worst[1] = cost(what, fuzzing::safetensors, &bytes).max(worst[1]);
    }
    for (what, bytes) in pytorch_bombs() {
        worst[2] = cost(what, fuzzing::pytorch, &bytes).max(worst[2]);
    }
    for (what, bytes) in cawsf_bombs().into_iter().chain(stack_bombs()) {
        worst[3] = cost(what, fuzzing::cawsf, &bytes).max(worst[3]);
    }
    for (what, bytes) in qsf_bombs() {
        worst[4] = cost(what, fuzzing::qsf_sealed, &bytes).max(worst[4]);
    }
    let [gguf, safetensors, pytorch, cawsf, qsf] = worst.map(|bytes| bytes >> 10);
    eprintln!(
        "peaks: gguf {gguf} KiB, safetensors {safetensors} KiB, pytorch {pytorch} KiB, cawsf {cawsf} KiB, qsf {qsf} KiB"
    );
}
