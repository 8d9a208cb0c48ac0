//! Buffers that begin where a line of the cache does: a vector of 64 bytes that lies across two lines is two loads.

use std::ops::{Deref, DerefMut};

/// Bytes of a line.
const LINE: usize = 64;

/// A buffer of plain numbers, whose size divides a line's.
#[derive(Default)]
pub struct Lines<T> {
    all: Vec<T>,
    /// What is before the first line's beginning, and how many numbers there are from there on.
    skip: usize,
    len: usize,
}

impl<T: Copy + Default> Lines<T> {
    /// Makes room for `n` numbers. What is in there is anything.
    pub fn resize(&mut self, n: usize) {
        const { assert!(LINE.is_multiple_of(size_of::<T>())) };
        let more = LINE / size_of::<T>() - 1;
        if self.all.len() < n + more {
            // What was there need not be copied.
            self.all.clear();
            self.all.resize(n + more, T::default());
            self.skip = self.all.as_ptr().align_offset(LINE).min(more);
        }
        self.len = n;
    }
}

impl Lines<f32> {
    /// The bytes of the numbers.
    pub fn bytes(&self) -> &[u8] {
        let numbers: &[f32] = self;
        // SAFETY: these are the same places, and bytes have no alignment.
        unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
    }

    /// The bytes of the numbers, of which any are a number.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let numbers: &mut [f32] = self;
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.all[self.skip..self.skip + self.len]
    }
}

impl<T> DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.skip..self.skip + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_lines_whatever_their_length() {
        let (mut bytes, mut numbers) = (Lines::<u8>::default(), Lines::<f32>::default());
        assert!(bytes.is_empty() && numbers.is_empty());
        for n in [1, 1000, 7, 1 << 20, 0] {
            bytes.resize(n);
            numbers.resize(n);
            assert_eq!((bytes.len(), numbers.len()), (n, n));
            assert_eq!((bytes.as_ptr() as usize % LINE, numbers.as_ptr() as usize % LINE), (0, 0));
            bytes.fill(1);
            numbers.fill(2.0);
        }
    }
}
