//! Every type that fonio knows, one line each.

use crate::block::{Groups, Packed};
use crate::{Codec, DType, float, float::Plain, qsf};
use fonio_simd::Isa;
use std::marker::PhantomData;

/// Each type has a codec that is not generic and calls the one that is: generic code would be compiled anew in every
/// crate that names a type.
macro_rules! types {
    ($($(#[$doc:meta])* $name:ident = $codec:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        mod codecs {
            $(pub(super) struct $name;)*
        }
        $(
            impl Codec for codecs::$name {
                fn name(&self) -> &'static str {
                    $codec.name()
                }
                fn ggml_type(&self) -> Option<u32> {
                    $codec.ggml_type()
                }
                fn block_len(&self) -> usize {
                    $codec.block_len()
                }
                fn block_bytes(&self) -> usize {
                    $codec.block_bytes()
                }
                fn is_quantized(&self) -> bool {
                    $codec.is_quantized()
                }
                fn can_quantize(&self) -> bool {
                    $codec.can_quantize()
                }
                #[inline(never)]
                fn dequantize(&self, isa: Isa, src: &[u8], dst: &mut [f32]) {
                    $codec.dequantize(isa, src, dst);
                }
                #[inline(never)]
                fn quantize(&self, isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
                    $codec.quantize(isa, src, importance, dst);
                }
                #[inline(never)]
                fn groups(&self) -> Option<&dyn Groups> {
                    (const { &$codec }).groups()
                }
            }
            $(#[$doc])*
            pub const $name: DType = DType::new(&codecs::$name);
        )*
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
    /// Unsigned 32-bit integer; where the values of sparse planes are, in QSF and CAWSF files.
    U32 = Plain::<float::U32>(PhantomData);
    /// A byte that is 0 or not; in safetensors and PyTorch files only.
    BOOL = Plain::<float::BOOL>(PhantomData);
    /// 8-bit float with 4 bits of exponent; in safetensors files only.
    F8_E4M3 = Plain::<crate::f8_e4m3::F8E4M3>(PhantomData);
    /// 8-bit float with 5 bits of exponent; in safetensors files only.
    F8_E5M2 = Plain::<crate::f8_e5m2::F8E5M2>(PhantomData);
    /// A power of two in a byte, for scales; in safetensors files only.
    F8_E8M0 = Plain::<crate::f8_e8m0::F8E8M0>(PhantomData);
    /// 4.5 bits: 32 nibbles and a scale.
    Q4_0 = Packed::<crate::q4_0::Q4_0>::new();
    /// 5 bits: 32 nibbles, a scale and a minimum.
    Q4_1 = Packed::<crate::q4_1::Q4_1>::new();
    /// 5.5 bits: 32 five-bit integers and a scale.
    Q5_0 = Packed::<crate::q5_0::Q5_0>::new();
    /// 6 bits: 32 five-bit integers, a scale and a minimum.
    Q5_1 = Packed::<crate::q5_1::Q5_1>::new();
    /// 8.5 bits: 32 bytes and a scale.
    Q8_0 = Packed::<crate::q8_0::Q8_0>::new();
    /// 2.625 bits: 16 groups of 16 two-bit integers, four-bit scales and minima.
    Q2_K = Packed::<crate::q2_k::Q2K>::new();
    /// 3.4375 bits: 16 groups of 16 three-bit integers, six-bit scales.
    Q3_K = Packed::<crate::q3_k::Q3K>::new();
    /// 4.5 bits: 8 groups of 32 nibbles, six-bit scales and minima.
    Q4_K = Packed::<crate::q4_k::Q4K>::new();
    /// 5.5 bits: 8 groups of 32 five-bit integers, six-bit scales and minima.
    Q5_K = Packed::<crate::q5_k::Q5K>::new();
    /// 6.5625 bits: 16 groups of 16 six-bit integers, eight-bit scales.
    Q6_K = Packed::<crate::q6_k::Q6K>::new();
    /// 9.125 bits: 256 bytes and a single-precision scale; an intermediate type that files do not hold.
    Q8_K = Packed::<crate::q8_k::Q8K>::new();
    /// 2.0625 bits: a codebook of 256 eights, signs and scales.
    IQ2_XXS = Packed::<crate::iq2_xxs::Iq2Xxs>::new();
    /// 2.3125 bits: a codebook of 512 eights, signs and scales.
    IQ2_XS = Packed::<crate::iq2_xs::Iq2Xs>::new();
    /// 2.5625 bits: a codebook of 1024 eights, signs and scales.
    IQ2_S = Packed::<crate::iq2_s::Iq2S>::new();
    /// 3.0625 bits: a codebook of 256 fours, signs and scales.
    IQ3_XXS = Packed::<crate::iq3_xxs::Iq3Xxs>::new();
    /// 3.4375 bits: a codebook of 512 fours, signs and scales.
    IQ3_S = Packed::<crate::iq3_s::Iq3S>::new();
    /// 1.5625 bits: a codebook of 2048 ternary eights, shifts and scales.
    IQ1_S = Packed::<crate::iq1_s::Iq1S>::new();
    /// 1.75 bits: as IQ1_S with more shifts and scales.
    IQ1_M = Packed::<crate::iq1_m::Iq1M>::new();
    /// 4.5 bits: numbers of 16 uneven levels and a scale.
    IQ4_NL = Packed::<crate::iq4_nl::Iq4Nl>::new();
    /// 4.25 bits: as IQ4_NL with 6-bit scales.
    IQ4_XS = Packed::<crate::iq4_xs::Iq4Xs>::new();
    /// 1.6875 bits: ternary digits, five to a byte.
    TQ1_0 = Packed::<crate::tq1_0::Tq10>::new();
    /// 2.0625 bits: ternary digits, four to a byte.
    TQ2_0 = Packed::<crate::tq2_0::Tq20>::new();
    /// 4.25 bits: E2M1 numbers and a power of two.
    MXFP4 = Packed::<crate::mxfp4::Mxfp4>::new();
    /// 4.5 bits: E2M1 numbers and E4M3 scales.
    NVFP4 = Packed::<crate::nvfp4::Nvfp4>::new();
    /// 3 bits: 32 two-bit integers, a scale and a minimum.
    QSF_2BIT_32 = Packed::<qsf::Blocks<qsf::Offset<2>, 32>>::new();
    /// 2.5 bits: 64 two-bit integers, a scale and a minimum.
    QSF_2BIT_64 = Packed::<qsf::Blocks<qsf::Offset<2>, 64>>::new();
    /// 2.25 bits: 128 two-bit integers, a scale and a minimum.
    QSF_2BIT_128 = Packed::<qsf::Blocks<qsf::Offset<2>, 128>>::new();
    /// 2.125 bits: 256 two-bit integers, a scale and a minimum.
    QSF_2BIT_256 = Packed::<qsf::Blocks<qsf::Offset<2>, 256>>::new();
    /// 4 bits: 32 three-bit integers, a scale and a minimum.
    QSF_3BIT_32 = Packed::<qsf::Blocks<qsf::Offset<3>, 32>>::new();
    /// 3.5 bits: 64 three-bit integers, a scale and a minimum.
    QSF_3BIT_64 = Packed::<qsf::Blocks<qsf::Offset<3>, 64>>::new();
    /// 3.25 bits: 128 three-bit integers, a scale and a minimum.
    QSF_3BIT_128 = Packed::<qsf::Blocks<qsf::Offset<3>, 128>>::new();
    /// 3.125 bits: 256 three-bit integers, a scale and a minimum.
    QSF_3BIT_256 = Packed::<qsf::Blocks<qsf::Offset<3>, 256>>::new();
    /// 5 bits: 32 nibbles, a scale and a minimum.
    QSF_4BIT_32 = Packed::<qsf::Blocks<qsf::Offset<4>, 32>>::new();
    /// 4.5 bits: 64 nibbles, a scale and a minimum.
    QSF_4BIT_64 = Packed::<qsf::Blocks<qsf::Offset<4>, 64>>::new();
    /// 4.25 bits: 128 nibbles, a scale and a minimum.
    QSF_4BIT_128 = Packed::<qsf::Blocks<qsf::Offset<4>, 128>>::new();
    /// 4.125 bits: 256 nibbles, a scale and a minimum.
    QSF_4BIT_256 = Packed::<qsf::Blocks<qsf::Offset<4>, 256>>::new();
    /// 2.5 bits: 32 levels ±1 and ±3 and a scale.
    QSF_2BIT_SYM_32 = Packed::<qsf::Blocks<qsf::Symmetric2, 32>>::new();
    /// 2.25 bits: 64 levels ±1 and ±3 and a scale.
    QSF_2BIT_SYM_64 = Packed::<qsf::Blocks<qsf::Symmetric2, 64>>::new();
    /// 2.125 bits: 128 levels ±1 and ±3 and a scale.
    QSF_2BIT_SYM_128 = Packed::<qsf::Blocks<qsf::Symmetric2, 128>>::new();
    /// 2.0625 bits: 256 levels ±1 and ±3 and a scale.
    QSF_2BIT_SYM_256 = Packed::<qsf::Blocks<qsf::Symmetric2, 256>>::new();
    /// 5 bits: 32 nibbles around 8 and a scale.
    QSF_4BIT_SYM_32 = Packed::<qsf::Blocks<qsf::Symmetric4, 32>>::new();
    /// 4.5 bits: 64 nibbles around 8 and a scale.
    QSF_4BIT_SYM_64 = Packed::<qsf::Blocks<qsf::Symmetric4, 64>>::new();
    /// 4.25 bits: 128 nibbles around 8 and a scale.
    QSF_4BIT_SYM_128 = Packed::<qsf::Blocks<qsf::Symmetric4, 128>>::new();
    /// 4.125 bits: 256 nibbles around 8 and a scale.
    QSF_4BIT_SYM_256 = Packed::<qsf::Blocks<qsf::Symmetric4, 256>>::new();
    /// 8.5 bits: 32 bytes and a scale.
    QSF_8BIT_32 = Packed::<qsf::Blocks<qsf::Byte, 32>>::new();
    /// 8.25 bits: 64 bytes and a scale.
    QSF_8BIT_64 = Packed::<qsf::Blocks<qsf::Byte, 64>>::new();
    /// 8.125 bits: 128 bytes and a scale.
    QSF_8BIT_128 = Packed::<qsf::Blocks<qsf::Byte, 128>>::new();
    /// 8.0625 bits: 256 bytes and a scale.
    QSF_8BIT_256 = Packed::<qsf::Blocks<qsf::Byte, 256>>::new();
    /// 2.25 bits: 32 ternary digits, five to a byte, and a scale.
    QSF_TERNARY_32 = Packed::<qsf::Blocks<qsf::Ternary, 32>>::new();
    /// 1.875 bits: 64 ternary digits, five to a byte, and a scale.
    QSF_TERNARY_64 = Packed::<qsf::Blocks<qsf::Ternary, 64>>::new();
    /// 1.75 bits: 128 ternary digits, five to a byte, and a scale.
    QSF_TERNARY_128 = Packed::<qsf::Blocks<qsf::Ternary, 128>>::new();
    /// 1.6875 bits: 256 ternary digits, five to a byte, and a scale.
    QSF_TERNARY_256 = Packed::<qsf::Blocks<qsf::Ternary, 256>>::new();
}
