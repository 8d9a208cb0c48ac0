//! Mixtures of experts: keys that architectures share.

use crate::Error;
use crate::keys::{Config, Draft, Keys};
use crate::spec::{Groups, MoeSpec, RouterSpec, Score, SharedSpec};
use fonio_kernel::Activation;
use serde_json::{Map, Value as Json, json};

/// The mixture of layer `block`, if it has one. `normalize` says what a file that doesn't say means.
pub(in crate::arch) fn moe(
    keys: &Keys<'_>,
    block: usize,
    activation: Activation,
    normalize: bool,
) -> Result<Option<MoeSpec>, Error> {
    let has = |name: &str| keys.has_tensor(&format!("blk.{block}.{name}"));
    if !has("ffn_gate_inp.weight") {
        return Ok(None);
    }
    let (n_experts, n_used) = (keys.count("expert_count")?, keys.count("expert_used_count")?);
    if n_used > n_experts {
        return Err(keys.wrong("expert_used_count", format!("{n_used} of {n_experts} experts")));
    }
    let ffn_dim = match keys.count_opt("expert_feed_forward_length")?.filter(|&n| n > 0) {
        Some(n) => n,
        None => keys.count("feed_forward_length")?,
    };
    let score = match keys.count_opt("expert_gating_func")?.unwrap_or(1) {
        // 3 is a softmax over the chosen ones, which is one over all that is normalized.
        0 | 1 | 3 => Score::Softmax,
        2 => Score::Sigmoid,
        other => return Err(keys.unsupported("expert_gating_func", format!("{other}"))),
    };
    let groups = groups(keys, n_experts, has("exp_probs_b.bias"))?;
    let shared = if has("ffn_up_shexp.weight") {
        let ffn_dim = match keys.count_opt("expert_shared_feed_forward_length")?.filter(|&n| n > 0) {
            Some(n) => n,
            None => ffn_dim * keys.count_opt("expert_shared_count")?.unwrap_or(1),
        };
        Some(SharedSpec { ffn_dim, gated: has("ffn_gate_inp_shexp.weight") })
    } else {
        None
    };
    Ok(Some(MoeSpec {
        n_experts,
        n_used,
        ffn_dim,
        activation,
        bias: has("ffn_down_exps.bias"),
        router: RouterSpec {
            score,
            bias: has("ffn_gate_inp.bias"),
            correction: has("exp_probs_b.bias"),
            normalize: keys.flag_opt("expert_weights_norm")?.unwrap_or(normalize),
            // Files say 0 where weights are not scaled.
            scale: keys.float_opt("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0),
            groups,
        },
        shared,
    }))
}

/// Groups are as good as their best expert, or as their best two where scores are corrected (DeepSeek V3).
fn groups(keys: &Keys<'_>, n_experts: usize, corrected: bool) -> Result<Option<Groups>, Error> {
    let Some(n) = keys.count_opt("expert_group_count")?.filter(|&n| n > 1) else { return Ok(None) };
    let n_used = keys.count("expert_group_used_count")?;
    if n_used > n || !n_experts.is_multiple_of(n) {
        let reason = format!("{n_used} of {n} groups of {n_experts} experts");
        return Err(keys.wrong("expert_group_count", reason));
    }
    Ok(Some(Groups { n, n_used, best_of: if corrected { 2 } else { 1 } }))
}

/// Writes the counts of experts; models have different names for how many there are.
pub(in crate::arch) fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let mut n = None;
    for key in ["num_experts", "num_local_experts", "n_routed_experts"] {
        n = n.or(config.count_opt(key)?);
    }
    let n = n.ok_or_else(|| config.wrong("num_experts", "is missing"))?;
    draft.set("expert_count", n);
    let used = match config.count_opt("num_experts_per_tok")? {
        Some(n) => n,
        None => config.count("experts_per_token")?,
    };
    draft.set("expert_used_count", used);
    if let Some(n) = config.count_opt("moe_intermediate_size")? {
        draft.set("expert_feed_forward_length", n);
    }
    if config.get("norm_topk_prob").is_some() {
        draft.set("expert_weights_norm", config.flag_or("norm_topk_prob", false)?);
    }
    Ok(())
}

/// What `spec` says of its experts, under the names that Qwen has for it.
pub(in crate::arch) fn to_config(moe: &MoeSpec, json: &mut Map<String, Json>) {
    json.insert("num_experts".into(), json!(moe.n_experts));
    json.insert("num_experts_per_tok".into(), json!(moe.n_used));
    json.insert("moe_intermediate_size".into(), json!(moe.ffn_dim));
    json.insert("norm_topk_prob".into(), json!(moe.router.normalize));
}
