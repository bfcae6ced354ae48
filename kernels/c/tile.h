/* What every C kernel of fastopt has in common. C99, and C++ as it stands.

   Bits. Each operation must be rounded once, to its own type, and subnormal numbers kept. What a compiler may do
   otherwise is switched off here where the language or the compiler lets a source say so, and refused where not. */

#ifndef FASTOPT_TILE_H
#define FASTOPT_TILE_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) \
    || defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastopt: -ffast-math and its parts change the bits; compile this file without them"
#endif
#if !defined(FLT_EVAL_METHOD) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#error "fastopt: this target computes float in a wider type; on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

#if defined(__GNUC__)
#define FASTOPT_INLINE static inline __attribute__((always_inline, unused))
#define FASTOPT_APART static __attribute__((noinline, unused))
#define FASTOPT_RESTRICT __restrict__
#else
#define FASTOPT_INLINE static inline
#define FASTOPT_APART static
#define FASTOPT_RESTRICT
#endif

#endif /* FASTOPT_TILE_H */

/* No multiplication and addition become one operation that is rounded once. GCC ignores the standard's pragma. */
#if defined(__CUDACC__)
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#else
#pragma STDC FP_CONTRACT OFF
#endif

#ifndef FASTOPT_TILE_FUNCTIONS
#define FASTOPT_TILE_FUNCTIONS

enum { FASTOPT_TILE = 256 }; /* elements of a tile: see below */

FASTOPT_INLINE float fastopt_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

FASTOPT_INLINE double fastopt_double(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

FASTOPT_INLINE uint32_t fastopt_word(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Whether all codes of a tile are from `least` to `most`, by the bits of a mask. */
FASTOPT_INLINE bool fastopt_within(const uint8_t *codes, uint8_t mask, uint8_t least, uint8_t most) {
    uint8_t lowest = 255, highest = 0;
    for (int i = 0; i < FASTOPT_TILE; ++i) {
        const uint8_t code = (uint8_t)(codes[i] & mask);
        lowest = code < lowest ? code : lowest;
        highest = code > highest ? code : highest;
    }
    return lowest >= least && highest <= most;
}

/* The upper 12 bits of a word as a signed number, or the least code, whichever is larger. That an integer's sign is kept
   by a shift is up to a compiler, and every one does it. */
FASTOPT_INLINE uint32_t fastopt_code(uint32_t word, int32_t least) {
    const int32_t code = (int32_t)word >> 20;
    return (uint32_t)(code > least ? code : least);
}

/* Fetch `bytes` of an array into the cache, from `ahead` bytes further on, which may be beyond its end. */
FASTOPT_INLINE void fastopt_fetch(const void *array, size_t ahead, size_t bytes) {
#if defined(__GNUC__)
    for (size_t k = 0; k < bytes; k += 64) __builtin_prefetch((const void *)((uintptr_t)array + ahead + k));
#else
    (void)array, (void)ahead, (void)bytes;
#endif
}

/* c ? a : b, without a branch: loops with branches are not made of vectors. */
FASTOPT_INLINE uint32_t fastopt_uint32_t_select(bool c, uint32_t a, uint32_t b) {
    return b ^ ((a ^ b) & (0u - (uint32_t)c));
}

FASTOPT_INLINE float fastopt_float_select(bool c, float a, float b) {
    return fastopt_float(fastopt_uint32_t_select(c, fastopt_word(a), fastopt_word(b)));
}

FASTOPT_INLINE double fastopt_double_select(bool c, double a, double b) {
    uint64_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    return fastopt_double(y ^ ((x ^ y) & (0u - (uint64_t)c)));
}

FASTOPT_INLINE bool fastopt_bool_select(bool c, bool a, bool b) { return (c & a) | (!c & b); }

/* -1, +0 or 1, and NaN for NaN. */
FASTOPT_INLINE float fastopt_float_sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? 0.0f : x; }

FASTOPT_INLINE double fastopt_double_sign(double x) { return x > 0 ? 1.0 : x < 0 ? -1.0 : x == 0 ? 0.0 : x; }

/* The sum of a tile, which it overwrites: folded by halves, i with i + 128, then with i + 64, ... i + 1. */
FASTOPT_INLINE double fastopt_float_sum(float *tile) {
    for (int half = FASTOPT_TILE / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) tile[i] = tile[i] + tile[i + half];
    }
    return tile[0];
}

FASTOPT_INLINE double fastopt_double_sum(double *tile) {
    for (int half = FASTOPT_TILE / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) tile[i] = tile[i] + tile[i + half];
    }
    return tile[0];
}

/* The total of a tensor from the sums of its tiles, which it overwrites: 256 at a time, folded as a tile is. */
FASTOPT_INLINE double fastopt_total(double *sums, size_t count) {
    double tile[FASTOPT_TILE];
    while (count > 1) {
        const size_t blocks = (count + FASTOPT_TILE - 1) / FASTOPT_TILE;
        for (size_t block = 0; block < blocks; ++block) {
            const size_t first = block * FASTOPT_TILE, left = count - first;
            for (size_t i = 0; i < FASTOPT_TILE; ++i) tile[i] = i < left ? sums[first + i] : 0.0;
            sums[block] = fastopt_double_sum(tile);
        }
        count = blocks;
    }
    return count ? sums[0] : 0.0;
}

/* pow, exp and log of the C library, called at run time through a pointer that no compiler looks through: it would compute
   powers of constants itself, and may round them otherwise. */
FASTOPT_INLINE double fastopt_pow(double x, double y) {
    double (*volatile function)(double, double) = pow;
    return function(x, y);
}

FASTOPT_INLINE double fastopt_exp(double x) {
    double (*volatile function)(double) = exp;
    return function(x);
}

FASTOPT_INLINE double fastopt_log(double x) {
    double (*volatile function)(double) = log;
    return function(x);
}

/* The finaliser of SplitMix64. */
FASTOPT_INLINE uint64_t fastopt_mix64(uint64_t z) {
    z += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* The thread's floating-point mode: round to nearest and keep subnormal numbers, whatever another library set. Kernels
   do so at their beginning and restore the mode at their end; elsewhere than on these processors that is the caller's. */
#if (defined(__x86_64__) || defined(__SSE2__)) && defined(__GNUC__)
FASTOPT_INLINE uint64_t fastopt_standard_mode(void) {
    const unsigned mode = __builtin_ia32_stmxcsr();
    if (mode & 0xE040u) __builtin_ia32_ldmxcsr(mode & ~0xE040u);
    return mode;
}
FASTOPT_INLINE void fastopt_restore_mode(uint64_t mode) {
    if (mode & 0xE040u) __builtin_ia32_ldmxcsr((unsigned)mode);
}
#elif defined(__aarch64__) && defined(__GNUC__)
FASTOPT_INLINE uint64_t fastopt_standard_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    if (mode & 0x1C80007u) __asm__ volatile("msr fpcr, %0" : : "r"(mode & ~UINT64_C(0x1C80007)));
    return mode;
}
FASTOPT_INLINE void fastopt_restore_mode(uint64_t mode) {
    if (mode & 0x1C80007u) __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}
#else
FASTOPT_INLINE uint64_t fastopt_standard_mode(void) { return 0; }
FASTOPT_INLINE void fastopt_restore_mode(uint64_t mode) { (void)mode; }
#endif

#endif /* FASTOPT_TILE_FUNCTIONS */
