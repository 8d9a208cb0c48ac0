//! Memory that is used again: the system clears each fresh page, which takes longer than to fill it.

use std::sync::{Mutex, PoisonError};

/// Vectors that nobody uses now.
pub(crate) struct Spare<T>(Mutex<Vec<Vec<T>>>);

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Spare(Mutex::new(Vec::new()))
    }
}

impl<T: Copy + Default> Spare<T> {
    /// A vector of this length; what is in it is anything.
    pub(crate) fn take(&self, len: usize) -> Vec<T> {
        let mut vector = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        vector.resize(len, T::default());
        vector
    }

    pub(crate) fn give(&self, vector: Vec<T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(vector);
    }
}
