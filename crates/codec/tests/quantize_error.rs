//! The error of every quantizer on real weights, against that of ggml's.
//!
//! `conformance/codec/quantize_mse.py` made the sample and ggml's figures and says what is in them.

use fonio_codec::{DType, list};
use fonio_simd::Isa;
use safetensors::SafeTensors;
use serde_json::Value;

const SAMPLE: &[u8] = include_bytes!("../../../conformance/codec/sample.safetensors");
const GGML: &str = include_str!("../../../conformance/codec/ggml_mse.json");

fn quantizers() -> impl Iterator<Item = DType> {
    list::ALL.iter().copied().filter(|t| t.is_quantized() && t.can_quantize())
}

fn tensor(name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(SAMPLE).unwrap();
    let view = file.tensor(name).unwrap();
    let dtype = if view.dtype() == safetensors::Dtype::F16 { list::F16 } else { list::F32 };
    let mut values = vec![0.0; view.shape().iter().product()];
    dtype.dequantize(Isa::scalar(), view.data(), &mut values).unwrap();
    values
}

/// The sum of squared errors of a round trip, weighted if weights are given.
fn error(dtype: DType, values: &[f32], importance: Option<&[f32]>) -> f64 {
    let mut packed = vec![0; dtype.bytes_for(values.len() as u64).unwrap() as usize];
    let mut unpacked = vec![0.0; values.len()];
    dtype.quantize(Isa::detect(), values, importance, &mut packed).unwrap();
    dtype.dequantize(Isa::detect(), &packed, &mut unpacked).unwrap();
    let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
    let squares = values.iter().zip(&unpacked).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    squares.enumerate().map(|(i, square)| weight(i) * square).sum()
}

#[test]
fn error_on_real_weights_is_no_larger_than_that_of_ggml() {
    let ggml: Value = serde_json::from_str(GGML).unwrap();
    let importance = tensor("importance");
    for source in ["minilm", "smollm2"] {
        let values = tensor(source);
        for dtype in quantizers().filter(|t| t.ggml_type().is_some()) {
            let want = &ggml[source][dtype.name()];
            let plain = error(dtype, &values, None);
            let weighted = error(dtype, &values, Some(&importance));
            assert!(plain <= want[0].as_f64().unwrap(), "{source} {dtype}: {plain} > {want}");
            assert!(weighted <= want[1].as_f64().unwrap(), "{source} {dtype}, weighted: {weighted} > {want}");
        }
    }
}

#[test]
fn importance_lowers_the_weighted_error() {
    let (values, importance) = (tensor("minilm"), tensor("importance"));
    for dtype in quantizers() {
        let mut packed = vec![0; dtype.bytes_for(values.len() as u64).unwrap() as usize];
        let mut unpacked = vec![0.0; values.len()];
        dtype.quantize(Isa::detect(), &values, None, &mut packed).unwrap();
        dtype.dequantize(Isa::detect(), &packed, &mut unpacked).unwrap();
        let squares = values.iter().zip(&unpacked).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        let blind: f64 =
            squares.enumerate().map(|(i, e)| f64::from(importance[i % importance.len()]) * e).sum();
        let informed = error(dtype, &values, Some(&importance));
        // The scales of MXFP4 are powers of two: there may be nothing to choose.
        assert!(
            informed < blind || (dtype.name() == "MXFP4" && informed <= blind),
            "{dtype}: {informed} {blind}"
        );
    }
}
