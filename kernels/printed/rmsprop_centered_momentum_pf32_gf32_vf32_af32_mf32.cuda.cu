// rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p, v, a, m; reads g: 36 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ v, float* __restrict__ a,
    float* __restrict__ m, float lr, float alpha, float rest, float eps, float momentum, float decay) {
    constexpr int PACK = 4;
    const bool whole = packed<PACK>(p) && packed<PACK>(g) && packed<PACK>(v) && packed<PACK>(a) && packed<PACK>(m);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        float p_tile[HELD], g_tile[HELD], v_tile[HELD], a_tile[HELD], m_tile[HELD];
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(g_tile, g + first);
            load<PACK>(v_tile, v + first);
            load<PACK>(a_tile, a + first);
            load<PACK>(m_tile, m + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(g_tile, g + first, count);
            load<PACK>(v_tile, v + first, count);
            load<PACK>(a_tile, a + first, count);
            load<PACK>(m_tile, m + first, count);
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float p_i = p_tile[i];
            const float g_i = g_tile[i];
            const float v_i = v_tile[i];
            const float a_i = a_tile[i];
            const float m_i = m_tile[i];
            const float v_new = alpha * v_i + rest * (g_i * g_i);
            const float a_new = alpha * a_i + rest * g_i;
            const float x0 = v_new - a_new * a_new;
            const float m_new = momentum * m_i + g_i / (sqrt((x0 < 0.0f) ? 0.0f : x0) + eps);
            const float p_new = p_i - lr * m_new;
            p_tile[i] = p_new;
            v_tile[i] = v_new;
            a_tile[i] = a_new;
            m_tile[i] = m_new;
        }
        if (whole && count >= TILE) {
            store<PACK>(p + first, p_tile);
            store<PACK>(v + first, v_tile);
            store<PACK>(a + first, a_tile);
            store<PACK>(m + first, m_tile);
        } else {
            store<PACK>(p + first, p_tile, count);
            store<PACK>(v + first, v_tile, count);
            store<PACK>(a + first, a_tile, count);
            store<PACK>(m + first, m_tile, count);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ v, float* __restrict__ a,
    float* __restrict__ m, float lr, float alpha, float rest, float eps, float momentum, float decay) {
    step(n, p, g, v, a, m, lr, alpha, rest, eps, momentum, decay);
}

extern "C" __global__ void __launch_bounds__(THREADS) rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32_captured(
    Index n, float* __restrict__ p, const float* __restrict__ g, float* __restrict__ v, float* __restrict__ a,
    float* __restrict__ m, const float* table, const Index* row, Index rows) {
    if (*row >= rows) return;
    table += *row * 6;
    step(n, p, g, v, a, m, table[0], table[1], table[2], table[3], table[4], table[5]);
}
