//! However weights are kept, and whatever they have to make room for, the same bits come out: every tiny checkpoint,
//! from its folder, from a GGUF file of it and from sums in a CAWSF file, in the smallest budgets that work.

mod common;

use common::{Expected, convert_to_cawsf, convert_to_gguf, each, name};
use fonio_checkpoint::Checkpoint;
use fonio_checkpoint::cawsf::v2::V2;
use fonio_kernel::Kernels;
use fonio_model::cache::{Cache, CacheTypes};
use fonio_model::source::Source;
use fonio_model::{Model, Wanted};
use fonio_quantize::convert::Target;
use fonio_simd::Isa;
use fonio_weights::{Part, Plan, Policy, Stats};
use std::path::Path;

/// Logits of a prompt in pieces of seven and of some single tokens behind it; what was planned and read.
fn run(
    model: &Path,
    tokens: &[u32],
    policy: impl Fn(&Model) -> Policy,
) -> Result<(Vec<f32>, Plan, Stats), String> {
    let source = Source::open(model).map_err(|e| e.to_string())?;
    let mut model =
        Model::load(source.spec().clone(), source.checkpoint().clone()).map_err(|e| e.to_string())?;
    let policy = policy(&model);
    model.weights_mut().start(policy).map_err(|e| e.to_string())?;
    let kernels = Kernels::new(2, Isa::detect());
    let mut cache =
        Cache::new(source.spec(), CacheTypes::default(), tokens.len()).map_err(|e| e.to_string())?;
    let (prompt, single) = tokens.split_at(tokens.len() - 6);
    let mut logits = Vec::new();
    for part in prompt.chunks(7).chain(single.chunks(1)) {
        let mut sink = |_: usize, row: &[f32]| logits.extend_from_slice(row);
        model
            .forward(&kernels, &mut cache, part, Wanted::All, &mut sink, &mut ())
            .map_err(|e| e.to_string())?;
    }
    Ok((logits, model.weights().plan().clone(), model.weights().stats()))
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn check(model: &Path, tokens: &[u32]) -> Result<(), String> {
    let (want, plan, _) = run(model, tokens, |_| Policy::Mapped)?;
    if !plan.streamed.is_empty() {
        return Err("a mapped model is streamed".into());
    }
    let (got, plan, once) = run(model, tokens, |_| Policy::Resident)?;
    if !same(&got, &want) || !plan.streamed.is_empty() {
        return Err("resident".into());
    }
    for share in [0.0, 0.3, 0.7] {
        let policy = |model: &Model| {
            let (least, all) = (model.weights().least_bytes(), Plan::total(&model.weights().parts()));
            Policy::Streamed { budget_bytes: least + ((all - least) as f64 * share) as u64 }
        };
        let (got, plan, stats) = run(model, tokens, policy)?;
        if !same(&got, &want) {
            return Err(format!("streamed with {share}: other bits"));
        }
        let all = plan.streamed.len() + plan.experts.len() + plan.held.len();
        if all > 3 && plan.streamed.is_empty() && plan.experts.is_empty() {
            return Err(format!("streamed with {share}: all is held"));
        }
        // Each streamed part goes by once for each piece of the text.
        if share == 0.0 && plan.streamed.len() > 2 && stats.bytes < 2 * once.bytes {
            return Err(format!("streamed: read only {} bytes; once are {}", stats.bytes, once.bytes));
        }
    }
    let too_little = |model: &Model| Policy::Streamed { budget_bytes: model.weights().least_bytes() - 1 };
    match run(model, tokens, too_little) {
        Err(e) if e.contains("at least") => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err("less than the least is enough".into()),
    }
}

#[test]
fn the_same_bits_however_weights_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    each(|folder| {
        let tokens = Expected::read(folder).tokens["tokens"].clone();
        check(folder, &tokens).map_err(|e| format!("folder: {e}"))?;
        let gguf = scratch.path().join(name(folder)).with_extension("gguf");
        convert_to_gguf(folder, &gguf, &Target::named("Q8_0").map_err(|e| e.to_string())?)?;
        check(&gguf, &tokens).map_err(|e| format!("GGUF: {e}"))?;
        let cawsf = gguf.with_extension("cawsf");
        convert_to_cawsf(folder, &cawsf)?;
        check(&cawsf, &tokens).map_err(|e| format!("CAWSF: {e}"))
    });
}

/// Leases experts of a CAWSF file in any order: what is read each time are its own shards, and nothing of an expert
/// that is there already. `Ok(false)` if the model is no mixture.
fn leases(cawsf: &Path) -> Result<bool, String> {
    let file = V2::open(cawsf).map_err(|e| e.to_string())?;
    let source = Source::open(cawsf).map_err(|e| e.to_string())?;
    let mut model =
        Model::load(source.spec().clone(), source.checkpoint().clone()).map_err(|e| e.to_string())?;
    let budget_bytes = model.weights().least_bytes();
    model.weights_mut().start(Policy::Streamed { budget_bytes }).map_err(|e| e.to_string())?;
    let weights = model.weights();
    // Places for two: each lease but the third of three drops what was there before.
    for (layer, experts) in [(1, [0, 3, 0]), (1, [2, 1, 2])] {
        let stacks: Vec<_> = ["gate", "up", "down"]
            .iter()
            .filter_map(|part| file.find(&format!("blk.{layer}.ffn_{part}_exps.weight")))
            .map(|at| file.matrices(at))
            .collect();
        if stacks.is_empty() {
            return Ok(false);
        }
        for (i, expert) in experts.into_iter().enumerate() {
            let own = stacks.iter().flat_map(|stack| file.shards_of(stack.start + expert));
            let own: u64 = own.map(|shard| file.shards()[*shard].stored).sum();
            let want = if i < 2 { own } else { 0 };
            let before = weights.stats().bytes;
            drop(weights.lease(Part::Expert { layer, expert }).map_err(|e| e.to_string())?);
            let read = weights.stats().bytes - before;
            if read != want || own == 0 {
                return Err(format!("expert {expert} of layer {layer}: {read} bytes of {want}"));
            }
        }
    }
    Ok(true)
}

#[test]
fn an_expert_is_read_by_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let mut mixtures = 0;
    each(|folder| {
        let cawsf = scratch.path().join(name(folder)).with_extension("cawsf");
        convert_to_cawsf(folder, &cawsf)?;
        mixtures += usize::from(leases(&cawsf)?);
        Ok(())
    });
    assert!(mixtures >= 5, "{mixtures}");
}
