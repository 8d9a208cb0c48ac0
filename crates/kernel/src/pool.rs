//! A pool of threads for work that takes microseconds.
//!
//! [`Pool::run`] gives one closure to all threads and returns when all have finished it. Threads spin for a short
//! while when they wait, because the next piece of work is usually microseconds away, and park after that.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Rounds of spinning before a thread parks: some tens of microseconds.
const SPINS: usize = 4_000;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts jobs; a worker runs one job for each step.
    epoch: AtomicUsize,
    /// The job of this epoch. Written only while no worker runs.
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished this epoch's job.
    busy: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// Who parked until `busy` is zero.
    caller: Mutex<Option<Thread>>,
    /// Whether there is somebody in `caller`: workers need not look if nobody parked.
    parked: AtomicBool,
}

// SAFETY: `job` is written by the one thread that holds `Pool::turn` while all workers wait, and is published to
// them by the release store of `epoch`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is followed only during `Pool::run`, which outlives that use.
unsafe impl Send for Shared {}

/// A fixed set of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// What [`Pool::each`] has left to do; whoever holds it gives work to the workers.
    turn: Mutex<Vec<Share>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] being one of them.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            caller: Mutex::new(None),
            parked: AtomicBool::new(false),
        });
        // A thread that the system refuses is done without: results don't depend on the number.
        let workers: Vec<_> = (1..threads.max(1))
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("fonio-{index}")).spawn(move || work(&shared, index)).ok()
            })
            .collect();
        let shares = (0..workers.len() + 1).map(|_| Share::default()).collect();
        Pool { shared, workers, turn: Mutex::new(shares) }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once on each thread, with the thread's index, and returns when all calls have returned. Panics if
    /// one panicked. Must not be called from inside `f`.
    pub fn run(&self, f: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            return f(0);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.dispatch(&f);
    }

    /// [`Pool::run`] for who holds `turn`.
    fn dispatch(&self, job: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes; no worker keeps the pointer beyond this call, which waits for all.
        let lasting: Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        // SAFETY: all workers have finished the last epoch (`busy` was zero), so nobody reads `job` now.
        unsafe { *self.shared.job.get() = Some(lasting) };
        self.shared.busy.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|w| w.thread().unpark());
        let mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.wait();
        let theirs = self.shared.panicked.swap(false, Ordering::Relaxed);
        match mine {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(!theirs, "a worker thread panicked"),
        }
    }

    /// Returns when all workers have finished the job.
    fn wait(&self) {
        let shared = &*self.shared;
        for _ in 0..SPINS {
            if shared.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        // With the same order for all threads, either the last worker sees this or this thread sees its `busy`.
        shared.parked.store(true, Ordering::SeqCst);
        while shared.busy.load(Ordering::SeqCst) != 0 {
            thread::park();
        }
        shared.parked.store(false, Ordering::Relaxed);
    }

    /// Splits `0..n` into pieces of at most `piece` and calls `f` for each. Each thread has a share of neighbours, whose
    /// pieces it takes from the front, so that it reads on where it was; when it has none left, it takes what is furthest
    /// from where others are. `state` makes what a thread keeps between its pieces.
    pub fn each<T>(
        &self,
        n: usize,
        piece: usize,
        state: impl Fn() -> T + Sync,
        f: impl Fn(&mut T, Range<usize>) + Sync,
    ) {
        // The numbers of pieces have 32 bits.
        let piece = piece.max(1).max(n.div_ceil(u32::MAX as usize));
        if n <= piece || self.workers.is_empty() {
            if n > 0 {
                let mut mine = state();
                (0..n).step_by(piece).for_each(|start| f(&mut mine, start..n.min(start + piece)));
            }
            return;
        }
        let (threads, pieces) = (self.threads(), n.div_ceil(piece));
        let begin = |thread: usize| thread as u64 * pieces as u64 / threads as u64;
        let shares = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for (thread, share) in shares.iter().enumerate() {
            // Published by the job's epoch.
            share.0.store(begin(thread) | begin(thread + 1) << 32, Ordering::Relaxed);
        }
        self.dispatch(&|thread| {
            let mut mine = None;
            let mut work = |at: usize| {
                f(mine.get_or_insert_with(&state), at * piece..n.min((at + 1) * piece));
            };
            while let Some(at) = shares[thread].take(true) {
                work(at);
            }
            for other in 1..threads {
                while let Some(at) = shares[(thread + other) % threads].take(false) {
                    work(at);
                }
            }
        });
    }
}

/// The pieces of a share that nobody took: the first in the lower half, the end in the upper one. On a cache line of its
/// own, because it is its thread's until others have nothing left.
#[repr(align(64))]
#[derive(Default)]
struct Share(AtomicU64);

impl Share {
    /// Takes a piece from the front or from the back.
    fn take(&self, front: bool) -> Option<usize> {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = (now & u64::from(u32::MAX), now >> 32);
            if first == end {
                return None;
            }
            let (next, taken) = if front { (now + 1, first) } else { (now - (1 << 32), end - 1) };
            // What pieces read and write is published by `run`, not by this.
            match self.0.compare_exchange_weak(now, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken as usize),
                Err(other) => now = other,
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panic was reported by `run`.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen {
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: `epoch` was stored after `job`, and `run` leaves `job` alone until `busy` is zero.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: `run` keeps the closure alive until `busy` is zero.
            let job = unsafe { &*job };
            if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        if shared.busy.fetch_sub(1, Ordering::SeqCst) == 1 && shared.parked.load(Ordering::SeqCst) {
            let caller = shared.caller.lock().unwrap_or_else(PoisonError::into_inner);
            caller.iter().for_each(Thread::unpark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_and_the_pool_is_reusable() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n in [0, 1, 2, 63, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.each(
                    n,
                    7,
                    || (),
                    |(), range| {
                        for i in range {
                            counts[i].fetch_add(1, Ordering::Relaxed);
                        }
                    },
                );
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_working() {
        let pool = Pool::new(2);
        for bad in 0..2 {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(|t| assert_ne!(t, bad))));
            assert!(caught.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(|t| {
            sum.fetch_add(t + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 3);
    }

    #[test]
    fn threads_that_parked_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.run(|_| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 2);
        }
    }
}
