//! Recipes: which type each tensor of a model gets.
//!
//! A recipe has a base type and a list of lines; the first line whose pattern and condition fit a tensor says its type.
//! The usual recipes spend more bits where rounding hurts more: on the head, on values, and on the way out of the
//! feed-forward part in the first, the last and every third layer. They are llama.cpp's mixes, type for type, so that
//! sizes compare. Rows that are no whole blocks of a type get the next larger type that fits.

use fonio_codec::{DType, list, qsf as blocks};
use fonio_model::is_product_weight;

/// Which tensors a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What makes the logits: the head, or the embedding that serves as one.
    Head,
    /// `attn_v`
    Value,
    /// `attn_output`
    AttentionOut,
    /// `ffn_down`
    Down,
    /// `attn_qkv`
    FusedQkv,
}

/// In which layers a line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// The first and last eighth and every third layer between.
    Spread,
    /// The first `1/n`.
    FirstPart(usize),
    /// The first `n`.
    First(usize),
    /// Where at least four query heads share a key head: values are few then.
    Shared,
}

struct Line(Part, When, DType);

/// A named mix of types.
pub struct Recipe {
    /// Its name, `Q4_K_M`.
    pub name: &'static str,
    /// `general.file_type` in GGUF.
    pub file_type: u32,
    /// What most weights get.
    pub base: DType,
    lines: &'static [Line],
}

/// What a recipe has to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its layers.
    pub n_layers: usize,
    /// Query heads that share a key head.
    pub heads_per_key: usize,
    /// Whether the head is a tensor of its own.
    pub has_head: bool,
}

macro_rules! recipes {
    ($($name:literal = $file_type:literal, $base:ident $(, $part:ident $when:ident $(($n:literal))? => $to:ident)*;)*) => {
        /// All recipes.
        pub const ALL: &[Recipe] = &[$(Recipe {
            name: $name,
            file_type: $file_type,
            base: list::$base,
            lines: &[$(Line(Part::$part, When::$when $(($n))?, list::$to)),*],
        }),*];
    };
}

recipes! {
    "F32" = 0, F32;
    "F16" = 1, F16;
    "BF16" = 32, BF16;
    "Q4_0" = 2, Q4_0, Head Always => Q6_K;
    "Q4_1" = 3, Q4_1, Head Always => Q6_K;
    "Q5_0" = 8, Q5_0, Head Always => Q6_K;
    "Q5_1" = 9, Q5_1, Head Always => Q6_K;
    "Q8_0" = 7, Q8_0;
    "Q2_K" = 10, Q2_K, Head Always => Q6_K, Value Shared => Q4_K, Value Always => Q3_K, AttentionOut Always => Q3_K,
        Down Always => Q3_K;
    "Q2_K_S" = 21, Q2_K, Head Always => Q6_K, Value Shared => Q4_K, Down FirstPart(8) => Q4_K;
    "Q3_K_S" = 11, Q3_K, Head Always => Q6_K;
    "Q3_K_M" = 12, Q3_K, Head Always => Q6_K, Value First(2) => Q5_K, Value Always => Q4_K,
        AttentionOut Always => Q4_K, Down FirstPart(16) => Q5_K, Down Always => Q4_K, FusedQkv Always => Q4_K;
    "Q3_K_L" = 13, Q3_K, Head Always => Q6_K, Value Always => Q5_K, AttentionOut Always => Q5_K,
        Down Always => Q5_K, FusedQkv Always => Q4_K;
    "Q4_K_S" = 14, Q4_K, Head Always => Q6_K, Value First(4) => Q5_K, Down FirstPart(8) => Q5_K;
    "Q4_K_M" = 15, Q4_K, Head Always => Q6_K, Value Spread => Q6_K, Down Spread => Q6_K, FusedQkv Always => Q5_K;
    "Q5_K_S" = 16, Q5_K, Head Always => Q6_K;
    "Q5_K_M" = 17, Q5_K, Head Always => Q6_K, Value Spread => Q6_K, Down Spread => Q6_K, FusedQkv Always => Q6_K;
    "Q6_K" = 18, Q6_K;
    "IQ4_NL" = 25, IQ4_NL, Head Always => Q6_K, Value Shared => Q5_K, Down FirstPart(8) => Q5_K;
    "IQ4_XS" = 30, IQ4_XS, Head Always => Q6_K, Value Shared => Q5_K, Down FirstPart(8) => Q5_K;
    "MXFP4" = 38, MXFP4, Head Always => Q8_0;
}

/// Other names of recipes.
const ALIASES: &[(&str, &str)] =
    &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M"), ("MXFP4_MOE", "MXFP4")];

/// The recipe with this name, in any case.
pub fn named(name: &str) -> Option<&'static Recipe> {
    let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
    let name = alias.map_or(name, |(_, name)| name);
    ALL.iter().find(|r| r.name.eq_ignore_ascii_case(name))
}

impl Recipe {
    /// The type of a tensor with GGUF's name `name` and these dimensions, outermost first, or `None` for tensors that
    /// stay as they are: norms, biases, and what is no weight of a product.
    pub fn choose(&self, name: &str, shape: &[u64], model: &Shape) -> Option<DType> {
        if !is_product_weight(name, shape) {
            return None;
        }
        let part = part(name, model);
        let layer =
            name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
        let fits = |line: &&Line| {
            Some(line.0) == part
                && match (line.1, layer) {
                    (When::Always, _) => true,
                    (When::Shared, _) => model.heads_per_key >= 4,
                    (_, None) => false,
                    (When::Spread, Some(i)) => spread(i, model.n_layers),
                    (When::FirstPart(n), Some(i)) => i < model.n_layers / n,
                    (When::First(n), Some(i)) => i < n,
                }
        };
        let choice = self.lines.iter().find(fits).map_or(self.base, |line| line.2);
        let row = shape.last().copied().unwrap_or(0);
        // A head of rows that k-quants don't divide is worth whole bytes, as llama.cpp has it.
        if part == Some(Part::Head) && choice.is_quantized() && choice.bytes_for(row).is_none() {
            return Some(fitting(list::Q8_0, row));
        }
        Some(fitting(choice, row))
    }
}

fn part(name: &str, model: &Shape) -> Option<Part> {
    let is = |suffix: &str| name.ends_with(suffix);
    match () {
        () if name == "output.weight" || (name == "token_embd.weight" && !model.has_head) => Some(Part::Head),
        () if is(".attn_v.weight") => Some(Part::Value),
        () if is(".attn_output.weight") => Some(Part::AttentionOut),
        () if is(".ffn_down.weight") || is(".ffn_down_exps.weight") || is(".ffn_down_shexp.weight") => {
            Some(Part::Down)
        }
        () if is(".attn_qkv.weight") => Some(Part::FusedQkv),
        () => None,
    }
}

/// The type of a tensor in a model of one of QSF's types: what makes the logits gets bytes, where others have fewer bits,
/// because its errors are those of every token's scores, and nothing comes behind that would make up for them.
pub fn qsf(base: DType, name: &str, row: u64, model: &Shape) -> DType {
    let len = base.block_len();
    let head = part(name, model) == Some(Part::Head);
    let better = blocks::named("8bit", len).filter(|_| head && base.is_quantized());
    fitting(better.unwrap_or(base), row)
}

/// The first and last eighth of the layers and every third one between.
fn spread(layer: usize, n: usize) -> bool {
    layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
}

/// The type itself, or the smallest larger one whose blocks divide rows of this length.
pub fn fitting(dtype: DType, row: u64) -> DType {
    const SMALLER_BLOCKS: &[(DType, DType)] = &[
        (list::Q2_K, list::IQ4_NL),
        (list::Q3_K, list::IQ4_NL),
        (list::IQ4_XS, list::IQ4_NL),
        (list::Q4_K, list::Q5_0),
        (list::Q5_K, list::Q5_1),
        (list::Q6_K, list::Q8_0),
    ];
    if dtype.bytes_for(row).is_some() {
        return dtype;
    }
    // QSF's types come in several block lengths.
    if let Some((kind, len)) = blocks::kind(dtype) {
        let shorter = blocks::BLOCKS.iter().rev().filter(|shorter| **shorter < len);
        let mut fits =
            shorter.filter_map(|len| blocks::named(kind, *len)).filter(|t| t.bytes_for(row).is_some());
        return fits.next().unwrap_or(list::F16);
    }
    let next = SMALLER_BLOCKS.iter().find(|(from, _)| *from == dtype).map_or(list::F16, |(_, to)| *to);
    if next.bytes_for(row).is_some() { next } else { list::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Shape = Shape { n_layers: 30, heads_per_key: 3, has_head: false };

    #[test]
    fn the_usual_mix_is_llama_cpps() {
        let recipe = named("q4_k_m").unwrap();
        let shape = [256, 1024];
        let choose = |name: &str| recipe.choose(name, &shape, &SMALL);
        assert_eq!(choose("token_embd.weight"), Some(list::Q6_K));
        assert_eq!(choose("blk.0.attn_q.weight"), Some(list::Q4_K));
        let six: Vec<usize> =
            (0..30).filter(|i| choose(&format!("blk.{i}.ffn_down.weight")) == Some(list::Q6_K)).collect();
        assert_eq!(six, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(choose("blk.0.attn_norm.weight"), None);
        assert_eq!(recipe.choose("output_norm.weight", &[256], &SMALL), None);
        assert_eq!(recipe.choose("blk.0.ffn_gate_inp_shexp.weight", &[1, 256], &SMALL), None);
    }

    #[test]
    fn rows_that_do_not_divide_get_a_type_that_fits() {
        let recipe = named("Q4_K").unwrap();
        let choose = |name: &str, row: u64| recipe.choose(name, &[8, row], &SMALL).unwrap();
        assert_eq!(choose("blk.1.attn_q.weight", 640), list::Q5_0);
        assert_eq!(choose("blk.1.ffn_down.weight", 640), list::Q8_0);
        assert_eq!(choose("token_embd.weight", 640), list::Q8_0);
        assert_eq!(choose("blk.1.attn_q.weight", 36), list::F16);
    }

    #[test]
    fn rwkvs_projections_are_rounded_and_its_small_matrices_are_not() {
        let recipe = named("Q8_0").unwrap();
        let choose = |part: &str| recipe.choose(&format!("blk.1.{part}.weight"), &[64, 64], &SMALL);
        for part in ["time_mix_key", "time_mix_value", "time_mix_receptance", "time_mix_gate"] {
            assert_eq!(choose(part), Some(list::Q8_0), "{part}");
        }
        assert_eq!(choose("time_mix_output").and(choose("channel_mix_key")), Some(list::Q8_0));
        for part in ["w1", "w2", "a1", "v2", "g1", "lerp_fused", "first", "decay_w1"] {
            assert_eq!(choose(&format!("time_mix_{part}")), None, "{part}");
        }
    }

    #[test]
    fn names_are_unique_and_found_in_any_case() {
        for (i, recipe) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|r| r.name != recipe.name && r.file_type != recipe.file_type));
            assert_eq!(named(&recipe.name.to_lowercase()).unwrap().name, recipe.name);
        }
        assert!(named("Q9_K").is_none());
    }
}
