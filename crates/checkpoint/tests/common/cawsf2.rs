//! CAWSF files of version 2: whole ones by the writer, and wrong ones by changing what they say.

use super::Dir;
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Content, Entry, Routing, Writer};
use fonio_checkpoint::{Error, Metadata, fuzzing};
use fonio_codec::list;

pub const TRAILER: usize = 144;

pub fn halves(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
}

pub fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "none");
    metadata.insert("scores", vec![0.5f32, 1.0]);
    metadata
}

pub fn routing() -> Routing {
    let entry = |shard, worth| Entry { shard, cost: 0.01, worth, key: vec![0.5, -0.25, 0.0] };
    Routing {
        seed: 3,
        embedding: "norm".into(),
        mean: vec![0.0; 3],
        entries: vec![entry(5, 0.5), entry(6, 0.25)],
    }
}

/// Two whole tensors; a matrix of 9 × 7 with all parts whose last pieces are short; one of 4 × 6 with codes alone.
pub fn whole(packing: Packing, routed: bool) -> Vec<u8> {
    let dir = Dir::new();
    let mut w = Writer::create(&dir.join("x.cawsf"), false, packing).unwrap();
    w.whole("norm", list::F32, &[3]).unwrap();
    w.append(&1f32.to_le_bytes()).unwrap();
    w.append(&[0; 8]).unwrap();
    w.whole("embedding", list::Q8_0, &[2, 64]).unwrap();
    w.append(&[1; 136]).unwrap();
    let book = w.codebook(2, 5, 2, &halves((0..20).map(|i| i as f32 / 8.0 - 1.0))).unwrap();
    let a = w.sum("a.weight", 9, 7).unwrap();
    let (left, right) =
        (halves((0..27).map(|i| (i % 5) as f32 / 4.0)), halves((0..21).map(|i| (i % 7) as f32 / 8.0)));
    w.shard(a, Content::LowRank { rank: 3, left: &left, right: &right }).unwrap();
    let values = halves((0..14).map(|i| i as f32 / 16.0));
    w.shard(a, Content::Band { n: 2, first: -1, values: &values }).unwrap();
    let starts = [0, 2, 2, 3, 3, 3, 3, 3, 3, 4];
    w.shard(
        a,
        Content::Sparse { starts: &starts, columns: &[0, 6, 3, 5], values: &halves([1.0, -2.0, 3.0, 0.5]) },
    )
    .unwrap();
    let codes: Vec<u8> = (0..36).map(|i| i % 5).collect();
    w.shard(a, Content::Vectors { codebook: book, codes: &codes }).unwrap();
    let b = w.sum("b.weight", 4, 6).unwrap();
    w.shard(b, Content::Vectors { codebook: book, codes: &[4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1] }).unwrap();
    let path = w.finish(&metadata(), routed.then(routing).as_ref()).unwrap();
    std::fs::read(path).unwrap()
}

/// A whole tensor, and a stack of three matrices of 4 × 6: L and R; S; D, S and R.
pub fn stacked(packing: Packing) -> Vec<u8> {
    let dir = Dir::new();
    let mut w = Writer::create(&dir.join("x.cawsf"), false, packing).unwrap();
    w.whole("norm", list::F32, &[3]).unwrap();
    w.append(&[0; 12]).unwrap();
    let book = w.codebook(2, 5, 2, &halves((0..20).map(|i| i as f32 / 8.0 - 1.0))).unwrap();
    let scope = w.stack("e.exps", 3, 4, 6).unwrap();
    let factor = |n: u64| halves((0..n).map(|i| (i % 5) as f32 / 4.0));
    let codes: Vec<u8> = (0..12).map(|i| i % 5).collect();
    let codes = Content::Vectors { codebook: book, codes: &codes };
    let single = halves([1.0, -2.0, 3.0]);
    let single = Content::Sparse { starts: &[0, 2, 2, 3, 3], columns: &[0, 5, 3], values: &single };
    w.shard_of(scope, 0, Content::LowRank { rank: 1, left: &factor(4), right: &factor(6) }).unwrap();
    w.shard_of(scope, 0, codes).unwrap();
    w.shard_of(scope, 1, single).unwrap();
    w.shard_of(scope, 2, Content::Band { n: 1, first: 1, values: &factor(4) }).unwrap();
    w.shard_of(scope, 2, single).unwrap();
    w.shard_of(scope, 2, codes).unwrap();
    std::fs::read(w.finish(&metadata(), None).unwrap()).unwrap()
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Where INDEX begins and ends; it must be stored as it is.
pub fn index(bytes: &[u8]) -> std::ops::Range<usize> {
    let at = bytes.len() - TRAILER + 40;
    number(bytes, at)..number(bytes, at) + number(bytes, at + 8)
}

/// Where the entry of a shard begins.
pub fn entry(bytes: &[u8], shard: usize) -> usize {
    let index = index(bytes);
    let count = (1..).find(|n| {
        let at = index.end - 64 * n - 4;
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize == *n
    });
    index.end - 64 * (count.unwrap() - shard)
}

/// Where the bytes of a shard begin.
pub fn stored(bytes: &[u8], shard: usize) -> usize {
    number(bytes, entry(bytes, shard) + 8)
}

/// What is said about a file with `value` at `at`, all checksums made right.
pub fn changed(bytes: &[u8], at: usize, value: &[u8]) -> Result<(), Error> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    let opened = fuzzing::cawsf_sealed(&bytes)?;
    (0..opened.tensors().len()).try_for_each(|at| opened.bytes(at).map(drop))
}

/// Files for the fuzzer's corpus.
pub fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let mut cut = whole(Packing::Raw, true);
    cut.truncate(cut.len() - 1);
    // The second matrix's only shard becomes the third's.
    let mut lacking = stacked(Packing::Raw);
    let at = entry(&lacking, 4) + 2;
    lacking[at] = 2;
    vec![
        ("v2.cawsf", whole(Packing::Raw, true)),
        ("v2-packed.cawsf", whole(Packing::Lz4, false)),
        ("v2-stack.cawsf", stacked(Packing::Raw)),
        ("bad-v2-cut.cawsf", cut),
        ("bad-v2-stack.cawsf", lacking),
    ]
}
