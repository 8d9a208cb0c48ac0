//! Codebooks of the IQ1, IQ2 and IQ3 types, and the signs that go with them.
//!
//! An entry is 8 (IQ1, IQ2) or 4 (IQ3) values of a few levels; [`tables`] has the entries as their levels' numbers in
//! 16 bits, and they are spread to bytes when the crate is compiled. Every index is masked to its table's
//! size, so any bytes can be looked up. IQ1 stores shifted values: an entry's −1, 0 or 1 plus or minus 1/8.

mod tables;

/// Spreads entries of `W` levels of `bits` bits into the levels' values.
const fn spread<const N: usize, const W: usize>(
    packed: &[u16; N],
    bits: usize,
    levels: &[i8],
) -> [[i8; W]; N] {
    let mut out = [[0; W]; N];
    let mut n = 0;
    while n < N {
        let mut i = 0;
        while i < W {
            out[n][i] = levels[(packed[n] >> (bits * i)) as usize & ((1 << bits) - 1)];
            i += 1;
        }
        n += 1;
    }
    out
}

/// Levels −8, 0 and 8: eight times the entries, to which ±1 adds the shift of ±1/8.
static IQ1: [[i8; 8]; 2048] = spread(&tables::IQ1, 2, &[-8, 0, 8]);
static IQ2_XXS: [[i8; 8]; 256] = spread(&tables::IQ2_XXS, 2, &[8, 25, 43]);
static IQ2_XS: [[i8; 8]; 512] = spread(&tables::IQ2_XS, 2, &[8, 25, 43]);
static IQ2_S: [[i8; 8]; 1024] = spread(&tables::IQ2_S, 2, &[8, 25, 43]);
static IQ3_XXS: [[i8; 4]; 256] = spread(&tables::IQ3_XXS, 3, &[4, 12, 20, 28, 36, 44, 52, 62]);
static IQ3_S: [[i8; 4]; 512] = spread(&tables::IQ3_S, 3, &[1, 3, 5, 7, 9, 11, 13, 15]);

/// Eight times the values of an 11-bit index, shifted down by 1/8 if `down` and up if not.
#[inline(always)]
pub(crate) fn iq1(index: u16, down: bool) -> [i8; 8] {
    let shift = if down { -1 } else { 1 };
    IQ1[usize::from(index & 2047)].map(|x| x + shift)
}

#[inline(always)]
pub(crate) fn iq2_xxs(index: u8) -> [i8; 8] {
    IQ2_XXS[usize::from(index)]
}

#[inline(always)]
pub(crate) fn iq2_xs(index: u16) -> [i8; 8] {
    IQ2_XS[usize::from(index & 511)]
}

#[inline(always)]
pub(crate) fn iq2_s(index: u16) -> [i8; 8] {
    IQ2_S[usize::from(index & 1023)]
}

/// Two entries after one another.
#[inline(always)]
pub(crate) fn iq3_xxs(first: u8, second: u8) -> [i8; 8] {
    join(IQ3_XXS[usize::from(first)], IQ3_XXS[usize::from(second)])
}

/// Two entries after one another.
#[inline(always)]
pub(crate) fn iq3_s(first: u16, second: u16) -> [i8; 8] {
    join(IQ3_S[usize::from(first & 511)], IQ3_S[usize::from(second & 511)])
}

#[inline(always)]
fn join(a: [i8; 4], b: [i8; 4]) -> [i8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// Negates value i where bit i of `signs` is set. No level is −128.
#[inline(always)]
pub(crate) fn negate(values: [i8; 8], signs: u8) -> [i8; 8] {
    let mut out = values;
    for (i, x) in out.iter_mut().enumerate() {
        let mask = -((signs >> i & 1) as i8);
        *x = (*x ^ mask) - mask;
    }
    out
}

/// The eight signs behind seven stored ones (the low bits): the number of negative values is even.
#[inline(always)]
pub(crate) fn even_signs(stored: u8) -> u8 {
    let seven = stored & 127;
    // Bit n of 0x6996 is the parity of n.
    let parity = (0x6996u32 >> ((seven ^ (seven >> 4)) & 15)) as u8 & 1;
    seven | (parity << 7)
}
