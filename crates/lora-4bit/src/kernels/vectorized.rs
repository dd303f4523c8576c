//! A loop compiled twice.

/// Defines a loop over rows twice: for the instruction set of the build, and for x86-64 with AVX2 and FMA, chosen at run
/// time. Both are the same code, vectorised by the compiler.
#[doc(hidden)]
#[macro_export]
macro_rules! vectorized {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    body($($arg),*);
                }
                if $crate::kernels::has_avx2() {
                    // SAFETY: the CPU has both.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    };
}
