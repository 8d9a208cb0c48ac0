//! The merging loop that both kinds of BPE share: O(n log n) in the length of the text.
//!
//! A text starts as one symbol a character. Of all neighbours that may merge, the pair with the lowest rank does,
//! the leftmost of equals; until none may. Symbols are a doubly linked list over the text's bytes; candidate pairs
//! wait in a queue, and one whose symbols have changed since is recognised by its length and dropped.
//!
//! Source: Sennrich et al. 2016 (BPE), Kudo and Richardson 2018 (SentencePiece: the same loop, ordered by score).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

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

/// A pair that may merge: rank, then position (the queue's order), and the bytes of both symbols.
type Candidate = (u32, u32, u32);

/// A priority queue that is fast where candidates come in order, as they do in a long run of one character: such
/// sequences wait in sorted runs, at constant cost each and without jumping through memory; only the rest is in a heap.
#[derive(Default)]
struct Queue {
    runs: [VecDeque<Candidate>; 6],
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Queue {
    fn clear(&mut self) {
        self.runs.iter_mut().for_each(VecDeque::clear);
        self.heap.clear();
    }

    fn push(&mut self, candidate: Candidate) {
        match self.runs.iter_mut().find(|run| run.back().is_none_or(|&last| last <= candidate)) {
            Some(run) => run.push_back(candidate),
            None => self.heap.push(Reverse(candidate)),
        }
    }

    fn pop(&mut self) -> Option<Candidate> {
        let best = self.runs.iter_mut().filter(|run| !run.is_empty()).min_by_key(|run| run.front().copied());
        match (best, self.heap.peek()) {
            (Some(run), Some(top)) if run.front() > Some(&top.0) => self.heap.pop().map(|c| c.0),
            (Some(run), _) => run.pop_front(),
            (None, _) => self.heap.pop().map(|c| c.0),
        }
    }
}

/// The loop's memory, kept between the words of one text.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    queue: Queue,
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
        self.queue.clear();
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
        while let Some((_, left, size)) = self.queue.pop() {
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
            self.queue.push((rank, left, size));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges by looking at all pairs each time.
    fn naive(text: &str, ranks: &impl Ranks) -> Vec<String> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let pair = |i: usize| {
                ranks.rank(&format!("{}{}", parts[i], parts[i + 1]), parts[i].len()).map(|r| (r, i))
            };
            let Some((_, i)) = (0..parts.len().saturating_sub(1)).filter_map(pair).min() else {
                return parts;
            };
            let right = parts.remove(i + 1);
            parts[i].push_str(&right);
        }
    }

    /// Pairs merge if their text hashes to a low number, up to eight characters: many ties, all orders.
    struct Hashed(u32);

    impl Ranks for Hashed {
        fn rank(&self, both: &str, split: usize) -> Option<u32> {
            let hash = both.bytes().fold(self.0, |h, b| h.wrapping_mul(31).wrapping_add(b.into())) >> 3;
            (both.len() <= 8 && !(hash + split as u32).is_multiple_of(3)).then_some(hash % 7)
        }
    }

    #[test]
    fn as_looking_at_all_pairs() {
        let mut state = 1u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        let mut merger = Merger::default();
        for round in 0..500 {
            let letters = 1 + random(3);
            let text: String = (0..random(60)).map(|_| char::from(b'a' + random(letters) as u8)).collect();
            let ranks = Hashed(round);
            let mut ours = Vec::new();
            let add = |piece: &str| {
                ours.push(piece.to_owned());
                Ok(())
            };
            merger.run(&text, &ranks, add).unwrap();
            assert_eq!(ours, naive(&text, &ranks), "{text}");
        }
    }
}
