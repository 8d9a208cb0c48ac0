//! How many tokens to ask a drafter for.
//!
//! Guesses that come true are worth more of them, up to the limit that was given; a guess that is wrong from its first
//! token halves the next one. When single tokens are wrong too, some steps go without a guess, twice as many each time:
//! text that is not to be guessed costs one wasted row in [`LONGEST_PAUSE`] steps.

/// Tokens of the first guess.
const FIRST: usize = 4;
/// Most steps between two guesses.
const LONGEST_PAUSE: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Pace {
    most: usize,
    now: usize,
    /// Steps without a guess after the next wrong one.
    pause: usize,
    /// Those that are still to come.
    waiting: usize,
}

impl Pace {
    pub fn new(most: usize) -> Pace {
        Pace { most, now: most.min(FIRST), pause: 1, waiting: 0 }
    }

    /// How many tokens the next step may guess.
    pub fn asks_for(&mut self) -> usize {
        if self.waiting > 0 {
            self.waiting -= 1;
            return 0;
        }
        self.now
    }

    /// Learns from a guess of at least one token.
    pub fn saw(&mut self, guessed: usize, accepted: usize) {
        if accepted > 0 {
            self.pause = 1;
            self.now = if accepted == guessed { self.now * 2 } else { accepted + 1 };
            self.now = self.now.min(self.most);
        } else if self.now > 1 {
            self.now /= 2;
        } else {
            self.waiting = self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_true_makes_longer_guesses() {
        let mut pace = Pace::new(10);
        for want in [4, 8, 10, 10] {
            assert_eq!(pace.asks_for(), want);
            pace.saw(want, want);
        }
        pace.saw(10, 2);
        assert_eq!(pace.asks_for(), 3);
        assert_eq!(Pace::new(2).asks_for(), 2);
        assert_eq!(Pace::new(0).asks_for(), 0);
    }

    #[test]
    fn what_never_comes_true_is_hardly_asked_for() {
        let mut pace = Pace::new(16);
        let mut asked = 0;
        for _ in 0..1000 {
            let n = pace.asks_for();
            asked += n;
            if n > 0 {
                pace.saw(n, 0);
            }
        }
        assert!((1000 / 17..80).contains(&asked), "{asked}");
        while pace.asks_for() == 0 {}
        pace.saw(1, 1);
        assert_eq!((pace.asks_for(), pace.asks_for()), (2, 2), "it is listened to again");
    }
}
