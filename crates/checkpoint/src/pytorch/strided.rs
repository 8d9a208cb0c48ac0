//! Tensors that are not in row-major order: transposed, sliced, overlapping.

use crate::map::Source;
use crate::{Error, TensorInfo};

/// Bytes read at once.
const WINDOW: u64 = 1 << 20;

/// Where a tensor's values are in its storage, all inside; not empty.
pub(super) struct View {
    /// Bytes of a value.
    pub(super) item: u64,
    /// First value, counted from the beginning of the storage.
    pub(super) first: u64,
    /// For each dimension: its length and the distance of neighbours along it, in values.
    pub(super) dims: Vec<(u64, u64)>,
}

/// A dimension with its distances in bytes, in the storage and in row-major order.
#[derive(Clone, Copy)]
struct Axis {
    len: u64,
    from: u64,
    to: u64,
}

impl View {
    /// Whether the strides are those of row-major order.
    pub(super) fn is_row_major(dims: &[(u64, u64)]) -> bool {
        let mut expected = 1u64;
        for &(len, stride) in dims.iter().rev() {
            if len != 1 && stride != expected {
                return false;
            }
            expected = expected.saturating_mul(len);
        }
        true
    }

    /// Copies the values into row-major order. The storage is passed once, window by window, in its own order: the
    /// dimensions are sorted by stride. Values that overlap have no such order; then the whole part of the storage is
    /// read.
    pub(super) fn gather(&self, source: &Source, info: &TensorInfo) -> Result<Vec<u8>, Error> {
        let no_memory = || Error::Limit {
            file: source.path().into(),
            tensor: Some(info.name.clone()),
            reason: format!("no memory for {} bytes", info.nbytes),
        };
        let mut axes = self.axes();
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.from));
        let span = axes
            .iter()
            .fold(self.item, |sum, a| sum.saturating_add(a.from.saturating_mul(a.len.saturating_sub(1))));
        let window = if overlaps(&axes, self.item) { span } else { span.min(WINDOW.max(self.item)) };
        let begin = info.offset.saturating_add(self.first.saturating_mul(self.item));
        let mut out = Vec::new();
        let size = usize::try_from(info.nbytes).map_err(|_| no_memory())?;
        out.try_reserve_exact(size).map_err(|_| no_memory())?;
        out.resize(size, 0);
        let mut bytes =
            Window { source, end: begin.saturating_add(span), size: window, at: begin, bytes: Vec::new() };
        let item = usize::try_from(self.item).map_err(|_| no_memory())?;
        let mut counters = vec![0u64; axes.len()];
        loop {
            let place = |distance: fn(&Axis) -> u64| {
                counters
                    .iter()
                    .zip(&axes)
                    .fold(0u64, |sum, (&n, axis)| sum.saturating_add(distance(axis).saturating_mul(n)))
            };
            let (from, to) = (place(|a| a.from), place(|a| a.to));
            let to = usize::try_from(to).map_err(|_| no_memory())?;
            if let Some(dst) = out.get_mut(to..).and_then(|d| d.get_mut(..item)) {
                dst.copy_from_slice(bytes.get(begin.saturating_add(from), self.item)?);
            }
            if !count_up(&mut counters, &axes) {
                return Ok(out);
            }
        }
    }

    fn axes(&self) -> Vec<Axis> {
        let mut to = self.item;
        let mut axes: Vec<Axis> = Vec::with_capacity(self.dims.len());
        for &(len, stride) in self.dims.iter().rev() {
            axes.push(Axis { len, from: stride.saturating_mul(self.item), to });
            to = to.saturating_mul(len);
        }
        axes.retain(|axis| axis.len > 1);
        axes.reverse();
        axes
    }
}

/// Whether going through the axes, sorted by stride, the largest first, ever goes back in the storage.
fn overlaps(axes: &[Axis], item: u64) -> bool {
    let mut inner = 0u64;
    for axis in axes.iter().rev() {
        if axis.from < inner.saturating_add(item) {
            return true;
        }
        inner = inner.saturating_add(axis.from.saturating_mul(axis.len.saturating_sub(1)));
    }
    false
}

/// The next combination, the last axis fastest; `false` after the last one.
fn count_up(counters: &mut [u64], axes: &[Axis]) -> bool {
    for (n, axis) in counters.iter_mut().zip(axes).rev() {
        *n = n.saturating_add(1);
        if *n < axis.len {
            return true;
        }
        *n = 0;
    }
    false
}

/// The part of a file that was read last.
struct Window<'a> {
    source: &'a Source,
    end: u64,
    size: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    fn get(&mut self, at: u64, len: u64) -> Result<&[u8], Error> {
        let (from, to) = (at.saturating_sub(self.at), at.saturating_add(len).saturating_sub(self.at));
        if at < self.at || to > self.bytes.len() as u64 {
            let size = self.size.min(self.end.saturating_sub(at));
            self.bytes = Vec::new();
            self.bytes = self.source.read_vec(at, size)?;
            self.at = at;
            return Ok(self.bytes.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default());
        }
        let range = usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(to).unwrap_or(usize::MAX);
        Ok(self.bytes.get(range).unwrap_or_default())
    }
}
