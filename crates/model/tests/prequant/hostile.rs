//! Files that are wrong: always an error that says where, never a panic.

use crate::memory::{Memory, Random};
use crate::pack::Weight;
use fonio_checkpoint::Error as FileError;
use fonio_codec::{DType, list};
use fonio_model::Error;
use proptest::prelude::*;
use serde_json::{Value, json};

fn gptq_config() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false, "desc_act": true})
}

fn gptq_model() -> Memory {
    let mut m = Memory::new();
    Weight::random(&mut Random(1), (32, 64, 4), 32, None).gptq(&mut m, "x", list::F16, 1, true);
    m
}

fn compressed_config() -> Value {
    json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": false}}},
    })
}

fn compressed_model() -> Memory {
    let mut m = Memory::new();
    Weight::random(&mut Random(2), (32, 64, 4), 32, None).compressed(&mut m, "x", list::BF16, true);
    m
}

fn mxfp4_model() -> Memory {
    let mut m = Memory::new();
    m.add("x_blocks", list::U8, &[2, 3, 2, 16], vec![7; 192]);
    m.add("x_scales", list::U8, &[2, 3, 2], vec![127; 12]);
    m
}

fn fp8_config() -> Value {
    json!({"quant_method": "fp8", "weight_block_size": [16, 16]})
}

fn fp8_model() -> Memory {
    let mut m = Memory::new();
    m.add("x.weight", list::F8_E4M3, &[20, 40], vec![7; 800]);
    m.floats("x.weight_scale_inv", list::F32, &[2, 3], &[1.5; 6]);
    m
}

/// All models with their configurations.
fn all() -> Vec<(Memory, Value)> {
    let mut awq = Memory::new();
    Weight::random(&mut Random(3), (32, 64, 4), 32, None).awq(&mut awq, "x");
    vec![
        (gptq_model(), gptq_config()),
        (awq, json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})),
        (compressed_model(), compressed_config()),
        (fp8_model(), fp8_config()),
        (mxfp4_model(), json!({"quant_method": "mxfp4"})),
    ]
}

/// The error of a model.
fn error(m: &Memory, config: Value) -> Error {
    m.open(config).err().unwrap_or_else(|| panic!("no error"))
}

#[test]
fn every_plane_is_needed() {
    for (m, config) in all() {
        assert!(m.open(config.clone()).is_ok());
        // The first plane is what says that there is a module.
        for gone in 1..m.tensors.len() {
            let mut less = m.clone();
            let name = less.tensors.remove(gone).name;
            less.data.remove(gone);
            let error = less.open(config.clone()).err().unwrap_or_else(|| panic!("{name} is missing"));
            let text = error.to_string();
            let named = matches!(&error, Error::MissingTensor { tensor, .. } if *tensor == name);
            assert!(named || name.ends_with("zero_point"), "{text}");
            assert!(text.contains("model.safetensors"), "{text}");
        }
    }
}

#[test]
fn every_plane_has_its_type_and_shape() {
    for (m, config) in all() {
        for at in 0..m.tensors.len() {
            let mut wrong = m.clone();
            let dtype = wrong.tensors[at].dtype;
            let other = match dtype.block_bytes() {
                1 => list::BOOL,
                8 => list::F64,
                2 => list::I16,
                _ if dtype == list::I32 => list::F32,
                _ => list::I32,
            };
            wrong.tensors[at].dtype = other;
            // A weight of another type is no module, so what was beside it is left over.
            match wrong.open(config.clone()) {
                Ok(view) => assert!(at == 0 && view.tensors().len() == m.tensors.len(), "{config} {at}"),
                Err(error) => check_names(&error, &m),
            }
            for change in 0..4 {
                let mut wrong = m.clone();
                let shape = &mut wrong.tensors[at].shape;
                match change {
                    0 => shape.iter_mut().for_each(|n| *n *= 2),
                    1 => shape.iter_mut().for_each(|n| *n = 0),
                    2 => shape.push(2),
                    _ => drop(shape.pop()),
                }
                check_names(&error(&wrong, config.clone()), &m);
            }
        }
    }
}

/// The error names the file and one of the tensors.
fn check_names(error: &Error, m: &Memory) {
    let text = error.to_string();
    assert!(text.contains("model.safetensors"), "{text}");
    assert!(m.tensors.iter().any(|t| text.contains(&t.name)), "{text}");
}

#[test]
fn maps_name_groups_that_are_there() {
    for bad in [-1, 2, i32::MAX, i32::MIN] {
        let mut m = gptq_model();
        m.data[3][4..8].copy_from_slice(&bad.to_le_bytes());
        let error = error(&m, gptq_config());
        assert!(
            matches!(&error, Error::Checkpoint(FileError::Corrupt { tensor: Some(t), .. }) if t == "x.g_idx")
        );
    }
}

#[test]
fn sizes_that_overflow() {
    for (m, config) in all() {
        for at in 0..m.tensors.len() {
            for dim in 0..m.tensors[at].shape.len() {
                for huge in [1 << 31, 1 << 62, u64::MAX, u64::MAX / 32] {
                    let mut wrong = m.clone();
                    wrong.tensors[at].shape[dim] = huge;
                    check_names(&error(&wrong, config.clone()), &m);
                }
            }
        }
    }
    // Both planes agree, and their product is beyond everything.
    let mut m = mxfp4_model();
    (m.tensors[0].shape[0], m.tensors[1].shape[0]) = (u64::MAX / 3, u64::MAX / 3);
    check_names(&error(&m, json!({"quant_method": "mxfp4"})), &m);
    let mut m = compressed_model();
    m.data[1] = [i64::MAX, -1].iter().flat_map(|n| n.to_le_bytes()).collect();
    check_names(&error(&m, compressed_config()), &m);
    m.data[1] = [32, i64::MAX].iter().flat_map(|n| n.to_le_bytes()).collect();
    check_names(&error(&m, compressed_config()), &m);
}

#[test]
fn two_tensors_with_one_meaning() {
    let mut m = gptq_model();
    m.floats("x.weight", list::F16, &[1], &[1.0]);
    assert!(error(&m, gptq_config()).to_string().contains("x.weight"));
    let mut m = fp8_model();
    m.floats("x.weight_scale", list::F32, &[1], &[1.0]);
    assert!(error(&m, fp8_config()).to_string().contains("x.weight_scale"));
}

#[test]
fn what_is_unknown_is_named() {
    let change = |config: &Value, key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    let gptq = gptq_config();
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 32});
    let compressed = compressed_config();
    let fp8 = fp8_config();
    let weights = |key: &str, value: Value| {
        let mut config = compressed_config();
        config["config_groups"]["group_0"]["weights"][key] = value;
        config
    };
    let mut preset = compressed.clone();
    preset["config_groups"]["group_0"] = json!(["Linear"]);
    for (config, named) in [
        (json!({}), "quant_method"),
        (json!({"quant_method": "bitsandbytes"}), "bitsandbytes"),
        (json!({"quant_method": 4}), "quant_method"),
        (change(&gptq, "checkpoint_format", json!("marlin")), "marlin"),
        (change(&gptq, "format", json!("bitblas")), "bitblas"),
        (change(&gptq, "bits", json!(5)), "bits"),
        (change(&gptq, "bits", json!(null)), "bits"),
        (change(&gptq, "group_size", json!(0)), "group_size"),
        (change(&gptq, "group_size", json!(-2)), "group_size"),
        (change(&gptq, "group_size", json!("x")), "group_size"),
        (change(&gptq, "group_size", json!(null)), "group_size"),
        (change(&gptq, "is_marlin_format", json!(true)), "is_marlin_format"),
        (change(&gptq, "rotation", json!("hadamard")), "rotation"),
        (change(&gptq, "pack_dtype", json!("int16")), "int16"),
        (change(&gptq, "dynamic", json!({"+:.*": {"bits": 8}})), "dynamic"),
        (change(&awq, "version", json!("GEMV")), "GEMV"),
        (change(&awq, "version", json!("gemv_fast")), "gemv_fast"),
        (change(&awq, "version", json!("exllama")), "exllama"),
        (change(&awq, "format", json!("marlin")), "marlin"),
        (change(&awq, "backend", json!("llm-awq")), "llm-awq"),
        (change(&awq, "bits", json!(8)), "bits"),
        (change(&fp8, "expert_dtype", json!("fp4")), "fp4"),
        (change(&fp8, "weight_block_size", json!([128])), "weight_block_size"),
        (change(&fp8, "weight_block_size", json!([0, 1])), "weight_block_size"),
        (change(&fp8, "quantum", json!(1)), "quantum"),
        (json!({"quant_method": "mxfp4", "rotate": true}), "rotate"),
        (change(&compressed, "format", json!("nvfp4-pack-quantized")), "nvfp4-pack-quantized"),
        (change(&compressed, "format", json!("marlin-24")), "marlin-24"),
        (change(&compressed, "format", json!("int-quantized")), "num_bits"),
        (change(&compressed, "config_groups", json!(null)), "config_groups"),
        (change(&compressed, "sparsity_config", json!({"format": "sparse-24-bitmask"})), "sparsity_config"),
        (change(&compressed, "transform_config", json!({"config_groups": 1})), "transform_config"),
        (preset, "group_0"),
        (weights("num_bits", json!(3)), "num_bits"),
        (weights("num_bits", json!(8)), "x.weight_packed"),
        (weights("group_size", json!(64)), "x.weight_packed"),
        (weights("strategy", json!("tensor_group")), "tensor_group"),
        (weights("type", json!("uint")), "uint"),
        (weights("dynamic", json!(true)), "dynamic"),
    ] {
        let m =
            if config["quant_method"] == "compressed-tensors" { compressed_model() } else { gptq_model() };
        let text = error(&m, config.clone()).to_string();
        assert!(text.contains(named), "{config}: {text}");
    }
}

#[test]
fn a_file_that_changes_after_it_was_opened() {
    // The zero points were those of Q4_0; then they are not.
    struct Changing(Memory, std::sync::atomic::AtomicBool);
    impl fonio_checkpoint::Checkpoint for Changing {
        fn container(&self) -> &'static str {
            "memory"
        }
        fn files(&self) -> &[std::path::PathBuf] {
            self.0.files()
        }
        fn metadata(&self) -> &fonio_checkpoint::Metadata {
            self.0.metadata()
        }
        fn tensors(&self) -> &[fonio_checkpoint::TensorInfo] {
            self.0.tensors()
        }
        fn find(&self, name: &str) -> Option<usize> {
            self.0.find(name)
        }
        fn bytes(&self, tensor: usize) -> Result<std::borrow::Cow<'_, [u8]>, FileError> {
            self.0.bytes(tensor)
        }
        fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
            self.0.read(tensor, offset, dst)?;
            if self.1.load(std::sync::atomic::Ordering::Relaxed) {
                dst.fill(if tensor == 0 { 0xff } else { 0 });
            }
            Ok(())
        }
    }
    let mut m = Memory::new();
    Weight::random(&mut Random(1), (32, 64, 4), 32, Some(8)).awq(&mut m, "x");
    let changing = std::sync::Arc::new(Changing(m, false.into()));
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 32});
    let config = fonio_model::keys::Config::of(std::path::Path::new("config.json"), config);
    let view = fonio_model::prequant::open(changing.clone(), &config).unwrap();
    assert_eq!(view.tensors()[0].dtype, list::Q4_0);
    changing.1.store(true, std::sync::atomic::Ordering::Relaxed);
    // 15 less 0 is beyond Q4_0.
    let error = view.bytes(0).unwrap_err();
    assert!(matches!(&error, FileError::Corrupt { tensor: Some(t), .. } if t == "x.qweight"), "{error}");
}

const TYPES: &[DType] = &[
    list::I32,
    list::F16,
    list::U8,
    list::I8,
    list::F8_E4M3,
    list::F32,
    list::I64,
    list::BF16,
    list::F8_E8M0,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Tensors of any type and shape under the names that methods look for, with any content.
    #[test]
    fn nothing_panics(
        seed: u64, model in 0usize..5, changes in prop::collection::vec((any::<usize>(), 0usize..9, any::<usize>()), 1..4),
    ) {
        let (mut m, config) = all().swap_remove(model);
        let mut random = Random(seed);
        for (at, dtype, dim) in changes {
            let at = at % m.tensors.len();
            let info = &mut m.tensors[at];
            if dim % 3 == 0 {
                info.dtype = TYPES[dtype];
            } else if !info.shape.is_empty() {
                let dims = info.shape.len();
                info.shape[dim % dims] = [0, 1, 2, 8, 16, 32, 64, 96][random.below(8)];
            }
            info.nbytes = info.len() * info.dtype.block_bytes() as u64;
            m.data[at] = (0..info.nbytes).map(|_| random.next() as u8).collect();
        }
        if let Ok(view) = m.open(config) {
            for at in 0..view.tensors().len() {
                if let Ok(bytes) = view.bytes(at) {
                    prop_assert_eq!(bytes.len() as u64, view.tensors()[at].nbytes);
                }
            }
        }
    }
}
