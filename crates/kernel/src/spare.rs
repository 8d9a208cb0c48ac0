//! Buffers that are used again: the system clears pages that it gives, which takes longer than to write them.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What nobody uses now.
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Default for Spare<T> {
    fn default() -> Self {
        Spare(Mutex::new(Vec::new()))
    }
}

impl<T: Default> Spare<T> {
    fn list(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was used before, with what is in it, or a new one. It comes back when it is dropped.
    pub fn lend(&self) -> Lent<'_, T> {
        Lent { from: self, what: self.list().pop().unwrap_or_default() }
    }
}

/// Most buffers that wait for use: a layer of a model needs fewer at once.
const MOST: usize = 16;

impl Spare<Vec<f32>> {
    /// A buffer of `n` values, which are anything.
    pub(crate) fn take(&self, n: usize) -> Vec<f32> {
        let mut list = self.list();
        let fits = (0..list.len()).filter(|&i| list[i].capacity() >= n);
        let best = fits.min_by_key(|&i| list[i].capacity()).map(|i| list.swap_remove(i));
        drop(list);
        match best {
            Some(mut buffer) => {
                buffer.resize(n, 0.0);
                buffer
            }
            None => vec![0.0; n],
        }
    }

    /// Keeps a buffer that nobody needs now; of too many, not the smallest one.
    pub(crate) fn put(&self, buffer: Vec<f32>) {
        let mut list = self.list();
        list.push(buffer);
        if list.len() > MOST
            && let Some(least) = (0..list.len()).min_by_key(|&i| list[i].capacity())
        {
            list.swap_remove(least);
        }
    }
}

/// One of them in use.
pub struct Lent<'a, T: Default> {
    from: &'a Spare<T>,
    what: T,
}

impl<T: Default> Deref for Lent<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.what
    }
}

impl<T: Default> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.what
    }
}

impl<T: Default> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        self.from.list().push(std::mem::take(&mut self.what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_lent_again() {
        let spare = Spare::<Vec<u8>>::default();
        {
            let (mut a, b) = (spare.lend(), spare.lend());
            a.resize(100, 7);
            assert!(b.is_empty());
        }
        let lent = [spare.lend(), spare.lend(), spare.lend()];
        let mut lengths = lent.each_ref().map(|v| v.len());
        lengths.sort_unstable();
        assert_eq!(lengths, [0, 0, 100]);
    }

    #[test]
    fn buffers_are_those_that_fit_best() {
        let spare = Spare::<Vec<f32>>::default();
        [100, 10, 1000].into_iter().for_each(|n| spare.put(Vec::with_capacity(n)));
        assert_eq!(
            (spare.take(11).capacity(), spare.take(5).capacity(), spare.take(5).capacity()),
            (100, 10, 1000)
        );
        assert_eq!(spare.take(7), [0.0; 7]);
        (0..2 * MOST).for_each(|n| spare.put(Vec::with_capacity(n + 1)));
        assert_eq!(spare.list().len(), MOST);
        assert!(spare.list().iter().any(|b| b.capacity() == 2 * MOST), "large ones stay");
    }
}
