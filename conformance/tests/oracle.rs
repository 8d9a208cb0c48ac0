//! The llama.cpp oracle itself: that what the other tests rely on is so.

use fonio_conformance::compare;
use fonio_conformance::home;
use fonio_conformance::llamacpp::{Context, ContextOptions, Model, Oracle, QuantizeOptions};
use fonio_conformance::metrics::Comparison;

fn smollm2(oracle: &'static Oracle) -> Option<Model> {
    let path = home::need(home::SMOLLM2, home::model(home::SMOLLM2))?;
    Some(Model::load(oracle, &path).unwrap())
}

const PROMPT: &str = "The capital of France is";

#[test]
fn tokens_round_trip() {
    let Some(model) = Oracle::need().and_then(smollm2) else { return };
    assert_eq!(model.vocab_size(), 49_152);
    assert_eq!(model.trained_context(), 8192);
    let text = "Zażółć gęślą jaźń, 12 % of\n\tfonio's \u{1F33E} grains.";
    let tokens = model.tokenize(text, false, false).unwrap();
    assert_eq!(model.detokenize(&tokens, false).unwrap(), text.as_bytes());
    // A control token is one token when it is parsed, and text when it is not.
    assert_eq!(model.tokenize("<|im_end|>", false, true).unwrap().len(), 1);
    assert!(model.tokenize("<|im_end|>", false, false).unwrap().len() > 1);
    assert!(model.detokenize(&[u32::MAX], false).is_err());
}

#[test]
fn logits_do_not_depend_on_the_way() {
    let Some(model) = Oracle::need().and_then(smollm2) else { return };
    let tokens = model.tokenize(PROMPT, true, false).unwrap();
    let rows = |n_batch| {
        let mut context = Context::new(&model, &ContextOptions { n_batch, ..Default::default() }).unwrap();
        let mut rows: Vec<Vec<f32>> = Vec::new();
        context
            .logits(&tokens, |at, row| {
                assert_eq!(at, rows.len());
                rows.push(row.to_vec());
            })
            .unwrap();
        context.clear();
        assert_eq!(context.extend_to_last(&tokens).unwrap(), rows.last().unwrap(), "the last row alone");
        rows
    };
    let (whole, single) = (rows(128), rows(1));
    assert_eq!(whole.len(), tokens.len());
    let mut apart = Comparison::default();
    whole.iter().zip(&single).for_each(|(a, b)| apart.add(a, b, None));
    // The same dot products in another order of f32 sums.
    assert!(apart.mean_kl() < 1e-6 && apart.same_top() == 1.0, "{apart}");
}

#[test]
fn greedy_is_stable_and_sensible() {
    let Some(model) = Oracle::need().and_then(smollm2) else { return };
    let tokens = model.tokenize(PROMPT, true, false).unwrap();
    let run = |threads| {
        let mut context = Context::new(&model, &ContextOptions { threads, ..Default::default() }).unwrap();
        context.greedy(&tokens, 16).unwrap()
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one, two);
    let ids: Vec<u32> = one.iter().map(|s| s.0).collect();
    let mut context = Context::new(&model, &ContextOptions::default()).unwrap();
    assert_eq!(compare::follow(&mut context, &tokens, &ids).unwrap(), ids);
    let text = String::from_utf8(model.detokenize(&ids, false).unwrap()).unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert!(one.iter().all(|&(_, margin)| margin >= 0.0));
}

#[test]
fn failures_have_reasons() {
    let Some(oracle) = Oracle::need() else { return };
    let missing = Model::load(oracle, std::path::Path::new("/nonexistent.gguf")).err().unwrap();
    assert!(missing.to_string().contains("nonexistent"), "{missing}");
    assert!(oracle.quantize_chunk(2, &[0.0; 33], 33, None).is_err());
    assert!(oracle.quantize_chunk(16, &[0.0; 256], 256, None).is_err(), "IQ2_XXS needs an importance matrix");
    assert!(oracle.quantize_chunk(15, &[0.0; 256], 256, None).is_err(), "Q8_K is no file type");
    assert!(oracle.quantize_chunk(1000, &[0.0; 256], 256, None).is_err());
    assert!(oracle.dequantize(2, &[0; 17], 32).is_err());
}

#[test]
fn blocks_round_trip() {
    let Some(oracle) = Oracle::need() else { return };
    let rows: Vec<f32> = (0..1024).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    // Step of each type as a fraction of the range: 8 bits, then 4, then 2; an f16 has 11 significant bits.
    for (ggml_type, bound) in
        [(0, 0.0), (1, 1.0 / 2048.0), (8, 1.0 / 254.0), (2, 1.0 / 8.0), (12, 0.15), (10, 0.6), (39, 0.3)]
    {
        let bytes = oracle.quantize_chunk(ggml_type, &rows, 512, None).unwrap();
        assert_eq!(Some(bytes.len()), oracle.row_bytes(ggml_type, 1024));
        let back = oracle.dequantize(ggml_type, &bytes, 1024).unwrap();
        let worst = rows.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= bound, "type {ggml_type}: {worst}");
        // Rows are quantized alone.
        assert_eq!(
            bytes[..bytes.len() / 2],
            oracle.quantize_chunk(ggml_type, &rows[..512], 512, None).unwrap()
        );
    }
}

/// The measures see a coarser model: the bounds that fonio is held to are not met by everything.
#[test]
fn a_coarser_model_is_told_apart() {
    let Some(oracle) = Oracle::need() else { return };
    let Some(model) = smollm2(oracle) else { return };
    let source = home::models().join(home::SMOLLM2);
    let target = std::env::temp_dir().join(format!("fonio-oracle-{}.gguf", std::process::id()));
    oracle.quantize_model(&source, &target, &QuantizeOptions::new(2)).unwrap();
    let coarse = Model::load(oracle, &target);
    std::fs::remove_file(&target).unwrap();
    let coarse = coarse.unwrap();
    let tokens = model.tokenize(include_str!("../text/prompts.txt"), true, false).unwrap();
    let options = ContextOptions::default();
    let (mut a, mut b) = (Context::new(&model, &options).unwrap(), Context::new(&coarse, &options).unwrap());
    let apart = compare::windows(&mut a, &mut b, &tokens, (tokens.len().min(256), 1), None);
    assert!(apart.mean_kl() > 0.004 && apart.same_top() < 0.97, "{apart}");
}
