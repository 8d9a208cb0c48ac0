//! Where a tensor's bytes are: in a file as they are, in an extent, or in several planes.
//!
//! Readers that decide for themselves what is in memory, and when, ask here and read the files directly; everybody
//! else asks a [`Checkpoint`](crate::Checkpoint) for a tensor's bytes and need not know.

use std::ops::Range;

/// A contiguous piece of a file that is read in one go and checked as a whole: a layer, or an expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What it holds, for messages: `layer 3`, `layer 3 expert 5`.
    pub name: String,
    /// Which of [`Checkpoint::files`](crate::Checkpoint::files) has it.
    pub file: usize,
    /// Where it begins in that file.
    pub offset: u64,
    /// Bytes that it takes there.
    pub stored: u64,
    /// Bytes that it has when it is unpacked; `stored`, if it is not compressed.
    pub nbytes: u64,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// Where some bytes of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a file, as they are.
    File {
        /// Which of [`Checkpoint::files`](crate::Checkpoint::files).
        file: usize,
        /// Where they begin.
        offset: u64,
    },
    /// In an unpacked extent.
    Extent {
        /// Which of [`Checkpoint::extents`](crate::Checkpoint::extents).
        extent: usize,
        /// Where they begin in it.
        offset: u64,
    },
}

/// One summand of a tensor that is stored as a sum.
///
/// All numbers are of planes: see [`Checkpoint::planes`](crate::Checkpoint::planes). A matrix has `rows` × `cols` values;
/// terms are added in the order in which they are listed, each in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// The matrix itself, in a type of its own: a plane of the tensor's shape.
    Whole {
        /// The plane.
        plane: usize,
    },
    /// `left · right`: planes of `[rows, rank]` and `[rank, cols]`.
    Product {
        /// `[rows, rank]`
        left: usize,
        /// `[rank, cols]`
        right: usize,
    },
    /// Diagonals: a plane of `[n, min(rows, cols)]`. Diagonal `d` has its value `i` at row `i`, column
    /// `i + first + d`; values outside of the matrix are ignored.
    Band {
        /// The plane.
        plane: usize,
        /// What column the first diagonal has in row 0.
        first: i64,
    },
    /// Single values: planes of `U32 [rows + 1]` (where each row's values begin), and of column numbers `U32 [n]` and
    /// values `[n]`. Columns rise within a row. Both may have any shape of `n` values, so that experts, which have
    /// equally many of them, can be told apart: `[experts, n / experts]`.
    Sparse {
        /// `U32 [rows + 1]`
        starts: usize,
        /// `U32 [n]`
        columns: usize,
        /// `[n]`
        values: usize,
    },
    /// Product quantization: each row is cut into pieces of `d / m` values (the last may be short), and piece `p`
    /// is a row of table `p mod m`: planes of codes `U8 [rows, pieces]` and of tables `[m, k, d / m]`.
    Vectors {
        /// `U8 [rows, pieces]`
        codes: usize,
        /// `[m, k, d / m]`
        tables: usize,
    },
}

impl Term {
    /// Its planes.
    pub fn planes(self) -> Vec<usize> {
        match self {
            Term::Whole { plane } | Term::Band { plane, .. } => vec![plane],
            Term::Product { left, right } => vec![left, right],
            Term::Sparse { starts, columns, values } => vec![starts, columns, values],
            Term::Vectors { codes, tables } => vec![codes, tables],
        }
    }
}

/// What tensors are read together: a container that reads in extents makes one of each group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// On its own.
    #[default]
    Alone,
    /// With all small tensors, which are read once, when the model is opened.
    Small,
    /// With everything of a layer that every token needs.
    Layer(u32),
    /// A layer's experts, by the first dimension: each expert's part of all such tensors is one extent.
    Experts(u32),
}

/// Some rows of a planned tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Its place in the plan.
    pub tensor: usize,
    /// Rows as long as the last dimension.
    pub rows: Range<u64>,
}
