//! The merging loop that both kinds of BPE share: O(n log n) in the length of the text.
//!
//! A text starts as one symbol a character. Of all neighbours that may merge, the pair with the lowest rank does,
//! the leftmost of equals; until none may. Symbols are a doubly linked list over the text's bytes; candidate pairs
//! wait in a heap, and one whose symbols have changed since is recognised by its length and dropped.
//!
//! Source: Sennrich et al. 2016 (BPE), Kudo and Richardson 2018 (SentencePiece: the same loop, ordered by score).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Error;

/// Says whether two neighbouring strings merge, and how early: lower ranks first.
pub(crate) trait Ranks {
    /// `both` is the two strings together, `split` the length of the left one.
    fn rank(&self, both: &str, split: usize) -> Option<u32>;
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// In bytes; 0 once merged into its left neighbour.
    len: u32,
    prev: u32,
    next: u32,
}

/// A pair that may merge: rank, then position (the heap's order), and the bytes of both symbols.
type Candidate = Reverse<(u32, u32, u32)>;

/// The loop's memory, kept between the words of one text.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

/// Texts are cut into 32-bit positions.
pub(crate) const MAX_TEXT: usize = 1 << 30;

impl Merger {
    /// Merges `text` and gives its final pieces to `emit`, left to right.
    pub(crate) fn run(
        &mut self,
        text: &str,
        ranks: &impl Ranks,
        mut emit: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::Limit { what: "the text", value: text.len() as u64, limit: MAX_TEXT as u64 });
        }
        self.symbols.clear();
        self.heap.clear();
        for (i, (start, c)) in text.char_indices().enumerate() {
            let i = i as u32;
            let len = c.len_utf8() as u32;
            self.symbols.push(Symbol { start: start as u32, len, prev: i.wrapping_sub(1), next: i + 1 });
        }
        match self.symbols.last_mut() {
            Some(last) => last.next = NONE,
            None => return Ok(()),
        }
        for left in 0..self.symbols.len() as u32 {
            self.offer(text, ranks, left);
        }
        while let Some(Reverse((_, left, size))) = self.heap.pop() {
            self.join(text, ranks, left, size);
        }
        let mut at = 0;
        while let Some(symbol) = self.get(at) {
            emit(slice(text, symbol.start, symbol.len))?;
            at = symbol.next;
        }
        Ok(())
    }

    fn get(&self, at: u32) -> Option<Symbol> {
        self.symbols.get(at as usize).copied()
    }

    /// Puts the pair of `left` and its right neighbour on the heap, if it may merge.
    fn offer(&mut self, text: &str, ranks: &impl Ranks, left: u32) {
        let Some(l) = self.get(left) else { return };
        let Some(r) = self.get(l.next) else { return };
        let size = l.len + r.len;
        if let Some(rank) = ranks.rank(slice(text, l.start, size), l.len as usize) {
            self.heap.push(Reverse((rank, left, size)));
        }
    }

    /// Merges `left` with its neighbour, unless the candidate of `size` bytes is out of date. The size settles it:
    /// symbols only grow, so the same left symbol with the same total means the same pair.
    fn join(&mut self, text: &str, ranks: &impl Ranks, left: u32, size: u32) {
        let Some(l) = self.get(left) else { return };
        let Some(r) = self.get(l.next) else { return };
        if l.len == 0 || l.len + r.len != size {
            return;
        }
        if let Some(gone) = self.symbols.get_mut(l.next as usize) {
            gone.len = 0;
        }
        if let Some(after) = self.symbols.get_mut(r.next as usize) {
            after.prev = left;
        }
        if let Some(kept) = self.symbols.get_mut(left as usize) {
            kept.len = size;
            kept.next = r.next;
        }
        if l.prev != NONE {
            self.offer(text, ranks, l.prev);
        }
        self.offer(text, ranks, left);
    }
}

fn slice(text: &str, start: u32, len: u32) -> &str {
    text.get(start as usize..start as usize + len as usize).unwrap_or("")
}
