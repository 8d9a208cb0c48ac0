//! TQ1_0: 256 values −1, 0 or 1 of 1.6875 bits: five ternary digits to a byte.
//!
//! Layout (54 bytes): 48 bytes of five digits: digit n of byte i < 32 is value 32n + i, digit n of byte 32 + i is value
//! 160 + 16n + i; 4 bytes of four digits, digit n of byte i being value 240 + 4n + i; scale d `f16`. A byte is a
//! fraction b/256 in base 3: digit n is the whole part of three times what is left after n digits.
//! `value = d · (digit − 1)`.

use crate::block::{Format, f16_at};

pub(crate) struct Tq10;

impl Format for Tq10 {
    const NAME: &'static str = "TQ1_0";
    const GGML: Option<u32> = Some(34);
    const LEN: usize = 256;
    const BYTES: usize = 54;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale.fill(f16_at(block, 52));
        digits(&block[..32], &mut q[..160]);
        digits(&block[32..48], &mut q[160..240]);
        digits(&block[48..52], &mut q[240..256]);
    }
}

/// Writes as many digits of each byte as `q` has room for, less 1, all first digits first.
#[inline(always)]
fn digits(bytes: &[u8], q: &mut [i8]) {
    let mut power = 1u8;
    for q in q.chunks_exact_mut(bytes.len()) {
        for (q, &byte) in q.iter_mut().zip(bytes) {
            *q = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
        }
        power = power.wrapping_mul(3);
    }
}
