//! What is raced, as data: models, work, and by how much fonio shall be ahead.

use std::path::{Path, PathBuf};

/// A model and what it has to do.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub model: Model,
    /// The type of its large matrices.
    pub dtype: &'static str,
    pub works: &'static [Work],
    /// Whether it is run when no case is named.
    pub usual: bool,
}

/// Where a model comes from.
#[derive(Debug)]
pub enum Model {
    /// Made up, in the shape with this name.
    Made(&'static str),
    /// A real one: a file in the models folder.
    Real(&'static str),
}

/// What is done with a model, and how well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    pub name: &'static str,
    pub kind: Kind,
    pub tokens: usize,
    /// Positions in the cache before time is taken.
    pub depth: usize,
    /// How many times as good fonio shall be.
    pub target: f64,
    /// The same for plain numbers, where there is nothing to unpack.
    pub float_target: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prefill,
    Decode,
    /// A whole process, from its start to the first token.
    Start,
}

pub const PREFILL: Work = work("prefill", Kind::Prefill, 512, 0, 1.6, 1.6);
pub const DECODE: Work = work("decode", Kind::Decode, 64, 0, 1.25, 1.0);
pub const DEEP: Work = work("decode-4096", Kind::Decode, 64, 4096, 1.3, 1.3);
pub const START: Work = work("start", Kind::Start, 1, 0, 3.0, 3.0);
/// How many times as much memory a rival shall need from the start to the first token.
pub const MEMORY_TARGET: f64 = 2.0;

/// Every kind of work, by name.
pub const WORKS: &[Work] = &[PREFILL, DECODE, DEEP, START];

const SPEED: &[Work] = &[PREFILL, DECODE];
const WITH_DEPTH: &[Work] = &[PREFILL, DECODE, DEEP];
const WITH_START: &[Work] = &[PREFILL, DECODE, START];
const ALL: &[Work] = WORKS;

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("llama-1b-Q4_0",   Model::Made("llama-1b"),   "Q4_0",   WITH_DEPTH, true),
    case("llama-1b-Q4_K",   Model::Made("llama-1b"),   "Q4_K",   ALL,        true),
    case("llama-1b-Q8_0",   Model::Made("llama-1b"),   "Q8_0",   WITH_DEPTH, true),
    case("llama-1b-F16",    Model::Made("llama-1b"),   "F16",    SPEED,      true),
    case("llama-1b-Q6_K",   Model::Made("llama-1b"),   "Q6_K",   SPEED,      true),
    case("llama-1b-Q5_K",   Model::Made("llama-1b"),   "Q5_K",   SPEED,      false),
    case("llama-1b-Q3_K",   Model::Made("llama-1b"),   "Q3_K",   SPEED,      false),
    case("llama-1b-Q2_K",   Model::Made("llama-1b"),   "Q2_K",   SPEED,      true),
    case("llama-1b-IQ4_XS", Model::Made("llama-1b"),   "IQ4_XS", SPEED,      true),
    case("smollm2-Q4_1",    Model::Real(super::SMOLLM2), "Q4_1",   WITH_START, true),
    case("smollm2-Q4_0",    Model::Made("smollm2-135m"), "Q4_0", SPEED,      true),
    case("smollm2-Q8_0",    Model::Made("smollm2-135m"), "Q8_0", SPEED,      true),
    case("gemma3-Q4_K_M",   Model::Real(super::GEMMA3),  "Q4_K_M", WITH_START, true),
    // To see in a few seconds whether everything works.
    case("llama-tiny-Q4_0", Model::Made("llama-tiny"), "Q4_0",   WITH_START, false),
];

const fn case(
    name: &'static str,
    model: Model,
    dtype: &'static str,
    works: &'static [Work],
    usual: bool,
) -> Case {
    Case { name, model, dtype, works, usual }
}

const fn work(
    name: &'static str,
    kind: Kind,
    tokens: usize,
    depth: usize,
    target: f64,
    float_target: f64,
) -> Work {
    Work { name, kind, tokens, depth, target, float_target }
}

impl Case {
    /// Whether the matrices are plain numbers.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, "F32" | "F16" | "BF16")
    }

    /// How many times as good fonio shall be.
    pub fn target(&self, work: &Work) -> f64 {
        if self.is_float() { work.float_target } else { work.target }
    }

    /// The model's file, made if need be. Otherwise says why it is not there.
    pub fn file(&self, folder: &Path) -> Result<PathBuf, String> {
        match self.model {
            Model::Made(shape) => {
                let file = folder.join(format!("{shape}.{}.gguf", self.dtype));
                // An unfinished file has another name until it is whole.
                if !file.exists() {
                    super::super::model(shape, "gguf", self.dtype, &file)?;
                }
                Ok(file)
            }
            Model::Real(name) => fonio_conformance::home::model(name).ok_or_else(|| {
                let folder = fonio_conformance::home::models();
                format!(
                    "{} is not there: `cargo xtask fetch models` gets it, or FONIO_MODELS names its folder",
                    folder.join(name).display()
                )
            }),
        }
    }
}

/// What a token takes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Bytes of weights that decoding reads for it.
    pub bytes: f64,
    /// Weights that prefill multiplies it with: the head is for the last token alone.
    pub weights: f64,
}

impl Load {
    /// Of a dense model.
    pub fn of(file: &Path) -> Result<Load, String> {
        let opened = fonio_checkpoint::open(file).map_err(|e| e.to_string())?;
        let matrices = || opened.tensors().iter().filter(|t| t.shape.len() > 1);
        let tied = opened.find("output.weight").is_none();
        // Of an embedding that is not the head as well, a token reads one row.
        let read = matrices().filter(|t| tied || t.name != "token_embd.weight");
        let layers = matrices().filter(|t| t.name.starts_with("blk."));
        Ok(Load { bytes: read.map(|t| t.nbytes as f64).sum(), weights: layers.map(|t| t.len() as f64).sum() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::synthetic::Shape;
    use super::*;

    fn is_known(case: &Case) -> bool {
        match case.model {
            Model::Made(shape) => {
                Shape::named(shape).is_some() && fonio_codec::DType::named(case.dtype).is_some()
            }
            Model::Real(name) => [super::super::SMOLLM2, super::super::GEMMA3].contains(&name),
        }
    }

    #[test]
    fn cases_have_names_of_their_own_and_models_that_can_be_had() {
        for case in CASES {
            assert_eq!(CASES.iter().filter(|c| c.name == case.name).count(), 1, "{}", case.name);
            assert!(is_known(case), "{}", case.name);
            for work in case.works {
                assert_eq!(WORKS.iter().filter(|w| w.name == work.name).count(), 1, "{}", work.name);
            }
        }
    }

    #[test]
    fn plain_numbers_have_a_target_of_their_own() {
        let target = |name: &str| CASES.iter().find(|c| c.name == name).unwrap().target(&DECODE);
        assert_eq!((target("llama-1b-F16"), target("llama-1b-Q4_0")), (1.0, 1.25));
    }

    #[test]
    fn models_made_up_fit_the_depth_and_load_what_they_should() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = CASES.iter().find(|c| c.name == "llama-tiny-Q4_0").unwrap();
        let load = Load::of(&tiny.file(folder.path()).unwrap()).unwrap();
        // Four of 512 × 512 and three of 512 × 1536 in 8 layers; the head has 2000 rows. Q4_0: 18 bytes for 32.
        let layers = 8.0 * (4.0 * 512.0 * 512.0 + 3.0 * 512.0 * 1536.0);
        assert_eq!(load, Load { bytes: (layers + 2000.0 * 512.0) * 18.0 / 32.0, weights: layers });
        for case in CASES.iter().filter(|c| c.works.iter().any(|w| w.depth > 0)) {
            let Model::Made(shape) = case.model else { panic!("{}: how long is its context?", case.name) };
            let context = Shape::named(shape).unwrap().context();
            assert!(case.works.iter().all(|w| w.depth + w.tokens <= context), "{}", case.name);
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let case = case("x", Model::Real("no such.gguf"), "Q4_0", SPEED, false);
        let reason = case.file(Path::new("/nonexistent")).unwrap_err();
        assert!(reason.contains("no such.gguf") && reason.contains("xtask fetch models"), "{reason}");
    }
}
