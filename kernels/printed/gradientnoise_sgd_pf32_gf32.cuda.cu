// gradientnoise_sgd_pf32_gf32: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p; reads g: 12 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, float* __restrict__ p, const float* __restrict__ g, Word key0, Word key1, Index offset, float lr,
    float decay, float noise_scale) {
    constexpr int PACK = 4;
    const bool whole = packed<PACK>(p) && packed<PACK>(g);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        float p_tile[HELD], g_tile[HELD];
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(g_tile, g + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(g_tile, g + first, count);
        }
        const Index tile = first / TILE;
        const Index number = offset / TILE + tile;
        const Word tile_low = Word(number), tile_high = Word(number >> 32);
        const Word x0 = tile_low ^ key0;
        const Word x1 = (x0 ^ (x0 >> 16u)) * 0x85ebca6bu;
        const Word x2 = (x1 ^ (x1 >> 13u)) * 0xc2b2ae35u;
        const Word x3 = tile_high ^ key1;
        const Word x4 = (x3 ^ (x3 >> 16u)) * 0x85ebca6bu;
        const Word x5 = (x4 ^ (x4 >> 13u)) * 0xc2b2ae35u;
        const Word x6 = ((x2 ^ (x2 >> 16u)) ^ (x5 ^ (x5 >> 16u))) * 0x9e3779b1u;
        const Word x7 = (x6 ^ (x6 >> 16u)) * 0x85ebca6bu;
        const Word x8 = (x7 ^ (x7 >> 13u)) * 0xc2b2ae35u;
        const Word x9 = (x8 ^ (x8 >> 16u)) | 1u;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float p_i = p_tile[i];
            const float g_i = g_tile[i];
            const Word index = position<PACK>(i);
            const Word x10 = (index ^ x6) * x9;
            const float x11 = __uint_as_float((((x10 ^ (x10 >> 16u)) * 0xc2b2ae35u) >> 9u) | 0x40000000u) - 3.0f +
                1.1920929e-07f;
            const Word x12 = __float_as_uint((1.0f - x11) * (1.0f + x11)) + 0x4afb0du;
            const float x13 = __uint_as_float((x12 & 0x7fffffu) + 0x3f3504f3u);
            const float x14 = (x13 - 1.0f) / (x13 + 1.0f);
            const float x15 = x14 * x14;
            const float x16 = sqrt(-((__uint_as_float((x12 >> 23u) | 0x4b000000u) - 8.388735e+06f) * 0.6931472f + x14 *
                (2.0f + x15 * (0.6666667f + x15 * 0.4f))));
            const float x17 = x16 * x16;
            const float x18 = x17 * x17;
            const float p_new = p_i - lr * (g_i + noise_scale * (x11 * (1.2533671f + -0.0015589065f * x16 + (0.33414847f
                + 0.002180625f * x16) * x17 + (-0.02334358f + 0.06963132f * x16 + (-0.056836393f + 0.019680353f * x16) *
                x17 + (-0.0031776035f + 0.0001982846f * x16) * x18) * x18)));
            p_tile[i] = p_new;
        }
        if (whole && count >= TILE) {
            store<PACK>(p + first, p_tile);
        } else {
            store<PACK>(p + first, p_tile, count);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gradientnoise_sgd_pf32_gf32(
    Index n, float* __restrict__ p, const float* __restrict__ g, Word key0, Word key1, Index offset, float lr,
    float decay, float noise_scale) {
    step(n, p, g, key0, key1, offset, lr, decay, noise_scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) gradientnoise_sgd_pf32_gf32_captured(
    Index n, float* __restrict__ p, const float* __restrict__ g, const Word* keys, Index offset, const float* table,
    const Index* row, Index rows) {
    if (*row >= rows) return;
    keys += *row * 2;
    table += *row * 3;
    step(n, p, g, keys[0], keys[1], offset, table[0], table[1], table[2]);
}
