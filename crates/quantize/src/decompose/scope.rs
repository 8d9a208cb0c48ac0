//! Which tensors become sums, and the matrices that they are: a tensor of two dimensions is one, a stack of experts as
//! many as it has experts, each a sum by itself.

use crate::convert::{Override, Plan};
use fonio_checkpoint::TensorPlan;
use fonio_codec::{DType, list};

/// A matrix of a planned tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    /// The tensor's place in the plan.
    pub tensor: usize,
    /// Which one of a stack it is; 0 of all others.
    pub matrix: u16,
}

impl Scope {
    /// The matrices of a tensor.
    pub(super) fn all(plan: &Plan, tensor: usize) -> impl Iterator<Item = Scope> {
        let n = plan.tensors.get(tensor).map_or(0, matrices);
        (0..n).filter_map(move |matrix| Some(Scope { tensor, matrix: u16::try_from(matrix).ok()? }))
    }

    /// The seed of its random numbers.
    pub(super) fn seed(self, seed: u64) -> u64 {
        let (tensor, matrix) = (self.tensor as u64, u64::from(self.matrix));
        seed ^ tensor.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ matrix.wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}

/// Most matrices of a stack, as CAWSF numbers them.
const MOST: u64 = 1 << 16;

/// How many matrices a tensor is: the first of three dimensions.
fn matrices(tensor: &TensorPlan) -> u64 {
    if let [n, _, _] = tensor.shape[..] { n } else { 1 }
}

/// Values of one matrix of a tensor.
pub(super) fn values(tensor: &TensorPlan) -> u64 {
    tensor.shape.iter().product::<u64>() / matrices(tensor).max(1)
}

/// Numbers of the planned tensors that become sums: weights of layers' products, which no override is for, and stacks of
/// experts' weights. Of a checkpoint that is no model (`known` is false) these are all matrices of plain numbers.
pub fn scopes(
    plan: &Plan,
    known: bool,
    overrides: &[Override],
    max_layers: u64,
    max_elems: u64,
) -> Vec<usize> {
    let fits = |t: &TensorPlan| {
        let (n, layer) = (values(t), layer(&t.name));
        let stack = t.shape.len() == 3 && t.name.contains("_exps.") && t.shape[0] <= MOST;
        let wanted = match known {
            true => {
                (t.shape.len() == 2 || stack)
                    && t.name.starts_with("blk.")
                    && fonio_model::is_product_weight(&t.name, &t.shape)
            }
            false => t.shape.len() == 2 && FLOATS.contains(&t.dtype),
        };
        wanted
            && n > 0
            && (max_elems == 0 || n <= max_elems)
            && (max_layers == 0 || layer.is_none_or(|layer| layer < max_layers))
            && !overrides.iter().any(|o| o.is_for(&t.name))
    };
    (0..plan.tensors.len()).filter(|at| fits(&plan.tensors[*at])).collect()
}

/// How many matrices these tensors are.
pub fn count(plan: &Plan, tensors: &[usize]) -> usize {
    tensors.iter().map(|at| Scope::all(plan, *at).count()).sum()
}

const FLOATS: [DType; 4] = [list::F32, list::F16, list::BF16, list::F64];

/// The first number in a name that stands for itself between dots: the layer.
fn layer(name: &str) -> Option<u64> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// What a tensor is in its layer: its name without the layer's number.
pub(super) fn role(name: &str) -> String {
    let mut numbered = false;
    let part = |part: &str| {
        let first = !numbered && part.parse::<u64>().is_ok();
        numbered |= first;
        if first { "#".to_owned() } else { part.to_owned() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
