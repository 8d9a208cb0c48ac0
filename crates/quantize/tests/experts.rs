//! Mixtures of experts in CAWSF files: what experts' matrices see of a text, and what becomes of them.

use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Kind, V2};
use fonio_checkpoint::{Checkpoint, WriteOptions};
use fonio_engine::{Engine, Observer, Options};
use fonio_model::source::Source;
use fonio_quantize::convert::{self, Plan, Target};
use fonio_quantize::decompose::{Activations, Conversion, DEFAULT_TEXT, Settings, count, run, scopes};
use fonio_simd::Isa;
use std::collections::HashMap;
use std::path::Path;

fn engine(name: &str) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name);
    Engine::open(&folder, Options { threads: 2, ..Options::default() }).unwrap()
}

/// Rows, and the positions that they are of.
type Rows = Vec<(usize, Vec<f32>)>;

/// What the router and the experts of a layer are multiplied with.
#[derive(Default)]
struct Seen {
    router: Vec<f32>,
    experts: HashMap<(String, usize), Rows>,
}

impl Observer for Seen {
    fn input(&mut self, tensor: &str, x: &[f32]) {
        if tensor == "blk.1.ffn_gate_inp.weight" {
            self.router.extend_from_slice(x);
        }
    }
    fn expert_input(
        &mut self,
        tensor: &str,
        expert: usize,
        positions: &mut dyn Iterator<Item = usize>,
        x: &[f32],
    ) {
        let Some(part) = tensor.strip_prefix("blk.1.ffn_") else { return };
        let positions: Vec<usize> = positions.collect();
        let rows = x.chunks(x.len() / positions.len()).map(<[f32]>::to_vec);
        self.experts
            .entry((part.to_owned(), expert))
            .or_default()
            .extend(positions.iter().copied().zip(rows));
    }
}

/// Each expert is shown the rows of its tokens, in batches and one by one.
#[test]
fn experts_inputs_are_their_tokens_rows() {
    for name in ["mixtral", "qwen2moe"] {
        let engine = engine(name);
        let mut session = engine.session().unwrap();
        let tokens: Vec<u32> = (0..12).map(|i| 3 + i * 5 % 40).collect();
        let mut seen = Seen::default();
        session.observe(&tokens[..9], |_, _| (), &mut seen).unwrap();
        tokens[9..].iter().for_each(|t| session.observe(&[*t], |_, _| (), &mut seen).unwrap());
        let dim = seen.router.len() / tokens.len();
        let mut taken = vec![0; tokens.len()];
        for ((part, expert), rows) in &seen.experts {
            let (down, up) = (part.starts_with("down"), ("up_exps.weight".to_owned(), *expert));
            let positions = |rows: &Rows| rows.iter().map(|(at, _)| *at).collect::<Vec<_>>();
            assert_eq!(positions(rows), positions(&seen.experts[&up]), "{name}: {part} {expert}");
            for (at, row) in rows {
                taken[*at] += 1;
                assert!(down || row[..] == seen.router[at * dim..][..dim], "{name}: {part} {expert}: {at}");
            }
        }
        // The same number of experts for each token, with three matrices each.
        assert!(
            taken[0] >= 3 && taken[0] % 3 == 0 && taken.iter().all(|n| *n == taken[0]),
            "{name}: {taken:?}"
        );
    }
}

#[test]
fn an_expert_that_saw_nothing_has_no_importance() {
    let engine = engine("qwen3moe");
    let checkpoint = engine.source().checkpoint();
    let name = "blk.0.ffn_up_exps.weight";
    let at = checkpoint.find(name).unwrap();
    let (experts, cols) = (checkpoint.tensors()[at].shape[0] as usize, checkpoint.tensors()[at].row_len());
    let of = |text: &str| Activations::collect(&engine, &[at], text, 0, &|_, _| (), None).unwrap();
    let (long, short) = (of(DEFAULT_TEXT), of("a b c d e f g h"));
    let known = |seen: &Activations| {
        (0..experts).filter(|e| seen.importance(name, *e).is_some_and(|i| i.len() as u64 == cols)).count()
    };
    assert!(known(&short) > 0 && known(&short) <= known(&long), "{} {}", known(&short), known(&long));
    assert_eq!(long.importance(name, experts), None);
    assert_eq!(long.importance("blk.0.ffn_down_exps.weight", 0), None, "it was not asked for");
    // The mean counts 1, and 1 % of it is the floor.
    let seen = long.importance(name, (0..experts).find(|e| long.importance(name, *e).is_some()).unwrap());
    let mean = seen.unwrap().iter().map(|v| f64::from(*v)).sum::<f64>() / cols as f64;
    assert!((mean - 1.01).abs() < 1e-5, "{mean}");
}

fn conversion() -> Conversion<'static> {
    let settings = Settings {
        rank: 4,
        band: Some(1),
        outlier_q: 0.98,
        pq_m: 4,
        pq_k: 16,
        pq_d: 16,
        ..Settings::default()
    };
    Conversion {
        settings,
        packing: Packing::Zstd,
        max_layers: 0,
        max_elems: 0,
        force: true,
        resume: None,
        threads: 2,
        isa: Isa::detect(),
        progress: &|_, _| (),
        cancel: None,
    }
}

fn logits(file: &Path) -> Vec<f32> {
    let engine = Engine::open(file, Options { threads: 2, ..Options::default() }).unwrap();
    let mut all = Vec::new();
    let tokens: Vec<u32> = (0..12).map(|i| 3 + i * 5 % 40).collect();
    engine.session().unwrap().score(&tokens, |_, row| all.extend_from_slice(row)).unwrap();
    all
}

/// Multiplied term by term, stacks say what their dense matrices say, but for the order of additions: those of experts,
/// and those of heads, which fonio itself leaves whole.
#[test]
fn stacks_compute_what_dense_ones_compute() {
    let scratch = tempfile::tempdir().unwrap();
    let target = Target::named("F32").unwrap();
    for name in ["mixtral", "deepseek3"] {
        let engine = engine(name);
        let (source, checkpoint) = (engine.source(), engine.source().checkpoint().as_ref());
        let metadata = source.complete_metadata().unwrap();
        let plan = Plan::new(checkpoint, source.spec(), metadata, &target, &[]).unwrap();
        let heads = |at: &usize| plan.tensors[*at].name.contains("attn_k_b");
        let mut sums = scopes(&plan, true, &[], 0, 0);
        assert!(!sums.iter().any(heads));
        sums.extend((0..plan.tensors.len()).filter(heads));
        let (out, dense) = (scratch.path().join("m.cawsf"), scratch.path().join("m.gguf"));
        run(checkpoint, &plan, &sums, None, &out, &conversion()).unwrap();
        let made = Source::open(&out).unwrap();
        let of_heads = made.checkpoint().find("blk.0.attn_k_b.weight");
        assert_eq!(of_heads.is_some_and(|at| made.checkpoint().is_sum(at)), name == "deepseek3");
        let metadata = made.complete_metadata().unwrap();
        let plan = Plan::new(made.checkpoint().as_ref(), made.spec(), metadata, &target, &[]).unwrap();
        let settings = convert::Settings {
            threads: 2,
            isa: Isa::detect(),
            write: WriteOptions { force: true, ..WriteOptions::default() },
            progress: &|_, _| (),
            cancel: None,
        };
        let gguf = fonio_checkpoint::list::named("gguf").unwrap();
        convert::run(made.checkpoint().as_ref(), &plan, gguf, &dense, &settings).unwrap();
        let (ours, theirs) = (logits(&out), logits(&dense));
        let far = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        // As of single matrices: roundings of a few dozen additions in each of a few layers.
        assert!(ours.len() == theirs.len() && far <= largest * 1e-4, "{name}: {far} of {largest}");
    }
}

/// The error that is reported is that of what the file says, with and without calibration.
#[test]
fn a_mixture_becomes_sums() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, stacks) in [("mixtral", 6), ("deepseek3", 3), ("gpt-oss-mxfp4", 6)] {
        let engine = engine(name);
        let (source, checkpoint) = (engine.source(), engine.source().checkpoint());
        let target = Target::named("F32").unwrap();
        let metadata = source.complete_metadata().unwrap();
        let plan = Plan::new(checkpoint.as_ref(), source.spec(), metadata, &target, &[]).unwrap();
        let sums = scopes(&plan, true, &[], 0, 0);
        let of: Vec<usize> = sums.iter().map(|at| plan.sources[*at]).collect();
        let seen = Activations::collect(&engine, &of, DEFAULT_TEXT, 0, &|_, _| (), None).unwrap();
        for activations in [Some(&seen), None] {
            let out = scratch.path().join(format!("{name}-{}.cawsf", activations.is_some()));
            let report = run(checkpoint.as_ref(), &plan, &sums, activations, &out, &conversion()).unwrap();
            let file = V2::open(&out).unwrap();
            let all: Vec<usize> = (0..file.tensors().len()).filter(|at| file.is_sum(*at)).collect();
            let stacked = all.iter().filter(|at| !file.matrices(**at).is_empty()).count();
            assert_eq!((all.len(), stacked), (sums.len(), stacks), "{name}");
            assert_eq!(report.sums, count(&plan, &sums));
            let mut energies = [0f64; 2];
            for at in all {
                let info = &file.tensors()[at];
                let from = checkpoint.find(&info.name).unwrap();
                let theirs = &checkpoint.tensors()[from];
                let mut w = vec![0f32; info.len() as usize];
                theirs.dtype.dequantize(Isa::scalar(), &checkpoint.bytes(from).unwrap(), &mut w).unwrap();
                let sum = file.bytes(at).unwrap();
                for (w, sum) in w.iter().zip(sum.as_chunks::<4>().0) {
                    energies[0] += f64::from(w - f32::from_le_bytes(*sum)).powi(2);
                    energies[1] += f64::from(*w).powi(2);
                }
            }
            // The report's comes of what the parts leave one after the other, so a value of it is off by a few
            // roundings of values up to twenty times its own size: 20 · 4 · 2⁻²⁴ of it at most, and twice that squared.
            let error = energies[0] / energies[1];
            assert!((error - report.error).abs() <= error * 1e-5, "{name}: {error} {}", report.error);
            assert!((1e-4..0.5).contains(&error), "{name}: {error}");
            let routed = file.routing().map_or(0, |table| table.entries.len());
            let r = file.shards().iter().filter(|s| s.kind == Kind::R).count();
            assert_eq!(
                routed,
                if activations.is_some() { r } else { 0 },
                "{name}: each R shard has its worth"
            );
        }
    }
}
