//! Mixtures of experts in CAWSF files: what experts' matrices see of a text, and what becomes of them.

use fonio_checkpoint::Checkpoint;
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Kind, V2};
use fonio_engine::{Engine, Observer, Options};
use fonio_quantize::convert::{Plan, Target};
use fonio_quantize::decompose::{Activations, Conversion, DEFAULT_TEXT, Settings, count, run, scopes};
use fonio_simd::Isa;
use std::collections::HashMap;
use std::path::Path;

fn engine(name: &str) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name);
    Engine::open(&folder, Options { threads: 2, ..Options::default() }).unwrap()
}

/// What the router and the experts of a layer are multiplied with.
#[derive(Default)]
struct Seen {
    router: Vec<f32>,
    experts: HashMap<(String, usize), Vec<(usize, Vec<f32>)>>,
}

impl Observer for Seen {
    fn input(&mut self, tensor: &str, x: &[f32]) {
        if tensor == "blk.1.ffn_gate_inp.weight" {
            self.router.extend_from_slice(x);
        }
    }
    fn expert_input(&mut self, tensor: &str, expert: usize, positions: &[usize], x: &[f32]) {
        let Some(part) = tensor.strip_prefix("blk.1.ffn_") else { return };
        let rows = positions.iter().copied().zip(x.chunks(x.len() / positions.len()).map(<[f32]>::to_vec));
        self.experts.entry((part.to_owned(), expert)).or_default().extend(rows);
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
            let positions = |rows: &[(usize, Vec<f32>)]| rows.iter().map(|(at, _)| *at).collect::<Vec<_>>();
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

/// The error that is reported is that of what the file says, with and without calibration.
#[test]
fn a_mixture_becomes_sums() {
    let scratch = tempfile::tempdir().unwrap();
    let settings =
        Settings { rank: 4, band: Some(1), outlier_q: 0.98, pq_m: 4, pq_k: 16, pq_d: 16, refine: 0, seed: 0 };
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
            let conversion = Conversion {
                settings,
                packing: Packing::Zstd,
                max_layers: 0,
                max_elems: 0,
                force: false,
                resume: None,
                threads: 2,
                isa: Isa::detect(),
                progress: &|_, _| (),
                cancel: None,
            };
            let report = run(checkpoint.as_ref(), &plan, &sums, activations, &out, &conversion).unwrap();
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
