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
}

/// A kernel's body, generic over the lanes. `run` must be `#[inline(always)]`, so that it is
/// compiled with the instruction set of its caller.
pub(crate) trait Kernel {
    type Out;
    fn run<V: Lanes>(self) -> Self::Out;
}

impl Isa {
    /// The fastest one of this CPU, or a lower one named by `CARAVAN_ISA` (`scalar`, `avx2`,
    /// `avxvnni`, `avx512`). A name that is unknown or above the CPU's is ignored.
    pub fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let best = Isa::best();
            match std::env::var("CARAVAN_ISA").as_deref() {
                Ok("scalar") => Isa::Scalar,
                Ok("avx2") => best.min(Isa::Avx2),
                Ok("avxvnni") if Isa::available().contains(&Isa::AvxVnni) => Isa::AvxVnni,
                _ => best,
            }
        })
    }

    /// Every instruction set this CPU can run.
    pub fn available() -> Vec<Isa> {
        let all = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];
        all.into_iter().filter(|isa| isa.supported()).collect()
    }

    /// Lower-case name, as in `CARAVAN_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
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
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn supported(self) -> bool {
        self == Isa::Scalar
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
                Isa::Scalar => {}
            }
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
