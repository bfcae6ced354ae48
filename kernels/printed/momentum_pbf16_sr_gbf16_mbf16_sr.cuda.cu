// momentum_pbf16_sr_gbf16_mbf16_sr: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p, m; reads g: 10 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, Word16* __restrict__ p, const Word16* __restrict__ g, Word16* __restrict__ m, Word key0, Word key1,
    Index offset, float beta, float rest, float m_size, float g_size, float decay) {
    constexpr int PACK = 8;
    const bool whole = packed<PACK>(p) && packed<PACK>(g) && packed<PACK>(m);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        Narrow<Word16> p_tile, g_tile, m_tile;
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(g_tile, g + first);
            load<PACK>(m_tile, m + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(g_tile, g + first, count);
            load<PACK>(m_tile, m + first, count);
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
        const Word x6 = ((x2 ^ (x2 >> 16u)) ^ (x5 ^ (x5 >> 16u))) * 0x9e3779b1u * 0x9e3779b1u;
        const Word x7 = x6 ^ (x6 >> 16u);
        const Word x8 = (((x7 ^ (x7 >> 15u)) * 0x165667b1u) & 0xffff0000u) | 0x10000u;
        const Word x9 = (x7 << 16u) | (x7 >> 16u);
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const Word p_i = p_tile[i];
            const Word g_i = g_tile[i];
            const Word m_i = m_tile[i];
            const Word index = position<PACK>(i);
            const float m_new = beta * __uint_as_float(m_i << 16u) + rest * __uint_as_float(g_i << 16u);
            const float p_new = __uint_as_float(p_i << 16u) - m_size * m_new;
            p_tile.set(i, p_new != p_new ? 0x7fc0u : ((__float_as_uint(p_new) + ((x7 + x8 * index) >> 16u)) >> 16u));
            m_tile.set(i, m_new != m_new ? 0x7fc0u : ((__float_as_uint(m_new) + ((x9 + x8 * index) >> 16u)) >> 16u));
        }
        if (whole && count >= TILE) {
            store<PACK>(p + first, p_tile);
            store<PACK>(m + first, m_tile);
        } else {
            store<PACK>(p + first, p_tile, count);
            store<PACK>(m + first, m_tile, count);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) momentum_pbf16_sr_gbf16_mbf16_sr(
    Index n, Word16* __restrict__ p, const Word16* __restrict__ g, Word16* __restrict__ m, Word key0, Word key1,
    Index offset, float beta, float rest, float m_size, float g_size, float decay) {
    step(n, p, g, m, key0, key1, offset, beta, rest, m_size, g_size, decay);
}

extern "C" __global__ void __launch_bounds__(THREADS) momentum_pbf16_sr_gbf16_mbf16_sr_captured(
    Index n, Word16* __restrict__ p, const Word16* __restrict__ g, Word16* __restrict__ m, const Word* keys,
    Index offset, const float* table, const Index* row, Index rows) {
    if (*row >= rows) return;
    keys += *row * 2;
    table += *row * 5;
    step(n, p, g, m, keys[0], keys[1], offset, table[0], table[1], table[2], table[3], table[4]);
}
