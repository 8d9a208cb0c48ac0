//! CPU features as witness values, and the one home of `core::arch`.
//!
//! An [`Isa`] is proof that the CPU has an instruction set: it comes only from [`Isa::detect`],
//! [`Isa::available`] or [`Isa::named`], all of which ask the CPU. Code that wants its loops compiled for that
//! instruction set implements [`Task`] and hands itself to [`Isa::run`]; the loop is then compiled once for each
//! level and the right copy is chosen at run time. Rust neither fuses multiply and add nor reorders
//! floating-point operations by itself, so a `Task` without explicit vector operations gives the same bits at
//! every level.
#![warn(missing_docs)]

pub mod amx;
mod lines;
#[cfg(target_arch = "aarch64")]
mod neon;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use amx::Amx;
pub use lines::Lines;
pub use vector::{AHEAD, Bytes, Scalar, Simd, VectorTask, widen};

use std::fmt;

/// An instruction-set level that this CPU is known to have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Level {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// Work that is compiled once for every instruction set. Mark `run` with `#[inline(always)]`, and every
/// function that it calls in its hot loop too: what is not inlined is compiled for the baseline CPU.
pub trait Task {
    /// What the work returns.
    type Output;
    /// Does the work. `isa` is the level that it is compiled for.
    fn run(self, isa: Isa) -> Self::Output;
}

impl Isa {
    /// The level that every CPU of this architecture has.
    pub const fn scalar() -> Isa {
        Isa(Level::Scalar)
    }

    /// The best level that this CPU has.
    pub fn detect() -> Isa {
        Self::available().pop().unwrap_or(Isa(Level::Scalar))
    }

    /// Every level that this CPU has, the plainest first.
    pub fn available() -> Vec<Isa> {
        let mut levels = vec![Isa(Level::Scalar)];
        // Where the lowest byte is the last, lanes would have to be turned round.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        {
            use std::arch::is_aarch64_feature_detected as has;
            let dot = has!("neon") && has!("dotprod");
            if has!("neon") {
                levels.push(Isa(Level::Neon));
            }
            if dot {
                levels.push(Isa(Level::NeonDot));
            }
            if dot && has!("i8mm") {
                levels.push(Isa(Level::NeonI8mm));
            }
        }
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("bmi2");
            let avx512 = avx2
                && has!("avx512f")
                && has!("avx512bw")
                && has!("avx512vl")
                && has!("avx512dq")
                && has!("avx512cd");
            if avx2 {
                levels.push(Isa(Level::Avx2));
            }
            if avx2 && has!("avxvnni") {
                levels.push(Isa(Level::AvxVnni));
            }
            if avx512 {
                levels.push(Isa(Level::Avx512));
            }
            if avx512 && has!("avx512vnni") {
                levels.push(Isa(Level::Avx512Vnni));
            }
            if avx512 && has!("avx512vnni") && Amx::detect().is_some() {
                levels.push(Isa(Level::Amx));
            }
        }
        levels
    }

    /// The level with this name, if this CPU has it: `scalar`, `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `amx`, `neon`,
    /// `neondot`, `neoni8mm`.
    pub fn named(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// The level's name, as [`Isa::named`] takes it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => "neondot",
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm => "neoni8mm",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx",
        }
    }

    /// Runs `task` in a copy of its code that was compiled for this level.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Level::Scalar => run_baseline(task, self),
            // The baseline has NEON, and compilers find no use for dot products by themselves: one copy serves all levels.
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonDot | Level::NeonI8mm => run_baseline(task, self),
            // Compilers find no use for VNNI or tiles by themselves: levels with them share the others' copies.
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only where the CPU has the features.
            Level::Avx2 | Level::AvxVnni => unsafe { run_avx2(task, self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 | Level::Avx512Vnni | Level::Amx => unsafe { run_avx512(task, self) },
        }
    }
}

struct Vectors<T, S>(T, S);

impl<T: VectorTask, S: Simd> Task for Vectors<T, S> {
    type Output = T::Output;
    #[inline(always)]
    fn run(self, _: Isa) -> T::Output {
        self.0.run(self.1)
    }
}

impl Isa {
    /// Runs `task` with this level's vectors.
    #[inline]
    pub fn vector<T: VectorTask>(self, task: T) -> T::Output {
        match self.0 {
            Level::Scalar => self.run(Vectors(task, vector::Scalar::new())),
            #[cfg(target_arch = "aarch64")]
            // SAFETY: an `Isa` of this level exists only where the CPU has the features.
            Level::Neon => self.run(Vectors(task, unsafe { neon::Neon::<false, false>::new() })),
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Level::NeonDot => unsafe { run_neondot(Vectors(task, neon::Neon::<true, false>::new()), self) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Level::NeonI8mm => unsafe { run_neoni8mm(Vectors(task, neon::Neon::<true, true>::new()), self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only where the CPU has the features.
            Level::Avx2 => self.run(Vectors(task, unsafe { x86::Avx2::<false>::new() })),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::AvxVnni => unsafe { run_avxvnni(Vectors(task, x86::Avx2::<true>::new()), self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => self.run(Vectors(task, unsafe { x86::Avx512::<false>::new() })),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512Vnni | Level::Amx => unsafe {
                run_avx512vnni(Vectors(task, x86::Avx512::<true>::new()), self)
            },
        }
    }

    /// The tiles of this level, if it has them.
    pub fn amx(self) -> Option<Amx> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Amx::detect(),
            _ => None,
        }
    }
}

fn run_baseline<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn run_neondot<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn run_neoni8mm<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn run_avx2<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avxvnni")]
fn run_avxvnni<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512cd")]
fn run_avx512<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512vnni"
)]
fn run_avx512vnni<T: Task>(task: T, isa: Isa) -> T::Output {
    task.run(isa)
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);
    impl Task for Sum<'_> {
        type Output = f32;
        #[inline(always)]
        fn run(self, _: Isa) -> f32 {
            self.0.iter().sum()
        }
    }

    #[test]
    fn every_level_runs_and_is_found_by_its_name() {
        let x: Vec<f32> = (0..1000).map(|i| i as f32 * 0.1).collect();
        let want = Isa::scalar().run(Sum(&x));
        for isa in Isa::available() {
            assert_eq!(isa.run(Sum(&x)).to_bits(), want.to_bits(), "{isa}");
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("nonesuch"), None);
        assert_eq!(Isa::available().last(), Some(&Isa::detect()));
        // `cargo xtask test-arm` knows which CPU it emulates.
        if let Ok(levels) = std::env::var("FONIO_TEST_LEVELS") {
            let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            assert_eq!(names.join(" "), levels);
        }
    }
}
