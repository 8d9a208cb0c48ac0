//! DeepSeek V2, V2.5, V3 and R1 (DeepSeek-AI 2024): latent attention, a mixture of many small experts beside shared
//! ones, the first layers dense.

use super::common::{self, rope};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{
    DenseSpec, FfnSpec, Gate, LayerSpec, MixerSpec, MlaSpec, ModelSpec, NormPlaces, Residual, Score,
};
use fonio_kernel::{Activation, Pairing};
use serde_json::{Map, Value as Json, json};

const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";

pub(super) const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    model_types: &["deepseek_v2", "deepseek_v3"],
    models: "DeepSeek V2, V2.5, V3, R1",
    spec,
    from_config,
    to_config,
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        common::ROUTER,
        common::EXPERT_GATE,
        common::EXPERT_UP,
        common::EXPERT_DOWN,
        Rule("model.layers.{}.self_attn.q_a_proj.weight", "blk.{}.attn_q_a.weight", Op::Same),
        Rule("model.layers.{}.self_attn.q_a_proj.bias", "blk.{}.attn_q_a.bias", Op::Same),
        Rule("model.layers.{}.self_attn.q_a_layernorm.weight", "blk.{}.attn_q_a_norm.weight", Op::Same),
        Rule("model.layers.{}.self_attn.q_b_proj.weight", "blk.{}.attn_q_b.weight", Op::Same),
        Rule("model.layers.{}.self_attn.kv_a_proj_with_mqa.weight", "blk.{}.attn_kv_a_mqa.weight", Op::Same),
        Rule("model.layers.{}.self_attn.kv_a_proj_with_mqa.bias", "blk.{}.attn_kv_a_mqa.bias", Op::Same),
        Rule("model.layers.{}.self_attn.kv_a_layernorm.weight", "blk.{}.attn_kv_a_norm.weight", Op::Same),
        Rule("model.layers.{}.self_attn.kv_b_proj.weight", "blk.{}.attn_k_b.weight", Op::KeyUp),
        Rule("model.layers.{}.self_attn.kv_b_proj.weight", "blk.{}.attn_v_b.weight", Op::ValueUp),
        Rule("model.layers.{}.self_attn.kv_b_proj.weight", "blk.{}.attn_kv_b.weight", Op::Back),
        Rule("model.layers.{}.mlp.gate.e_score_correction_bias", "blk.{}.exp_probs_b.bias", Op::Same),
        Rule("model.layers.{}.mlp.shared_experts.gate_proj.weight", "blk.{}.ffn_gate_shexp.weight", Op::Same),
        Rule("model.layers.{}.mlp.shared_experts.up_proj.weight", "blk.{}.ffn_up_shexp.weight", Op::Same),
        Rule("model.layers.{}.mlp.shared_experts.down_proj.weight", "blk.{}.ffn_down_shexp.weight", Op::Same)
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let mut spec = common::skeleton(keys, "deepseek2")?;
    let n_layers = keys.count("block_count")?;
    let ffn_dim = keys.count("feed_forward_length")?;
    let mla = latent_attention(keys)?;
    for i in 0..n_layers {
        let ffn = match common::moe(keys, i, Activation::Silu, false)? {
            Some(moe) => FfnSpec::Moe(moe),
            None => FfnSpec::Dense(DenseSpec {
                ffn_dim,
                activation: Activation::Silu,
                gate: Gate::Own,
                bias: keys.has_tensor(&format!("blk.{i}.ffn_down.bias")),
            }),
        };
        spec.layers.push(LayerSpec {
            mixer: MixerSpec::Mla(mla.clone()),
            ffn: Some(ffn),
            norm: spec.final_norm,
            norms: NormPlaces::Before,
            residual: Residual::Sequential,
            residual_scale: 1.0,
        });
    }
    Ok(spec)
}

fn latent_attention(keys: &Keys<'_>) -> Result<MlaSpec, Error> {
    let absorbed = keys.has_tensor("blk.0.attn_k_b.weight");
    // Files of before absorbed attention have the sizes of full keys under the plain names.
    let size = |mla: &str, plain: &str| match keys.count_opt(mla)?.filter(|&n| n > 0) {
        Some(n) => Ok(n),
        None => keys.count(plain),
    };
    let head_dim = size("attention.key_length_mla", "attention.key_length")?;
    let value_dim = size("attention.value_length_mla", "attention.value_length")?;
    let rope_dim = keys.count("rope.dimension_count")?;
    let n_heads = keys.count("attention.head_count")?;
    let kv_rank = keys.count("attention.kv_lora_rank")?;
    if [n_heads, head_dim, value_dim, kv_rank].iter().any(|&n| n > 1 << 16) || head_dim <= rope_dim {
        let reason = format!("heads of {head_dim} values with {rope_dim} turned");
        return Err(keys.wrong("attention.key_length_mla", reason));
    }
    let mut turning = rope::turning(keys, Pairing::Neighbours, rope_dim, rope_dim)?;
    let mut scale = 1.0 / (head_dim as f32).sqrt();
    if keys.text_opt("rope.scaling.type")? == Some("yarn") {
        // What YaRN multiplies both sides of the turned part with, DeepSeek multiplies whole scores with.
        let factor = keys.positive_or("rope.scaling.factor", 1.0)?;
        let all = 1.0 + keys.float_opt(LOG_MULTIPLIER)?.unwrap_or(0.0) * factor.max(1.0).ln();
        scale *= all * all;
        turning.rotary.magnitude = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
    }
    Ok(MlaSpec {
        n_heads,
        q_rank: keys.count_opt("attention.q_lora_rank")?.filter(|&n| n > 0),
        kv_rank,
        nope_dim: head_dim - rope_dim,
        rope_dim,
        value_dim,
        rotary: turning.rotary,
        scale,
        eps: keys.positive_or("attention.layer_norm_rms_epsilon", 1e-6)?,
        bias: keys.has_tensor("blk.0.attn_kv_a_mqa.bias"),
        absorbed,
    })
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    common::sizes_from_config(config, draft)?;
    let rope_dim = config.count("qk_rope_head_dim")?;
    let (nope_dim, value_dim) = (config.count("qk_nope_head_dim")?, config.count("v_head_dim")?);
    let rank = config.count("kv_lora_rank")?;
    // One key and one value for all heads: the latent vector, with the turned part behind it.
    draft.set("attention.head_count_kv", 1u32);
    draft.set("attention.key_length", rank + rope_dim);
    draft.set("attention.value_length", rank);
    draft.set("attention.key_length_mla", nope_dim + rope_dim);
    draft.set("attention.value_length_mla", value_dim);
    draft.set("attention.kv_lora_rank", rank);
    if let Some(rank) = config.count_opt("q_lora_rank")? {
        draft.set("attention.q_lora_rank", rank);
    }
    rope_from_config(config, rope_dim, draft)?;
    experts_from_config(config, draft)
}

fn rope_from_config(config: &Config, rope_dim: u32, draft: &mut Draft<'_>) -> Result<(), Error> {
    let rope = rope::rope_config(config, None, 10_000.0)?;
    rope::write(config, &rope, rope_dim, draft)?;
    let Some(scaling) = rope.scaling.as_ref().filter(|_| matches!(rope.kind(), Ok("yarn"))) else {
        return Ok(());
    };
    let factor = scaling.float_opt("factor")?.unwrap_or(1.0);
    draft.set(LOG_MULTIPLIER, 0.1 * scaling.float_opt("mscale_all_dim")?.unwrap_or(0.0));
    // The magnitude itself, as `spec` reads it.
    let magnitude = rope::yarn_attention_factor(scaling, factor)?;
    if magnitude == 1.0 {
        draft.metadata.remove("deepseek2.rope.scaling.attn_factor");
    } else {
        draft.set("rope.scaling.attn_factor", magnitude);
    }
    Ok(())
}

fn experts_from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::moe_from_config(config, draft)?;
    let layers = config.count("num_hidden_layers")?;
    draft.set(
        "leading_dense_block_count",
        config.count_opt("first_k_dense_replace")?.unwrap_or(0).min(layers),
    );
    draft.set("expert_shared_count", config.count_opt("n_shared_experts")?.unwrap_or(0));
    draft.set("expert_weights_scale", config.float_opt("routed_scaling_factor")?.unwrap_or(1.0));
    if let Some(step) = config.count_opt("moe_layer_freq")?.filter(|&n| n != 1) {
        return Err(config.unsupported("moe_layer_freq", format!("{step}")));
    }
    let third = config.text_opt("model_type")? == Some("deepseek_v3");
    let scoring = config.text_opt("scoring_func")?.unwrap_or(if third { "sigmoid" } else { "softmax" });
    match scoring {
        "softmax" => draft.set("expert_gating_func", 1u32),
        "sigmoid" => draft.set("expert_gating_func", 2u32),
        other => return Err(config.unsupported("scoring_func", format!("{other:?}"))),
    }
    // The second version's weights are not divided by their sum, whatever its configuration says.
    draft.set("expert_weights_norm", third && config.flag_or("norm_topk_prob", true)?);
    let grouped = match config.text_opt("topk_method")?.unwrap_or(if third { "noaux_tc" } else { "greedy" }) {
        "greedy" => false,
        "group_limited_greedy" | "noaux_tc" => true,
        other => return Err(config.unsupported("topk_method", format!("{other:?}"))),
    };
    let (groups, used) = (config.count_opt("n_group")?, config.count_opt("topk_group")?);
    if let (true, Some(groups), Some(used)) = (grouped, groups, used) {
        draft.set("expert_group_count", groups);
        draft.set("expert_group_used_count", used);
    }
    Ok(())
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let mla = latent_attention(keys)?;
    let dense = spec.layers.iter().take_while(|layer| matches!(layer.ffn, Some(FfnSpec::Dense(_)))).count();
    let moe = spec.layers.iter().find_map(|layer| match &layer.ffn {
        Some(FfnSpec::Moe(moe)) => Some(moe),
        _ => None,
    });
    let third = moe.is_some_and(|moe| moe.router.score == Score::Sigmoid);
    let (class, model_type) = if third {
        ("DeepseekV3ForCausalLM", "deepseek_v3")
    } else {
        ("DeepseekV2ForCausalLM", "deepseek_v2")
    };
    classes(json, class, model_type);
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(spec.dim));
    set("vocab_size", json!(spec.vocab_size));
    set("intermediate_size", json!(keys.count("feed_forward_length")?));
    set("num_hidden_layers", json!(spec.layers.len()));
    set("max_position_embeddings", json!(spec.context_len));
    set("rms_norm_eps", json!(common::decimal(mla.eps)));
    set("tie_word_embeddings", json!(!spec.has_head));
    set("num_attention_heads", json!(mla.n_heads));
    set("num_key_value_heads", json!(mla.n_heads));
    set("attention_bias", json!(mla.bias));
    set("q_lora_rank", json!(mla.q_rank));
    set("kv_lora_rank", json!(mla.kv_rank));
    set("qk_nope_head_dim", json!(mla.nope_dim));
    set("qk_rope_head_dim", json!(mla.rope_dim));
    set("v_head_dim", json!(mla.value_dim));
    if let Some(moe) = moe {
        let groups = moe.router.groups;
        set("n_routed_experts", json!(moe.n_experts));
        set("num_experts_per_tok", json!(moe.n_used));
        set("moe_intermediate_size", json!(moe.ffn_dim));
        set("n_shared_experts", json!(moe.shared.map_or(0, |s| s.ffn_dim / moe.ffn_dim)));
        set("first_k_dense_replace", json!(dense));
        set("moe_layer_freq", json!(1));
        set("routed_scaling_factor", json!(common::decimal(moe.router.scale)));
        set("norm_topk_prob", json!(moe.router.normalize));
        set("scoring_func", json!(if third { "sigmoid" } else { "softmax" }));
        set(
            "topk_method",
            json!(match groups {
                _ if third => "noaux_tc",
                Some(_) => "group_limited_greedy",
                None => "greedy",
            }),
        );
        set("n_group", json!(groups.map_or(1, |g| g.n)));
        set("topk_group", json!(groups.map_or(1, |g| g.n_used)));
    }
    rope::to_config(keys, mla.rope_dim, mla.rope_dim, json)?;
    if let Some(scaling) = json.get_mut("rope_scaling").and_then(Json::as_object_mut)
        && scaling.get("rope_type") == Some(&json!("yarn"))
    {
        let all = keys.float_opt(LOG_MULTIPLIER)?.unwrap_or(0.0) / 0.1;
        scaling.insert("mscale_all_dim".into(), json!(common::decimal((all * 1e5).round() / 1e5)));
        scaling.insert("attention_factor".into(), json!(common::decimal(mla.rotary.magnitude)));
    }
    Ok(())
}
