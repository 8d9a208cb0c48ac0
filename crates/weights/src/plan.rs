//! What is held and what is streamed under a budget.

use crate::Part;
use crate::read::PAGE;

/// A part's size in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sized {
    /// The part.
    pub part: Part,
    /// Bytes that it takes, held or streamed.
    pub nbytes: u64,
}

/// What is done with the parts of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parts that stay in memory.
    pub held: Vec<Sized>,
    /// Parts that every token reads, in order.
    pub streamed: Vec<Sized>,
    /// Experts, read when a token needs them.
    pub experts: Vec<Sized>,
    /// Places for streamed parts, and bytes of each.
    pub frames: (usize, u64),
    /// Places for experts, and bytes of each.
    pub expert_frames: (usize, u64),
    /// Bytes that compressed extents take until they are unpacked.
    pub scratch: u64,
}

/// Places that streaming needs: one is computed with while the other is read.
const FRAMES: usize = 2;

impl Plan {
    /// Bytes of memory that all of it takes.
    pub fn nbytes(&self) -> u64 {
        let held: u64 = self.held.iter().map(|p| p.nbytes).sum();
        let frames = |(n, size): (usize, u64)| n as u64 * size;
        held + frames(self.frames) + frames(self.expert_frames) + self.scratch
    }

    /// Bytes that all parts take with nothing streamed: of what [`crate::Weights::parts`] gives.
    pub fn total((parts, scratch): &(Vec<Sized>, u64)) -> u64 {
        parts.iter().map(|p| p.nbytes).sum::<u64>() + scratch
    }

    /// Bytes that every token reads, without its experts.
    pub fn streamed_bytes(&self) -> u64 {
        self.streamed.iter().map(|p| p.nbytes).sum()
    }

    /// Holds as much as `budget` bytes allow; `None` if it is too little to run at all: see [`Plan::least`].
    pub(crate) fn make(parts: &[Sized], scratch: u64, budget: u64) -> Option<Plan> {
        let kinds = Kinds::of(parts);
        let mut left = budget.checked_sub(sum(&kinds.shared) + scratch)?;
        let mut plan = Plan { held: kinds.shared, scratch, ..Plan::default() };
        let (dense, rest, experts) = (kinds.dense, kinds.rest, kinds.experts);
        let expert_size = largest(&experts);
        let expert_least = if experts.is_empty() { 0 } else { FRAMES as u64 * expert_size };
        let rest_least = FRAMES.min(rest.len()) as u64 * largest(&rest);
        if sum(&dense) + sum(&experts) + rest_least <= left {
            plan.held.extend(dense.iter().chain(&experts));
            plan.frames = (FRAMES.min(rest.len()), largest(&rest));
            plan.streamed = rest;
            return Some(plan);
        }
        if sum(&dense) + expert_least + rest_least <= left {
            left -= sum(&dense) + rest_least;
            plan.held.extend(&dense);
            plan.frames = (FRAMES.min(rest.len()), largest(&rest));
        } else {
            // A layer's rest is leased while the layer is.
            let (frames, size) =
                (FRAMES + usize::from(!rest.is_empty()), largest(&dense).max(largest(&rest)));
            left = left.checked_sub(frames as u64 * size + expert_least)?;
            plan.frames = (frames, size);
            left = plan.hold_some(&dense, left) + expert_least;
        }
        plan.streamed.extend(rest);
        plan.streamed.sort_by_key(|p| p.part.order());
        if let Some(n) = left.checked_div(expert_size) {
            plan.expert_frames = ((n as usize).min(experts.len()), expert_size);
            plan.experts = experts;
        }
        Some(plan)
    }

    /// Holds those for which there is place and streams the others; what is left of the place.
    fn hold_some(&mut self, parts: &[Sized], mut left: u64) -> u64 {
        let mut held = vec![false; parts.len()];
        // Spread, so that while the held ones are computed with, those between arrive.
        for i in spread(parts.len()) {
            if parts[i].nbytes <= left {
                left -= parts[i].nbytes;
                held[i] = true;
            }
        }
        for (part, held) in parts.iter().zip(held) {
            if held { &mut self.held } else { &mut self.streamed }.push(*part);
        }
        left
    }

    /// The fewest bytes that a model runs with.
    pub(crate) fn least(parts: &[Sized], scratch: u64) -> u64 {
        let mut high = parts.iter().map(|p| p.nbytes).sum::<u64>() + scratch;
        let mut low = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            match Plan::make(parts, scratch, middle) {
                Some(_) => high = middle,
                None => low = middle + 1,
            }
        }
        low
    }
}

/// Parts by what is done with them.
#[derive(Default)]
struct Kinds {
    shared: Vec<Sized>,
    dense: Vec<Sized>,
    rest: Vec<Sized>,
    experts: Vec<Sized>,
}

impl Kinds {
    fn of(parts: &[Sized]) -> Kinds {
        let mut kinds = Kinds::default();
        for part in parts {
            let to = match part.part {
                Part::Shared => &mut kinds.shared,
                Part::Layer(_) | Part::Head(_) => &mut kinds.dense,
                Part::Rest(_) => &mut kinds.rest,
                Part::Expert { .. } => &mut kinds.experts,
            };
            to.push(*part);
        }
        kinds
    }
}

impl Part {
    /// When a token needs it.
    fn order(self) -> (usize, usize, usize) {
        match self {
            Part::Shared => (0, 0, 0),
            Part::Layer(layer) => (1, layer, 0),
            Part::Rest(layer) => (1, layer, 1),
            Part::Expert { layer, expert } => (1, layer, 2 + expert),
            Part::Head(slice) => (2, slice, 0),
        }
    }
}

fn sum(parts: &[Sized]) -> u64 {
    parts.iter().map(|p| p.nbytes).sum()
}

fn largest(parts: &[Sized]) -> u64 {
    parts.iter().map(|p| p.nbytes).max().unwrap_or(0)
}

/// `0 .. n` in an order whose every beginning is spread over the whole.
fn spread(n: usize) -> impl Iterator<Item = usize> {
    let bits = usize::BITS - n.saturating_sub(1).leading_zeros();
    (0..1usize << bits)
        .map(move |i| if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) })
        .filter(move |&i| i < n)
}

/// Bytes that `len` bytes at any place in a file take with the pages around them.
pub(crate) fn paged(len: u64) -> u64 {
    (len + PAGE as u64).next_multiple_of(PAGE as u64) + PAGE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(n: usize, nbytes: u64) -> Vec<Sized> {
        (0..n).map(|i| Sized { part: Part::Layer(i), nbytes }).collect()
    }

    #[test]
    fn everything_is_held_where_it_fits_and_else_as_much_as_fits() {
        let parts = layers(10, 100);
        assert_eq!(Plan::least(&parts, 0), 200);
        assert_eq!(Plan::make(&parts, 0, 199), None);
        let plan = Plan::make(&parts, 0, 1000).unwrap();
        assert_eq!((plan.held.len(), plan.frames.0, plan.nbytes()), (10, 0, 1000));
        for budget in 200..1000 {
            let plan = Plan::make(&parts, 0, budget).unwrap();
            assert!(plan.nbytes() <= budget);
            assert_eq!(plan.held.len(), (budget as usize - 200) / 100);
            assert_eq!(plan.held.len() + plan.streamed.len(), 10);
        }
    }

    #[test]
    fn the_dense_part_goes_before_experts() {
        let mut parts = layers(4, 10);
        for layer in 0..4 {
            parts.extend((0..8).map(|expert| Sized { part: Part::Expert { layer, expert }, nbytes: 50 }));
        }
        let plan = Plan::make(&parts, 0, 40 + 7 * 50 + 3).unwrap();
        assert_eq!((plan.held.len(), plan.expert_frames), (4, (7, 50)));
        let plan = Plan::make(&parts, 0, 40 + 99).unwrap();
        assert_eq!((plan.streamed.len(), plan.expert_frames), (3, (2, 50)), "{plan:?}");
        assert_eq!(Plan::least(&parts, 0), 2 * 10 + 2 * 50);
        assert!(Plan::make(&parts, 0, 40 + 32 * 50).unwrap().experts.is_empty(), "all are held");
    }

    #[test]
    fn a_rest_is_streamed_whatever_is_held() {
        let mut parts = layers(4, 100);
        parts.extend((0..4).map(|i| Sized { part: Part::Rest(i), nbytes: 30 }));
        let plan = Plan::make(&parts, 0, 10_000).unwrap();
        assert_eq!((plan.held.len(), plan.streamed.len(), plan.frames), (4, 4, (2, 30)));
        let plan = Plan::make(&parts, 0, 450).unwrap();
        assert_eq!((plan.held.len(), plan.frames), (1, (3, 100)));
        let order: Vec<Part> = plan.streamed.iter().map(|p| p.part).collect();
        assert_eq!(order[..3], [Part::Rest(0), Part::Layer(1), Part::Rest(1)]);
    }

    #[test]
    fn beginnings_are_spread() {
        let order: Vec<usize> = spread(6).collect();
        assert_eq!(order, [0, 4, 2, 1, 5, 3]);
        for n in 0..40 {
            let mut all: Vec<usize> = spread(n).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..n));
        }
    }
}
