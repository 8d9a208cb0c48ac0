//! Plain numbers: F16, BF16, F32, F64 and the integers, little-endian.

use crate::Codec;
use fonio_simd::{Isa, Task};
use half::bf16;
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

struct Narrow<'a, N>(&'a [f32], &'a mut [u8], PhantomData<N>);

impl<N: Number> Task for Narrow<'_, N> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        for (&value, bytes) in self.0.iter().zip(self.1.chunks_exact_mut(N::BYTES)) {
            N::store(value, bytes);
        }
    }
}

/// Rounds to half precision, ties to even, in plain arithmetic, so that it is vectorized with its caller. What is too large
/// is infinite; a NaN stays one.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13).wrapping_sub((127 - 15) << 10);
    // The last place of 0.5 is 2^-24, that of a subnormal half.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < (127 - 14) << 23 { subnormal } else { normal.min(0x7c00) };
    let nan = 0x7e00 | (magnitude >> 13) & 0x3ff;
    (sign | if magnitude > 0x7f80_0000 { nan } else { finite }) as u16
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
    fn quantize(&self, isa: Isa, src: &[f32], _: Option<&[f32]>, dst: &mut [u8]) {
        isa.run(Narrow::<N>(src, dst, PhantomData));
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
number!(F16, Some(1), true, 2, |b| crate::block::f16_to_f32(u16::from_le_bytes(b)), |x| narrow(x)
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

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn halves_are_those_of_the_half_crate() {
        // Every half, its neighbours and the middle to the next half, and a stride through all of f32.
        let exact = (0..=u16::MAX).map(|h| f16::from_bits(h).to_f32().to_bits());
        let near =
            exact.flat_map(|b| [0, 1, u32::MAX, 0xfff, 0x1000, 0x1001].map(|more| b.wrapping_add(more)));
        let strided = (0..u32::MAX / 65_521).map(|i| i * 65_521);
        for bits in near.chain(strided) {
            let x = f32::from_bits(bits);
            assert_eq!(narrow(x), f16::from_f32(x).to_bits(), "{bits:#x} {x:e}");
        }
    }
}
