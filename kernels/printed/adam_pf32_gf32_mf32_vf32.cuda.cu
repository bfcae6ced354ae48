// adam_pf32_gf32_mf32_vf32: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p, m, v; reads g: 28 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
    float beta1, float rest1, float beta2, float rest2, float step_size, float root, float eps, float decay,
    float keep) {
    constexpr int PACK = 4;
    const bool whole = packed<PACK>(p) && packed<PACK>(g) && packed<PACK>(m) && packed<PACK>(v);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        float p_tile[HELD], g_tile[HELD], m_tile[HELD], v_tile[HELD];
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(g_tile, g + first);
            load<PACK>(m_tile, m + first);
            load<PACK>(v_tile, v + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(g_tile, g + first, count);
            load<PACK>(m_tile, m + first, count);
            load<PACK>(v_tile, v + first, count);
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float p_i = p_tile[i];
            const float g_i = g_tile[i];
            const float m_i = m_tile[i];
            const float v_i = v_tile[i];
            const float m_new = beta1 * m_i + rest1 * g_i;
            const float v_new = beta2 * v_i + rest2 * (g_i * g_i);
            const float p_new = p_i - step_size * m_new / (sqrt(v_new) * root + eps);
            p_tile[i] = p_new;
            m_tile[i] = m_new;
            v_tile[i] = v_new;
        }
        if (whole && count >= TILE) {
            store<PACK>(p + first, p_tile);
            store<PACK>(m + first, m_tile);
            store<PACK>(v + first, v_tile);
        } else {
            store<PACK>(p + first, p_tile, count);
            store<PACK>(m + first, m_tile, count);
            store<PACK>(v + first, v_tile, count);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_pf32_gf32_mf32_vf32(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
    float beta1, float rest1, float beta2, float rest2, float step_size, float root, float eps, float decay,
    float keep) {
    step(n, p, g, m, v, beta1, rest1, beta2, rest2, step_size, root, eps, decay, keep);
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_pf32_gf32_mf32_vf32_captured(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
    const float* table, const Index* row, Index rows) {
    if (*row >= rows) return;
    table += *row * 9;
    step(n, p, g, m, v, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7], table[8]);
}
