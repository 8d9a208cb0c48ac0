//! QSF version 1 files of the format's first converter, run: against the logits of their source checkpoint, computed
//! from its weights in double precision (`crates/checkpoint/tests/data/qsf/make.py`), and converted to GGUF.

mod common;

use common::{difference, write_gguf};
use fonio_conformance::metrics::Comparison;
use fonio_engine::{CacheTypes, Engine, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::Target;
use fonio_text::{TokenType, Tokenizer};
use std::path::{Path, PathBuf};

const TOKENS: [u32; 8] = [64, 12, 200, 7, 299, 33, 64, 150];
const VOCAB: usize = 300;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/checkpoint/tests/data/qsf").join(name)
}

fn source_logits() -> Vec<f32> {
    let bytes = std::fs::read(data("source.logits")).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn logits(model: &Path) -> Vec<f32> {
    let exact = CacheTypes { keys: fonio_codec::list::F32, values: fonio_codec::list::F32 };
    let options = Options { threads: 2, batch: 8, cache: exact, context: Some(8), ..Options::default() };
    let engine = Engine::open(model, options).unwrap();
    let mut session = engine.session().unwrap();
    let mut all = Vec::new();
    session.score(&TOKENS, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

/// Mean KL divergence from the source's logits.
fn divergence(name: &str) -> f64 {
    let (want, got) = (source_logits(), logits(&data(name)));
    assert_eq!(want.len(), got.len());
    let mut comparison = Comparison::default();
    for (want, got) in want.chunks(VOCAB).zip(got.chunks(VOCAB)) {
        comparison.add(want, got, None);
    }
    eprintln!("{name}: {comparison}");
    comparison.mean_kl()
}

/// Weights are rounded by at most 2⁻¹¹ of their size. In each of the two layers and the head that is as much of an output
/// of 64 or 128 products at most, less on average: a few thousandths of the largest logit.
#[test]
fn half_precision_computes_what_the_source_does() {
    let off = difference(&logits(&data("t_fp16.qsf")), &source_logits());
    eprintln!("t_fp16.qsf: off by {off:e} of the largest logit");
    assert!(off < 2e-3, "{off:e}");
}

/// Fewer bits are further from the source, and outliers of their own bring a type nearer. Interleaved pairs instead of
/// halves would be further off than 2 bits.
#[test]
fn quantized_files_are_near_the_source() {
    let [half, four, symmetric, outlier, three, two, two_outlier] =
        ["fp16", "4bit", "4bit_sym", "4bit_outlier", "3bit", "2bit", "2bit_outlier"]
            .map(|name| divergence(&format!("t_{name}.qsf")));
    assert!(half < 1e-6, "{half:e}");
    // Symmetric blocks use 15 of 16 steps, over the larger of both sides.
    for (kl, most) in [(four, 0.05), (outlier, 0.05), (symmetric, 0.1)] {
        assert!(kl < most && half < kl, "{kl:e}");
    }
    assert!(four < three && three < two && two_outlier < two && symmetric < two);
}

/// Compressed and plain files of the same weights are the same model.
#[test]
fn compression_changes_nothing() {
    let (plain, packed) = (logits(&data("c_4bit.qsf")), logits(&data("c_4bit_lz4.qsf")));
    assert!(plain.iter().map(|x| x.to_bits()).eq(packed.iter().map(|x| x.to_bits())));
}

/// Weights as they are, vocabulary and all: what a GGUF file computes of them is the same bits.
#[test]
fn converted_files_compute_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["t_4bit_outlier.qsf", "c_2bit_outlier_lz4.qsf", "t_fp16.qsf"] {
        let (out, source) =
            (dir.path().join(name).with_extension("gguf"), Source::open(&data(name)).unwrap());
        write_gguf(&source, source.complete_metadata().unwrap(), &out, &Target::Keep).unwrap();
        let (want, got) = (logits(&data(name)), logits(&out));
        assert!(want.iter().map(|x| x.to_bits()).eq(got.iter().map(|x| x.to_bits())), "{name}");
        let converted = Source::open(&out).unwrap();
        assert_eq!(converted.tokenizer().unwrap().vocab(), source.tokenizer().unwrap().vocab());
        assert_eq!(converted.architecture().name, "llama");
    }
}

#[test]
fn what_is_assumed_is_said() {
    let source = Source::open(&data("t_4bit.qsf")).unwrap();
    let words = source.assumed().unwrap();
    assert!(words.contains("\"gpt-2\"") && words.contains("2 merges that make no token"), "{words}");
    let tokenizer: Tokenizer = source.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("abc!", true, true).unwrap(), [64, 65, 66, 0]);
    assert_eq!(tokenizer.vocab().token_type(0), TokenType::Normal);
    assert!(!tokenizer.add_bos());
}

/// Places in the header and what is put there.
type Changes<'a> = &'a [(usize, &'a [u8])];

/// A copy with bytes of the header changed and its checksum right.
fn changed(dir: &Path, changes: Changes<'_>) -> Result<Source, String> {
    let mut bytes = std::fs::read(data("t_2bit.qsf")).unwrap();
    for (at, value) in changes {
        bytes[*at..*at + value.len()].copy_from_slice(value);
    }
    let sum = crc(&bytes[..168]).to_le_bytes();
    bytes[168..172].copy_from_slice(&sum);
    let path = dir.join("changed.qsf");
    std::fs::write(&path, bytes).unwrap();
    Source::open(&path).map_err(|e| e.to_string())
}

/// CRC-32 by its definition.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(
            sum ^ u32::from(byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 },
        )
    })
}

#[test]
fn headers_that_are_not_held_exactly_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused: &[(Changes<'_>, &str)] = &[
        (&[(12, &[0])], "GPT-2"),
        (&[(12, &[3])], "Phi"),
        (&[(12, &[6])], "Gemma"),
        (&[(12, &[9])], "DeepSeek"),
        (&[(12, &[128])], "no known architecture"),
        (&[(49, &[0])], "activation"),
        (&[(50, &[0])], "norm_type"),
        (&[(51, &[2])], "pos_enc"),
        (&[(141, &[2])], "ffn_type"),
        (&[(142, &[1])], "attn_type"),
        (&[(144, &[3])], "rope_scaling_type"),
        (&[(152, &[64])], "sliding_window"),
        (&[(52, &f32::NAN.to_le_bytes())], "rope_theta"),
        (&[(12, &[5])], "Qwen without biases"),
        (&[(12, &[8])], "ffn_type"),
    ];
    for (changes, part) in refused {
        let e = changed(dir.path(), changes).map(drop).unwrap_err();
        assert!(e.contains(part), "{part}: {e}");
    }
    let key = |source: &Source, key: &str| source.checkpoint().metadata().get(key).cloned();
    let mistral = changed(dir.path(), &[(12, &[2]), (152, &[64])]).unwrap();
    assert_eq!(key(&mistral, "llama.attention.sliding_window"), Some(64u32.into()));
    let linear = changed(dir.path(), &[(144, &[1]), (148, &4f32.to_le_bytes())]).unwrap();
    assert_eq!(key(&linear, "llama.rope.scaling.factor"), Some(4f32.into()));
    let begins =
        changed(dir.path(), &[(120, &[7, 0, 0, 0]), (124, &[9, 0, 0, 0])]).unwrap().tokenizer().unwrap();
    assert_eq!((begins.bos(), begins.eos(), begins.add_bos()), (Some(7), Some(9), true));
}
