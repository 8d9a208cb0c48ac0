//! CAWSF files put together by hand, right and wrong.

use std::io::Write;

/// Section kinds and packings as the table of contents has them.
pub const RAW: u32 = 0;
pub const ZSTD: u32 = 1;
pub const LZ4: u32 = 2;

pub fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub fn pack(how: u32, bytes: &[u8]) -> Vec<u8> {
    match how {
        ZSTD => zstd(bytes),
        LZ4 => lz4(bytes),
        _ => bytes.to_vec(),
    }
}

/// Header, table and sections (kind, flags, stored bytes), each at a multiple of 4,096.
pub fn file(sections: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let mut out =
        [&b"CAWSF\0\0\0"[..], &1u32.to_le_bytes(), &(sections.len() as u32).to_le_bytes(), &[0; 4]].concat();
    let mut at = (out.len() + 24 * sections.len()).next_multiple_of(4096);
    for (kind, flags, stored) in sections {
        out.extend(kind.to_le_bytes());
        out.extend((at as u64).to_le_bytes());
        out.extend((stored.len() as u64).to_le_bytes());
        out.extend(flags.to_le_bytes());
        at = (at + stored.len()).next_multiple_of(4096);
    }
    for (.., stored) in sections {
        out.resize(out.len().next_multiple_of(4096), 0);
        out.extend(stored);
    }
    out
}

/// The stored bytes of each section, in the table's order.
pub fn sections(file: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    (0..u32_at(12) as usize)
        .map(|i| 20 + 24 * i)
        .map(|e| (u32_at(e), u32_at(e + 20), file[u64_at(e + 4)..][..u64_at(e + 12)].to_vec()))
        .collect()
}

pub fn sums(bytes: &[u8]) -> String {
    let sums: Vec<String> = bytes
        .chunks(1 << 20)
        .map(|chunk| format!("\"{:016x}\"", twox_hash::XxHash3_64::oneshot(chunk)))
        .collect();
    let (count, sums) = (sums.len(), sums.join(","));
    format!(r#"{{"algo":"xxh3-64","chunk_size":1048576,"count":{count},"hashes_hex":[{sums}]}}"#)
}

/// A shard: header and payload, packed in itself as `how` says.
pub fn shard(kind: u8, scope: u16, how: u32, payload: &[u8]) -> Vec<u8> {
    let stored = pack(how, payload);
    let (size, len) = (payload.len() as u32, stored.len() as u32);
    let header = [&[kind][..], &scope.to_le_bytes(), &[how as u8], &size.to_le_bytes(), &len.to_le_bytes()];
    [&header.concat()[..], &stored].concat()
}

fn head(rows: u32, cols: u32) -> Vec<u8> {
    [rows.to_le_bytes(), cols.to_le_bytes()].concat()
}

pub fn dense(rows: u32, cols: u32, value: impl Fn(u32) -> f32) -> Vec<u8> {
    let values = (0..rows * cols).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes());
    head(rows, cols).into_iter().chain(values).collect()
}

pub fn sparse(rows: u32, cols: u32, entries: &[(i32, i32, f32)]) -> Vec<u8> {
    let places = entries.iter().flat_map(|(r, c, _)| [r.to_le_bytes(), c.to_le_bytes()].concat());
    let values = entries.iter().flat_map(|(.., v)| v.to_le_bytes());
    let n = (entries.len() as u32).to_le_bytes();
    head(rows, cols).into_iter().chain(n).chain(places).chain(values).collect()
}

/// d, m and k; the codebook's id or its values; codes.
pub fn quantized(
    rows: u32,
    cols: u32,
    [d, m, k]: [u16; 3],
    book: Result<u16, &[u8]>,
    codes: &[u8],
) -> Vec<u8> {
    let n = (codes.len() / usize::from(m)) as u32;
    let shape = [d, m, k].into_iter().flat_map(u16::to_le_bytes);
    let book = book.map_or_else(<[u8]>::to_vec, |id| id.to_le_bytes().to_vec());
    head(rows, cols)
        .into_iter()
        .chain(shape)
        .chain(n.to_le_bytes())
        .chain(book)
        .chain(codes.to_vec())
        .collect()
}

pub fn table([d, _, k]: [u16; 3]) -> Vec<u8> {
    let len = u32::from(d) * u32::from(k);
    (0..len).flat_map(|i| (i as f32 / 64.0 - 0.3).to_le_bytes()).collect()
}

pub fn codebooks(all: &[(u16, [u16; 3])]) -> Vec<u8> {
    let mut out = (all.len() as u16).to_le_bytes().to_vec();
    for &(id, shape) in all {
        let values = table(shape);
        [id].iter().chain(&shape).for_each(|v| out.extend(v.to_le_bytes()));
        out.extend((values.len() as u32).to_le_bytes());
        out.extend(values);
    }
    out
}

pub fn routing(costs: &[f32]) -> Vec<u8> {
    let mut out = [&4u16.to_le_bytes()[..], &(costs.len() as u32).to_le_bytes()].concat();
    (0..costs.len() as u32).for_each(|id| out.extend(id.to_le_bytes()));
    costs.iter().for_each(|cost| out.extend(cost.to_le_bytes()));
    (0..4 * costs.len()).for_each(|i| out.extend((0.5 - (i % 3) as f32 / 4.0).to_le_bytes()));
    out
}

/// A file of these scopes (number, name, rows, columns) with everything in its place.
pub struct Whole {
    pub scopes: Vec<(u16, &'static str, u64, u64)>,
    pub codebooks: Vec<u8>,
    pub bank: Vec<u8>,
    pub routing: Vec<u8>,
    pub packings: [u32; 4],
    pub checksums: bool,
}

impl Whole {
    /// Two matrices: 3 × 5 of all kinds whose vectors run across rows and end short, 2 × 4 with a codebook of its
    /// own and shards that are packed by themselves.
    pub fn new() -> Whole {
        let (shared, own) = ([4, 2, 3], [4, 1, 2]);
        let bank = [
            shard(3, 7, 0, &dense(3, 5, |i| if i % 6 == 0 { 1.5 } else { 0.0 })),
            shard(0, 7, 0, &dense(3, 5, |i| i as f32 / 16.0)),
            shard(1, 7, 0, &quantized(3, 5, shared, Ok(9), &[0, 2, 1, 1, 2, 0])),
            shard(2, 7, 0, &sparse(3, 5, &[(0, 1, 0.25), (2, 4, -3.0), (1, 0, 1e-3)])),
            shard(1, 1, LZ4, &quantized(2, 4, own, Err(&table(own)), &[1, 0])),
            shard(2, 1, ZSTD, &sparse(2, 4, &[(1, 3, 8.0)])),
        ]
        .concat();
        Whole {
            scopes: vec![(7, "a.weight", 3, 5), (1, "b.weight", 2, 4)],
            codebooks: codebooks(&[(9, shared)]),
            bank,
            routing: routing(&[0.001; 6]),
            packings: [RAW, ZSTD, LZ4, RAW],
            checksums: true,
        }
    }

    pub fn meta(&self) -> String {
        let layers: Vec<String> = self
            .scopes
            .iter()
            .map(|(id, name, rows, cols)| {
                format!(r#"{{"scope_id":{id},"name":"{name}","shape":[{rows},{cols}]}}"#)
            })
            .collect();
        let (layers, [b, c, d]) =
            (layers.join(","), [&self.codebooks, &self.bank, &self.routing].map(|s| sums(s)));
        let index = if self.checksums { format!(r#""2":{b},"3":{c},"4":{d}"#) } else { String::new() };
        format!(
            r#"{{"format_version":1,"author":"x","tokenizer":"local","hf_config":{{"a": 1}},"layers":[{layers}],"checksum_index":{{{index}}}}}"#
        )
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.with_meta(&self.meta())
    }

    pub fn with_meta(&self, meta: &str) -> Vec<u8> {
        let all = [meta.as_bytes(), &self.codebooks, &self.bank, &self.routing];
        let packed = (1..).zip(self.packings).zip(all);
        file(&packed.map(|((kind, how), bytes)| (kind, how, pack(how, bytes))).collect::<Vec<_>>())
    }
}

/// Files for the fuzzer's corpus.
pub fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let bare = Whole { checksums: false, packings: [RAW; 4], ..Whole::new() };
    let packed = Whole { packings: [LZ4, LZ4, ZSTD, LZ4], ..Whole::new() };
    let wrong = Whole { bank: [Whole::new().bank, vec![0]].concat(), ..Whole::new() };
    vec![
        ("as-written.cawsf", Whole::new().bytes()),
        ("bare.cawsf", bare.bytes()),
        ("packed.cawsf", packed.bytes()),
        ("bad-bank.cawsf", wrong.bytes()),
    ]
}
