//! Threaded operations over borrowed views: matrix products, attention, recurrent scans, normalization, rotary
//! embedding.
//!
//! Operations take plain slices: activations are row-major `f32`, one row for each token; weights are a [`Matrix`], a
//! codec's packed bytes. [`Kernels`] carries the thread pool and the instruction set. Every output value is computed
//! by one thread in a fixed order, so results don't depend on the number of threads.
//!
//! Not here: names, models, files. Shapes are the caller's promise and are checked with panics.
#![warn(missing_docs)]

mod attention;
mod bytes;
mod columns;
mod conv;
mod elementwise;
mod floats;
mod group;
mod math;
mod matmul;
mod norm;
mod panel;
mod pool;
mod rope;
mod scan;
mod share;
mod shift;
mod spare;
mod terms;
#[cfg(test)]
mod testing;
mod tiles;
mod wkv;

pub use attention::{Attention, KvShape, KvView};
pub use columns::{Columns, Kept};
pub use conv::Conv;
pub use elementwise::{Activation, add, add_to_rows, gate, multiply, scale, softcap};
pub use math::exp;
pub use matmul::{Matrix, Product};
pub use pool::Pool;
pub use rope::{Pairing, Rotary};
pub use scan::{SelectiveScan, Ssd};
pub use spare::{Lent, Spare};
pub use terms::{Band, OutOfBounds, Sparse, Vectors, Window};
pub use wkv::{Wkv4, Wkv6, Wkv7, Wkv7Keys};

use fonio_simd::Isa;
use fonio_simd::amx::Tile;

/// What operations run on: threads and an instruction set.
pub struct Kernels {
    pool: Pool,
    isa: Isa,
    /// Buffers of threads that multiply.
    scratch: Spare<matmul::Scratch>,
    /// Rounded activations.
    bytes: Spare<bytes::ByteActs>,
    byte_tiles: Spare<panel::bytes::Tiles>,
    /// Activations as they are.
    float_tiles: Spare<panel::floats::Tiles>,
    tiles: Spare<Vec<Tile>>,
    buffers: Spare<Vec<f32>>,
    /// Buffers of threads that attend.
    attention: Spare<attention::Kept>,
}

impl Kernels {
    /// Starts `threads` threads (the calling one included; at least 1).
    pub fn new(threads: usize, isa: Isa) -> Kernels {
        Kernels {
            pool: Pool::new(threads),
            isa,
            scratch: Spare::default(),
            bytes: Spare::default(),
            byte_tiles: Spare::default(),
            float_tiles: Spare::default(),
            tiles: Spare::default(),
            buffers: Spare::default(),
            attention: Spare::default(),
        }
    }
    /// The thread pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
    /// A buffer of `n` values, which are anything: for what all of it is written to. If it goes back by
    /// [`Kernels::recycle`], the system need not clear pages for the next one.
    pub fn buffer(&self, n: usize) -> Vec<f32> {
        self.buffers.take(n)
    }
    /// Takes a buffer that nobody needs any more.
    pub fn recycle(&self, buffer: Vec<f32>) {
        self.buffers.put(buffer);
    }
    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
