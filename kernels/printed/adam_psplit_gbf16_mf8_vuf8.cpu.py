"""adam_psplit_gbf16_mf8_vuf8: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, p.low, m, m.scale, v, v.scale; reads g: 14.0625 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types, uint16, uint32, uint8

from fastopt.kernels.cpu.intrinsics import buffer, claim, from_bits, high, join, low, prefetch, restore_mode, scratch, select, sqrt, standard_mode, umax, wide_vectors, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, float64,
    float64, float64, float64, float64, float64, float64, float64, float64,
)


@njit(inline="always", error_model="numpy")
def step_0(
    p_i, p_low_i, g_i, m_i, v_i, m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root,
    eps, x0,
):
    x1 = m_i & word(127)
    x2 = from_bits(g_i << word(16))
    m_new = beta1 * from_bits(select(x1 == word(127), word(2143289344), word(from_bits((x1 << word(20)) + m_scale_i) - x0) | ((m_i & word(128)) << word(24)))) + rest1 * x2
    v_new = beta2 * from_bits(select(v_i == word(255), word(2143289344), select(v_i == word(0), word(0), (v_i << word(20)) + v_scale_i))) + rest2 * (x2 * x2)
    p_new = from_bits((p_i - (p_low_i >> word(15)) << word(16)) | p_low_i) - step_size * m_new / (sqrt(v_new) * root + eps)
    x3 = select(p_new != p_new, word(2143289344), word(p_new))
    x4 = word(m_new) & word(2147483647)
    x5 = word(v_new)
    return x3 + word(32768) >> word(16), x3 & word(65535), m_new, v_new, select(x4 < word(2139095040), x4, word(0)), select(x5 < word(2139095040), x5, word(0))


@njit(inline="always", error_model="numpy")
def step_1(m_new, v_new, index, x15, x18, x20, x21, x7, x8):
    x22 = word(m_new)
    x23 = (index ^ x15) * x18
    x24 = x23 ^ (x23 >> word(16))
    x25 = word(from_bits(x22 & word(2147483647)) + x8) - x7 + (x24 >> word(12)) >> word(20)
    x26 = word(v_new)
    x27 = (select(x26 < x21, x21, x26) - x20 >> word(4)) + ((x24 << word(16)) >> word(16)) >> word(16)
    return select(x25 >= word(127), word(127), x25 | ((x22 >> word(24)) & word(128))), select(v_new == float32(0.0), word(0), select(x27 > word(255), word(255), x27))


@njit(nogil=True, error_model="numpy")
def adam_psplit_gbf16_mf8_vuf8(
    job, n, chunk, prefetching, p_at, p_low_at, g_at, m_at, m_scale_at, v_at, v_scale_at, key0,
    key1, offset, beta1, rest1, beta2, rest2, step_size, root, eps, decay, keep,
):
    mode = standard_mode()
    wide_vectors()
    beta1 = float32(beta1)
    rest1 = float32(rest1)
    beta2 = float32(beta2)
    rest2 = float32(rest2)
    step_size = float32(step_size)
    root = float32(root)
    eps = float32(eps)
    decay = float32(decay)
    keep = float32(keep)
    key0, key1 = word(key0), word(key1)
    m_new_spill_0_at = scratch(float32)
    m_new_spill_1_at = scratch(float32)
    v_new_spill_0_at = scratch(float32)
    v_new_spill_1_at = scratch(float32)
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 256
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip // 2, uint32, 0, 11)
            p_low = buffer(p_low_at, strip // 2, uint32, 1, 11)
            g = buffer(g_at, strip // 2, uint32, 2, 11)
            m = buffer(m_at, strip // 2, uint16, 3, 11)
            m_scale = buffer(m_scale_at, strip // 256, uint32, 4, 11)
            v = buffer(v_at, strip // 2, uint16, 5, 11)
            v_scale = buffer(v_scale_at, strip // 256, uint32, 6, 11)
            m_new_spill_0 = buffer(m_new_spill_0_at, 0, float32, 7, 11)
            m_new_spill_1 = buffer(m_new_spill_1_at, 0, float32, 8, 11)
            v_new_spill_0 = buffer(v_new_spill_0_at, 0, float32, 9, 11)
            v_new_spill_1 = buffer(v_new_spill_1_at, 0, float32, 10, 11)
            m_scale_i = m_scale[0]
            v_scale_i = v_scale[0]
            tile = (offset + strip) // 256
            tile_low, tile_high = word(tile), word(tile >> 32)
            start = word(strip % 256)
            x0 = from_bits(m_scale_i)
            max0 = word(0)
            max1 = word(0)
            for i in range(count // 2):
                p_0, p_low_0, m_new_0, v_new_0, max0_0, max1_0 = step_0(low(p[i], 16), low(p_low[i], 16), low(g[i], 16), low(m[i], 8), low(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x0)
                p_1, p_low_1, m_new_1, v_new_1, max0_1, max1_1 = step_0(high(p[i], 16), high(p_low[i], 16), high(g[i], 16), high(m[i], 8), high(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x0)
                p[i] = join(p_0, p_1, 16)
                p_low[i] = join(p_low_0, p_low_1, 16)
                m_new_spill_0[i] = m_new_0
                v_new_spill_0[i] = v_new_0
                m_new_spill_1[i] = m_new_1
                v_new_spill_1[i] = v_new_1
                max0 = umax(max0, umax(max0_0, max0_1))
                max1 = umax(max1, umax(max1_0, max1_1))
            if count % 2:
                p_last = buffer(p_at, strip + count - 1, uint16, 0, 11)
                p_low_last = buffer(p_low_at, strip + count - 1, uint16, 1, 11)
                g_last = buffer(g_at, strip + count - 1, uint16, 2, 11)
                m_last = buffer(m_at, strip + count - 1, uint8, 3, 11)
                v_last = buffer(v_at, strip + count - 1, uint8, 5, 11)
                p_0, p_low_0, m_new_0, v_new_0, max0_0, max1_0 = step_0(p_last[0], p_low_last[0], g_last[0], m_last[0], v_last[0], m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x0)
                p_last[0] = p_0
                p_low_last[0] = p_low_0
                m_new_spill_0[count // 2] = m_new_0
                v_new_spill_0[count // 2] = v_new_0
                max0 = umax(max0, max0_0)
                max1 = umax(max1, max1_0)
            if prefetching:
                prefetch(p, 128)
                prefetch(p_low, 128)
                prefetch(g, 128)
            x6 = select(max0 < word(2136997632), max0, word(2136997632)) + word(2097407) & word(2139095040)
            x7 = select(x6 > word(159383552), x6 - word(125829120), word(33554432))
            x8 = from_bits(x7)
            x9 = tile_low ^ key0
            x10 = (x9 ^ (x9 >> word(16))) * word(2246822507)
            x11 = (x10 ^ (x10 >> word(13))) * word(3266489909)
            x12 = tile_high ^ key1
            x13 = (x12 ^ (x12 >> word(16))) * word(2246822507)
            x14 = (x13 ^ (x13 >> word(13))) * word(3266489909)
            x15 = ((x11 ^ (x11 >> word(16))) ^ (x14 ^ (x14 >> word(16)))) * word(2654435761)
            x16 = (x15 ^ (x15 >> word(16))) * word(2246822507)
            x17 = (x16 ^ (x16 >> word(13))) * word(3266489909)
            x18 = (x17 ^ (x17 >> word(16))) | word(1)
            x19 = select(max1 < word(2136997888), max1, word(2136997888))
            x20 = select(x19 > word(266338304), x19 - word(266338304), word(0)) + word(8388607) & word(2139095040)
            x21 = x20 + word(1048576)
            m_scale[0] = x7
            v_scale[0] = x20
            for i in range(count // 2):
                m_0, v_0 = step_1(m_new_spill_0[i], v_new_spill_0[i], start + word(2 * i), x15, x18, x20, x21, x7, x8)
                m_1, v_1 = step_1(m_new_spill_1[i], v_new_spill_1[i], start + word(2 * i + 1), x15, x18, x20, x21, x7, x8)
                m[i] = join(m_0, m_1, 8)
                v[i] = join(v_0, v_1, 8)
            if count % 2:
                m_last = buffer(m_at, strip + count - 1, uint8, 3, 11)
                v_last = buffer(v_at, strip + count - 1, uint8, 5, 11)
                m_0, v_0 = step_1(m_new_spill_0[count // 2], v_new_spill_0[count // 2], start + word(count - 1), x15, x18, x20, x21, x7, x8)
                m_last[0] = m_0
                v_last[0] = v_0
        first = claim(job, first, chunk)
    restore_mode(mode)
