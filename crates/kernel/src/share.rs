//! One mutable slice, written by several threads at places that don't overlap.

use std::marker::PhantomData;

/// A slice whose parts are lent to threads.
pub(crate) struct Shared<'a, T> {
    at: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: `Shared` gives access to `T`s only through `part`, whose caller promises that parts don't overlap; that is
// what sending `&mut [T]` pieces to threads needs.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { at: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The part from `start` on.
    ///
    /// # Safety
    /// While the result lives, no other part that overlaps it does.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part out of bounds");
        // SAFETY: in bounds by the line above; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), len) }
    }
}
