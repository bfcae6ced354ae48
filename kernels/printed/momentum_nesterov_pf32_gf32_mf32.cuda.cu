// momentum_nesterov_pf32_gf32_mf32: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p, m; reads g: 20 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float beta, float rest,
    float m_size, float g_size, float decay) {
    constexpr int PACK = 4;
    const bool whole = packed<PACK>(p) && packed<PACK>(g) && packed<PACK>(m);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        float p_tile[HELD], g_tile[HELD], m_tile[HELD];
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(g_tile, g + first);
            load<PACK>(m_tile, m + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(g_tile, g + first, count);
            load<PACK>(m_tile, m + first, count);
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float p_i = p_tile[i];
            const float g_i = g_tile[i];
            const float m_i = m_tile[i];
            const float m_new = beta * m_i + rest * g_i;
            const float p_new = p_i - (m_size * m_new + g_size * g_i);
            p_tile[i] = p_new;
            m_tile[i] = m_new;
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

extern "C" __global__ void __launch_bounds__(THREADS) momentum_nesterov_pf32_gf32_mf32(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float beta, float rest,
    float m_size, float g_size, float decay) {
    step(n, p, g, m, beta, rest, m_size, g_size, decay);
}

extern "C" __global__ void __launch_bounds__(THREADS) momentum_nesterov_pf32_gf32_mf32_captured(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, const float* table,
    const Index* row, Index rows) {
    if (*row >= rows) return;
    table += *row * 5;
    step(n, p, g, m, table[0], table[1], table[2], table[3], table[4]);
}
