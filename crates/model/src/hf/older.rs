//! GGUF files of older converters, seen as if they were of today's: what is one tensor now was several once. A view
//! stacks them by the architecture's rules, so that nothing behind it knows of them, and a file that is made of it is
//! one that today's programs read.

use super::names::{capture, fill};
use super::op::{self, Source};
use super::{Op, Rule, Targets};
use crate::Error;
use crate::arch;
use crate::view::View;
use fonio_checkpoint::Checkpoint;
use std::sync::Arc;

/// The checkpoint itself, or a view of it if it has names that only older files have.
pub(crate) fn renew(inner: Arc<dyn Checkpoint>) -> Result<Arc<dyn Checkpoint>, Error> {
    let name = inner.metadata().get("general.architecture").and_then(|v| v.as_str());
    let rules = name.and_then(arch::named).map_or(&[][..], |architecture| architecture.older);
    let older = |name: &str| rules.iter().find_map(|rule| Some((rule, capture(rule.0, name)?)));
    if !inner.tensors().iter().any(|info| older(&info.name).is_some()) {
        return Ok(inner);
    }
    let mut targets = Targets::default();
    for (at, info) in inner.tensors().iter().enumerate() {
        let (name, op, index) = match older(&info.name) {
            Some((Rule(_, to, op), numbers)) => (fill(to, &numbers), *op, numbers.last().copied()),
            None => (info.name.clone(), Op::Same, None),
        };
        let index = index.map_or(0, |n| n as usize);
        targets.add(name, Source { at, op, index, name: info.name.clone() });
    }
    let mut view = View::new(inner.clone(), inner.metadata().clone());
    for (name, sources) in targets.all {
        op::import(&mut view, name, &sources, &|_| None)?;
    }
    Ok(Arc::new(view))
}
