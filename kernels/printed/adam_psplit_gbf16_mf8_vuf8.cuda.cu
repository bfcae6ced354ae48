// adam_psplit_gbf16_mf8_vuf8: one step on an NVIDIA GPU in float32. Printed by fastopt; do not edit.
//
// Reads and writes p, p.low, m, m.scale, v, v.scale; reads g: 14.0625 bytes per parameter.
// The bits are those of every backend when compiled with --fmad=false --ftz=false --prec-div=true --prec-sqrt=true.

#include "tile.cuh"

__device__ __forceinline__ void step(
    Index n, Word16* __restrict__ p, Word16* __restrict__ p_low, const Word16* __restrict__ g, Word8* __restrict__ m,
    Word* __restrict__ m_scale, Word8* __restrict__ v, Word* __restrict__ v_scale, Word key0, Word key1, Index offset,
    float beta1, float rest1, float beta2, float rest2, float step_size, float root, float eps, float decay,
    float keep) {
    constexpr int PACK = 8;
    const bool whole = packed<PACK>(p) && packed<PACK>(p_low) && packed<PACK>(g) && packed<PACK>(m) && packed<PACK>(v);
    for (Index first = first_tile() * TILE; first < n; first += warps_in_grid() * TILE) {
        const Index count = n - first;
        Narrow<Word16> p_tile, p_low_tile, g_tile;
        Narrow<Word8> m_tile, v_tile;
        float m_new_spill[HELD], v_new_spill[HELD];
        if (whole && count >= TILE) {
            load<PACK>(p_tile, p + first);
            load<PACK>(p_low_tile, p_low + first);
            load<PACK>(g_tile, g + first);
            load<PACK>(m_tile, m + first);
            load<PACK>(v_tile, v + first);
        } else {
            load<PACK>(p_tile, p + first, count);
            load<PACK>(p_low_tile, p_low + first, count);
            load<PACK>(g_tile, g + first, count);
            load<PACK>(m_tile, m + first, count);
            load<PACK>(v_tile, v + first, count);
        }
        const Index tile = first / TILE;
        const Word m_scale_i = m_scale[tile];
        const Word v_scale_i = v_scale[tile];
        const Index number = offset / TILE + tile;
        const Word tile_low = Word(number), tile_high = Word(number >> 32);
        const Word x0 = m_scale_i & 0x7f800000u;
        const float x1 = __uint_as_float(x0);
        const Word x2 = v_scale_i & 0x7f800000u;
        Word max0 = 0, max1 = 0;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const Word p_i = p_tile[i];
            const Word p_low_i = p_low_tile[i];
            const Word g_i = g_tile[i];
            const Word m_i = m_tile[i];
            const Word v_i = v_tile[i];
            const float x3 = __uint_as_float(((Word(Signed8(m_i)) << 20u) & 0x87f00000u) + x0);
            const float x4 = __uint_as_float(g_i << 16u);
            const float m_new = beta1 * __uint_as_float(((m_i & 127u) == 127u) ? 0x7fc00000u : __float_as_uint(x3 -
                copysign(x1, x3))) + rest1 * x4;
            const float v_new = beta2 * __uint_as_float((v_i == 255u) ? 0x7fc00000u : ((v_i == 0u) ? 0u : (v_i << 20u) +
                x2)) + rest2 * (x4 * x4);
            const float p_new = __uint_as_float(((p_i - (p_low_i >> 15u)) << 16u) | p_low_i) - step_size * m_new /
                (sqrt(v_new) * root + eps);
            const Word x5 = p_new != p_new ? 0x7fc00000u : __float_as_uint(p_new);
            const Word x6 = __float_as_uint(m_new) & 0x7fffffffu;
            const Word x7 = __float_as_uint(v_new);
            max0 = larger(max0, position<PACK>(i) < count ? ((x6 < 0x7f800000u) ? x6 : 0u) : 0u);
            max1 = larger(max1, position<PACK>(i) < count ? ((x7 < 0x7f800000u) ? x7 : 0u) : 0u);
            m_new_spill[i] = m_new;
            v_new_spill[i] = v_new;
            p_tile.set(i, (x5 + 0x8000u) >> 16u);
            p_low_tile.set(i, x5 & 0xffffu);
        }
        max0 = warp_max(max0);
        max1 = warp_max(max1);
        if (whole && count >= TILE) {
            store<PACK>(p + first, p_tile);
            store<PACK>(p_low + first, p_low_tile);
        } else {
            store<PACK>(p + first, p_tile, count);
            store<PACK>(p_low + first, p_low_tile, count);
        }
        const Word x8 = (((max0 < 0x7f5fff00u) ? max0 : 0x7f5fff00u) + 0x2000ffu) & 0x7f800000u;
        const Word x9 = (x8 > 0x9800000u) ? x8 - 0x7800000u : 0x2000000u;
        const float x10 = __uint_as_float(x9);
        const Word x11 = tile_low ^ key0;
        const Word x12 = (x11 ^ (x11 >> 16u)) * 0x85ebca6bu;
        const Word x13 = (x12 ^ (x12 >> 13u)) * 0xc2b2ae35u;
        const Word x14 = tile_high ^ key1;
        const Word x15 = (x14 ^ (x14 >> 16u)) * 0x85ebca6bu;
        const Word x16 = (x15 ^ (x15 >> 13u)) * 0xc2b2ae35u;
        const Word x17 = ((x13 ^ (x13 >> 16u)) ^ (x16 ^ (x16 >> 16u))) * 0x9e3779b1u * 0x9e3779b1u;
        const Word x18 = x17 ^ (x17 >> 16u);
        const Word x19 = ((x18 ^ (x18 >> 15u)) * 0x165667b1u) | 1u;
        const Word x20 = (max1 < 0x7f600000u) ? max1 : 0x7f600000u;
        const Word x21 = (((x20 > 0xfe00000u) ? x20 - 0xfe00000u : 0u) + 0x7fffffu) & 0x7f800000u;
        const Word x22 = x21 + 0x100000u;
        __syncwarp();
        if (lane() == 0) {
            m_scale[tile] = x9;
            v_scale[tile] = x21;
        }
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const float m_new = m_new_spill[i];
            const float v_new = v_new_spill[i];
            const Word index = position<PACK>(i);
            const Word x23 = __float_as_uint(m_new);
            const Word x24 = x18 + x19 * index;
            const Word x25 = (__float_as_uint(__uint_as_float(x23 & 0x7fffffffu) + x10) - x9 + (x24 >> 12u)) >> 20u;
            const Word x26 = __float_as_uint(v_new);
            const Word x27 = (((x26 < x22) ? x22 : x26) - x21 + ((x24 << 12u) >> 12u)) >> 20u;
            m_tile.set(i, (x25 >= 127u) ? 127u : (x25 | ((x23 >> 24u) & 128u)));
            v_tile.set(i, (v_new == 0.0f) ? 0u : (((x27 > 255u) | (x26 >= 0x7f800000u)) ? 255u : x27));
        }
        if (whole && count >= TILE) {
            store<PACK>(m + first, m_tile);
            store<PACK>(v + first, v_tile);
        } else {
            store<PACK>(m + first, m_tile, count);
            store<PACK>(v + first, v_tile, count);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_psplit_gbf16_mf8_vuf8(
    Index n, Word16* __restrict__ p, Word16* __restrict__ p_low, const Word16* __restrict__ g, Word8* __restrict__ m,
    Word* __restrict__ m_scale, Word8* __restrict__ v, Word* __restrict__ v_scale, Word key0, Word key1, Index offset,
    float beta1, float rest1, float beta2, float rest2, float step_size, float root, float eps, float decay,
    float keep) {
    step(
        n, p, p_low, g, m, m_scale, v, v_scale, key0, key1, offset, beta1, rest1, beta2, rest2, step_size, root, eps,
        decay, keep);
}

extern "C" __global__ void __launch_bounds__(THREADS) adam_psplit_gbf16_mf8_vuf8_captured(
    Index n, Word16* __restrict__ p, Word16* __restrict__ p_low, const Word16* __restrict__ g, Word8* __restrict__ m,
    Word* __restrict__ m_scale, Word8* __restrict__ v, Word* __restrict__ v_scale, const Word* keys, Index offset,
    const float* table, const Index* row, Index rows) {
    if (*row >= rows) return;
    keys += *row * 2;
    table += *row * 9;
    step(
        n, p, p_low, g, m, m_scale, v, v_scale, keys[0], keys[1], offset, table[0], table[1], table[2], table[3],
        table[4], table[5], table[6], table[7], table[8]);
}
