//! Plain numbers: F16, BF16, F32, F64 and the integers, little-endian.

use crate::Codec;
use fonio_simd::{Isa, Task};
use half::{bf16, f16};
use std::marker::PhantomData;

/// A plain number type.
pub(crate) trait Number: Sync + Send + 'static {
    const NAME: &'static str;
    const GGML: Option<u32>;
    const BYTES: usize;
    /// Whether values of `f32` are stored rounded (floats) or not at all (integers).
    const FLOAT: bool;
    fn load(bytes: &[u8]) -> f32;
    fn store(value: f32, bytes: &mut [u8]);
}

/// The codec of a [`Number`].
pub(crate) struct Plain<N>(pub(crate) PhantomData<N>);

struct Widen<'a, N>(&'a [u8], &'a mut [f32], PhantomData<N>);

impl<N: Number> Task for Widen<'_, N> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        for (bytes, value) in self.0.chunks_exact(N::BYTES).zip(self.1) {
            *value = N::load(bytes);
        }
    }
}

impl<N: Number> Codec for Plain<N> {
    fn name(&self) -> &'static str {
        N::NAME
    }
    fn ggml_type(&self) -> Option<u32> {
        N::GGML
    }
    fn block_len(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        N::BYTES
    }
    fn is_quantized(&self) -> bool {
        false
    }
    fn can_quantize(&self) -> bool {
        N::FLOAT
    }
    fn dequantize(&self, isa: Isa, src: &[u8], dst: &mut [f32]) {
        isa.run(Widen::<N>(src, dst, PhantomData));
    }
    fn quantize(&self, _: Isa, src: &[f32], _: Option<&[f32]>, dst: &mut [u8]) {
        for (&value, bytes) in src.iter().zip(dst.chunks_exact_mut(N::BYTES)) {
            N::store(value, bytes);
        }
    }
}

macro_rules! number {
    ($type:ident, $ggml:expr, $float:expr, $bytes:literal, $load:expr, $store:expr) => {
        // Named as files name it.
        #[allow(clippy::upper_case_acronyms)]
        pub(crate) struct $type;
        impl Number for $type {
            const NAME: &'static str = stringify!($type);
            const GGML: Option<u32> = $ggml;
            const BYTES: usize = $bytes;
            const FLOAT: bool = $float;
            #[inline(always)]
            fn load(bytes: &[u8]) -> f32 {
                let mut le = [0u8; $bytes];
                le.copy_from_slice(bytes);
                let load: fn([u8; $bytes]) -> f32 = $load;
                load(le)
            }
            #[inline(always)]
            fn store(value: f32, bytes: &mut [u8]) {
                let store: fn(f32) -> [u8; $bytes] = $store;
                bytes.copy_from_slice(&store(value));
            }
        }
    };
}

number!(F32, Some(0), true, 4, f32::from_le_bytes, f32::to_le_bytes);
number!(F16, Some(1), true, 2, |b| crate::block::f16_to_f32(u16::from_le_bytes(b)), |x| f16::from_f32(x)
    .to_le_bytes());
number!(BF16, Some(30), true, 2, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16), |x| {
    bf16::from_f32(x).to_le_bytes()
});
number!(F64, Some(28), true, 8, |b| f64::from_le_bytes(b) as f32, |x| f64::from(x).to_le_bytes());
number!(I8, Some(24), false, 1, |b| f32::from(i8::from_le_bytes(b)), |_| [0]);
number!(I16, Some(25), false, 2, |b| f32::from(i16::from_le_bytes(b)), |_| [0; 2]);
number!(I32, Some(26), false, 4, |b| i32::from_le_bytes(b) as f32, |_| [0; 4]);
number!(I64, Some(27), false, 8, |b| i64::from_le_bytes(b) as f32, |_| [0; 8]);
number!(U8, None, false, 1, |b| f32::from(b[0]), |_| [0]);
number!(U32, None, false, 4, |b| u32::from_le_bytes(b) as f32, |_| [0; 4]);
number!(BOOL, None, false, 1, |b| f32::from(b[0] != 0), |_| [0]);
