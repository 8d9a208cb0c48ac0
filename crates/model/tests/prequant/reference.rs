//! What is read against what the formats' own libraries unpack.
//!
//! `conformance/prequant/generate.py` made the fixture and says what is in it.

use crate::memory::{Memory, assert_same, values};
use fonio_codec::DType;
use safetensors::SafeTensors;
use std::collections::BTreeSet;

const FIXTURE: &[u8] = include_bytes!("../../../../conformance/prequant/reference.safetensors");

#[test]
fn values_equal_those_of_the_formats_own_libraries() {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let (_, header) = SafeTensors::read_metadata(FIXTURE).unwrap();
    let configurations = &header.metadata().as_ref().unwrap()["configurations"];
    let configurations: serde_json::Value = serde_json::from_str(configurations).unwrap();
    let names: Vec<&str> = file.names();
    let cases: BTreeSet<&str> = names.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
    assert_eq!(cases.len(), 13);
    for case in cases {
        let mut m = Memory::new();
        let mut planes: Vec<&str> =
            names.iter().filter_map(|name| name.strip_prefix(case)?.strip_prefix('/')).collect();
        planes.sort_unstable();
        for plane in planes.into_iter().filter(|&plane| plane != "expected") {
            let tensor = file.tensor(&format!("{case}/{plane}")).unwrap();
            let dtype = DType::named(&tensor.dtype().to_string()).unwrap();
            m.add(plane, dtype, tensor.shape(), tensor.data().to_vec());
        }
        let view = m.open(configurations[case].clone());
        let view = view.unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(view.tensors().len(), 1, "{case}");
        let expected = file.tensor(&format!("{case}/expected")).unwrap();
        let shape: Vec<usize> = view.tensors()[0].shape.iter().map(|&n| n as usize).collect();
        assert_eq!(shape, expected.shape(), "{case}");
        let want: Vec<f32> =
            expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let got = values(view.as_ref(), "x.weight").1;
        // The sign of zero is not the formats' to say.
        let plain = |x: &[f32]| x.iter().map(|x| x + 0.0).collect::<Vec<f32>>();
        assert_same(&plain(&got), &plain(&want), case);
    }
}
