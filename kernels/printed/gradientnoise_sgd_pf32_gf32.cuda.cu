// gradientnoise_sgd_pf32_gf32: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p; reads g: 12 bytes a parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, float* __restrict__ p, const float* __restrict__ g, Word key0, Word key1, Index offset, float lr,
    float decay, float noise_scale) {
    const bool whole = packed(p) && packed(g);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        float p_tile[HELD], g_tile[HELD];
        if (whole && count >= TILE) {
            load(p_tile, p + first);
            load(g_tile, g + first);
        } else {
            load(p_tile, p + first, count);
            load(g_tile, g + first, count);
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float p_i = p_tile[i];
            const float g_i = g_tile[i];
            const Index index = offset + first + place<float>(i);
            const Word index_low = Word(index), index_high = Word(index >> 32);
            const Word x0 = index_low ^ key0;
            const Word x1 = (x0 ^ (x0 >> 16u)) * 2246822507u;
            const Word x2 = (x1 ^ (x1 >> 13u)) * 3266489909u;
            const Word x3 = index_high ^ key1;
            const Word x4 = (x3 ^ (x3 >> 16u)) * 2246822507u;
            const Word x5 = (x4 ^ (x4 >> 13u)) * 3266489909u;
            const float x6 = float((((x2 ^ (x2 >> 16u)) ^ (x5 ^ (x5 >> 16u))) * 2654435761u >> 9u) << 1u) * 1.1920929e-07f + -0.9999999f;
            const Word x7 = __float_as_uint((1.0f - x6) * (1.0f + x6)) + 4913933u;
            const float x8 = __uint_as_float((x7 & 8388607u) + 1060439283u);
            const float x9 = (x8 - 1.0f) / (x8 + 1.0f);
            const float x10 = x9 * x9;
            const float x11 = sqrt(-((float(x7 >> 23u) - 127.0f) * 0.6931472f + x9 * (2.0f + x10 * (0.6666667f + x10 * 0.4f))));
            const float x12 = x11 * x11;
            const float x13 = x12 * x12;
            const float p_new = p_i - lr * (g_i + noise_scale * (x6 * (1.2533671f + -0.0015589065f * x11 + (0.33414847f + 0.002180625f * x11) * x12 + (-0.02334358f + 0.06963132f * x11 + (-0.056836393f + 0.019680353f * x11) * x12 + (-0.0031776035f + 0.0001982846f * x11) * x13) * x13)));
            p_tile[i] = p_new;
        }
        if (whole && count >= TILE) {
            store(p + first, p_tile);
        } else {
            store(p + first, p_tile, count);
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
