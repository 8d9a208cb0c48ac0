//! Every type that fonio knows, one line each.

use crate::{DType, block::Packed, float, float::Plain};
use std::marker::PhantomData;

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $codec:expr;)*) => {
        $($(#[$doc])* pub const $name: DType = DType::new(&$codec);)*
        /// All types, in the order of this file.
        pub const ALL: &[DType] = &[$($name),*];
    };
}

types! {
    /// IEEE 754 single precision.
    F32 = Plain::<float::F32>(PhantomData);
    /// IEEE 754 half precision.
    F16 = Plain::<float::F16>(PhantomData);
    /// The upper half of a single-precision number.
    BF16 = Plain::<float::BF16>(PhantomData);
    /// IEEE 754 double precision.
    F64 = Plain::<float::F64>(PhantomData);
    /// Signed byte.
    I8 = Plain::<float::I8>(PhantomData);
    /// Signed 16-bit integer.
    I16 = Plain::<float::I16>(PhantomData);
    /// Signed 32-bit integer.
    I32 = Plain::<float::I32>(PhantomData);
    /// Signed 64-bit integer.
    I64 = Plain::<float::I64>(PhantomData);
    /// Unsigned byte; in safetensors and PyTorch files only.
    U8 = Plain::<float::U8>(PhantomData);
    /// A byte that is 0 or not; in safetensors and PyTorch files only.
    BOOL = Plain::<float::BOOL>(PhantomData);
    /// 4.5 bits: 32 nibbles and a scale.
    Q4_0 = Packed::<crate::q4_0::Q4_0>::new();
    /// 8.5 bits: 32 bytes and a scale.
    Q8_0 = Packed::<crate::q8_0::Q8_0>::new();
}
