//! Which instruction set the kernels run on, chosen once at run time.
//!
//! Must never let the choice change a bit of a result: it may only change the speed.

use std::sync::OnceLock;

use crate::lanes::{Lanes, Scalar};

/// An instruction set that this build has kernels for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// What every 64-bit Arm has.
    Neon,
}

/// A kernel's body, generic over the lanes. `run` must be `#[inline(always)]`, so that it is
/// compiled with the instruction set of its caller.
pub(crate) trait Kernel {
    type Out;
    fn run<V: Lanes>(self) -> Self::Out;
}

impl Isa {
    /// The fastest one of this CPU, or another of its own named by `CARAVAN_ISA` (`scalar`, `avx2`,
    /// `avxvnni`, `avx512`, `neon`). A name that is unknown or not of this CPU is ignored.
    pub fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| Isa::named(std::env::var("CARAVAN_ISA").ok().as_deref()))
    }

    fn named(name: Option<&str>) -> Isa {
        Isa::available().into_iter().find(|isa| Some(isa.name()) == name).unwrap_or_else(Isa::best)
    }

    /// Every instruction set this CPU can run.
    pub fn available() -> Vec<Isa> {
        let all = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Neon];
        all.into_iter().filter(|isa| isa.supported()).collect()
    }

    /// Lower-case name, as in `CARAVAN_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().into_iter().max().unwrap_or(Isa::Scalar))
    }

    /// Both the CPU and the system (which must save the registers) grant it.
    #[cfg(target_arch = "x86_64")]
    fn supported(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => avx2,
            Isa::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
            Isa::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::Neon => false,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn supported(self) -> bool {
        self == Isa::Scalar || (self == Isa::Neon && cfg!(target_arch = "aarch64"))
    }

    /// Runs a kernel on this instruction set; on plain code if the CPU lacks it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[cfg(target_arch = "x86_64")]
        if self.supported() {
            match self {
                // SAFETY: `supported` found the features of this function on the running CPU.
                Isa::Avx512 => return unsafe { x86::avx512(kernel) },
                // SAFETY: as above.
                Isa::AvxVnni => return unsafe { x86::avx_vnni(kernel) },
                // SAFETY: as above.
                Isa::Avx2 => return unsafe { x86::avx2(kernel) },
                Isa::Scalar | Isa::Neon => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self == Isa::Neon {
            return kernel.run::<crate::lanes::Neon>();
        }
        kernel.run::<Scalar>()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;
    use crate::lanes::{Avx2, Avx512};

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) fn avx512<K: Kernel>(kernel: K) -> K::Out {
        kernel.run::<Avx512>()
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn avx2<K: Kernel>(kernel: K) -> K::Out {
        kernel.run::<Avx2<false>>()
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(super) fn avx_vnni<K: Kernel>(kernel: K) -> K::Out {
        kernel.run::<Avx2<true>>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_name_chooses_only_what_the_cpu_has() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(Some(isa.name())), isa);
        }
        let best = *Isa::available().last().unwrap();
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        for name in [None, Some(""), Some("mmx"), Some(foreign)] {
            assert_eq!(Isa::named(name), best, "{name:?}");
        }
    }

    /// What a run is meant to cover is covered: the tests of this crate take every available
    /// instruction set, and would say nothing of one that is missing. `CARAVAN_TEST_ISAS` names them
    /// (`scripts/emulate` does).
    #[test]
    fn expected_instruction_sets_are_available() {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        println!("instruction sets: {}", names.join(" "));
        let expected = std::env::var("CARAVAN_TEST_ISAS").unwrap_or_else(|_| "scalar".into());
        for name in expected.split_whitespace() {
            assert!(names.contains(&name), "{name} is not available here; {names:?} are");
        }
    }
}
