"""adam_psplit_gbf16_mf8_vuf8: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, p.low, m, m.scale, v, v.scale; reads g: 14.0625 bytes per parameter.
"""

from numba import float32, float64, int32, intp, njit, types, uint16, uint32, uint8

from fastopt.kernels.cpu.intrinsics import buffer, claim, from_bits, high, join, low, one_nan_of_two, prefetch, restore_mode, scratch, select, sqrt, standard_mode, umax, wide_vectors, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, float64,
    float64, float64, float64, float64, float64, float64, float64, float64,
)


@njit(inline="always", error_model="numpy")
def step_0(g_i, m_i, v_i, m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, x9):
    x10 = from_bits(g_i << 16)
    m_new = beta1 * from_bits(word(from_bits(((m_i << 20) & 133169152) + m_scale_i) - x9) | ((m_i << 24) & 2147483648)) + rest1 * x10
    v_new = beta2 * from_bits((v_i << 20) + v_scale_i) + rest2 * (x10 * x10)
    x11 = sqrt(v_new)
    return x11, m_new, v_new, word(m_new) & 2147483647, word(v_new) - 1


@njit(inline="always", error_model="numpy")
def step_1(p_i, p_low_i, m_new, x11, v_new, step_size, root, eps, x13, x14, x15, x18, x19, x22):
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (x11 * root + eps)
    x20 = word(p_new)
    x21 = word(m_new)
    x23 = word(v_new)
    return x20 + 32768 >> 16, x20 & 65535, word(from_bits(x21 & 2147483647) + x14) - select(x21 >= 2147483648, x15, x13) + (x22 >> 12) >> 20, select(x23 < x19, x19, x23) - x18 + ((x22 << 12) >> 12) >> 20, word(p_new) & word(2147483647)


@njit(forceinline=True, error_model="numpy")
def step_2(
    p_i, p_low_i, g_i, m_i, v_i, m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root,
    eps, x24,
):
    x25 = from_bits(g_i << 16)
    m_new = beta1 * from_bits(select((m_i & 127) == 127, word(2143289344), word(from_bits(word(from_bits(((m_i << 20) & 133169152) + m_scale_i) - x24) | ((m_i << 24) & 2147483648))))) + rest1 * x25
    v_new = beta2 * from_bits(select(v_i == 255, word(2143289344), select(v_i == 0, word(0), (v_i << 20) + v_scale_i))) + rest2 * (x25 * x25)
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (sqrt(v_new) * root + eps)
    x26 = word(p_new)
    x27 = word(m_new) & 2147483647
    x28 = word(v_new)
    return x26 + 32768 >> 16, x26 & 65535, m_new, v_new, select(x27 < 2139095040, x27, word(0)), select(x28 < 2139095040, x28, word(0)), word(p_new) & word(2147483647)


@njit(forceinline=True, error_model="numpy")
def step_3(m_new, v_new, x30, x31, x33, x34, x36):
    x35 = word(m_new)
    x37 = word(from_bits(x35 & 2147483647) + x31) - x30 + (x36 >> 12) >> 20
    x38 = word(v_new)
    x39 = select(x38 < x34, x34, x38) - x33 + ((x36 << 12) >> 12) >> 20
    return select(x37 >= 127, word(127), x37 | ((x35 >> 24) & 128)), select(v_new == float32(0.0), word(0), select((x39 > 255) | (x38 >= 2139095040), word(255), x39))


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
    x11_spill_0_at = scratch(float32)
    x11_spill_1_at = scratch(float32)
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
            p = buffer(p_at, strip // 2, uint32, 0, 13)
            p_low = buffer(p_low_at, strip // 2, uint32, 1, 13)
            g = buffer(g_at, strip // 2, uint32, 2, 13)
            m = buffer(m_at, strip // 2, uint16, 3, 13)
            m_scale = buffer(m_scale_at, strip // 256, uint32, 4, 13)
            v = buffer(v_at, strip // 2, uint16, 5, 13)
            v_scale = buffer(v_scale_at, strip // 256, uint32, 6, 13)
            x11_spill_0 = buffer(x11_spill_0_at, 0, float32, 7, 13)
            x11_spill_1 = buffer(x11_spill_1_at, 0, float32, 8, 13)
            m_new_spill_0 = buffer(m_new_spill_0_at, 0, float32, 9, 13)
            m_new_spill_1 = buffer(m_new_spill_1_at, 0, float32, 10, 13)
            v_new_spill_0 = buffer(v_new_spill_0_at, 0, float32, 11, 13)
            v_new_spill_1 = buffer(v_new_spill_1_at, 0, float32, 12, 13)
            m_scale_i = m_scale[0]
            v_scale_i = v_scale[0]
            tile = (offset + strip) // 256
            tile_low, tile_high = word(tile), word(tile >> 32)
            start = word(strip % 256)
            if prefetching:
                prefetch(g, 128)
            x0 = tile_low ^ key0
            x1 = (x0 ^ (x0 >> 16)) * 2246822507
            x2 = (x1 ^ (x1 >> 13)) * 3266489909
            x3 = tile_high ^ key1
            x4 = (x3 ^ (x3 >> 16)) * 2246822507
            x5 = (x4 ^ (x4 >> 13)) * 3266489909
            x6 = ((x2 ^ (x2 >> 16)) ^ (x5 ^ (x5 >> 16))) * 2654435761 * 2654435761
            x7 = x6 ^ (x6 >> 16)
            x8 = (x7 ^ (x7 >> 15)) * 374761393 | 1
            m_codes = buffer(m_at, strip // 4, int32, 3, 13)
            v_codes = buffer(v_at, strip // 4, int32, 5, 13)
            unusual = word(0)
            plain = count == 256
            if plain:
                for i in range(64):
                    unusual = unusual | (m_codes[i] & 2139062143) + 16843009 | (((v_codes[i] & 2139062143) + 16843009 & v_codes[i]) | (~((v_codes[i] & 2139062143) + 2139062143 | v_codes[i])))
                plain = unusual & word(2155905152) == word(0)
            if plain:
                x9 = from_bits(m_scale_i)
                max0 = word(0)
                max1 = word(0)
                for i in range(128):
                    x11_0, m_new_0, v_new_0, max0_0, max1_0 = step_0(low(g[i], 16), low(m[i], 8), low(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, x9)
                    x11_1, m_new_1, v_new_1, max0_1, max1_1 = step_0(high(g[i], 16), high(m[i], 8), high(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, x9)
                    x11_spill_0[i] = x11_0
                    m_new_spill_0[i] = m_new_0
                    v_new_spill_0[i] = v_new_0
                    x11_spill_1[i] = x11_1
                    m_new_spill_1[i] = m_new_1
                    v_new_spill_1[i] = v_new_1
                    max0 = umax(max0, umax(max0_0, max0_1))
                    max1 = umax(max1, umax(max1_0, max1_1))
                if prefetching:
                    prefetch(p, 128)
                    prefetch(p_low, 128)
                plain = max0 < word(2136997632) and max1 < word(2136997887)
            if plain:
                x12 = select(max0 < 2136997632, max0, word(2136997632)) + 2097407 & 2139095040
                x13 = select(x12 > 159383552, x12 - 125829120, word(33554432))
                x14 = from_bits(x13)
                x15 = x13 - 134217728
                x16 = max1 + 1
                x17 = select(x16 < 2136997888, x16, word(2136997888))
                x18 = select(x17 > 266338304, x17 - 266338304, word(0)) + 8388607 & 2139095040
                x19 = x18 + 1048576
                m_scale[0] = x13
                v_scale[0] = x18
                max2 = word(0)
                x22_0 = x7 + start * x8
                x22_1 = x22_0 + x8
                x22_2 = x8 + x8
                for i in range(128):
                    p_0, p_low_0, m_0, v_0, max2_0 = step_1(low(p[i], 16), low(p_low[i], 16), m_new_spill_0[i], x11_spill_0[i], v_new_spill_0[i], step_size, root, eps, x13, x14, x15, x18, x19, x22_0)
                    p_1, p_low_1, m_1, v_1, max2_1 = step_1(high(p[i], 16), high(p_low[i], 16), m_new_spill_1[i], x11_spill_1[i], v_new_spill_1[i], step_size, root, eps, x13, x14, x15, x18, x19, x22_1)
                    p[i] = join(p_0, p_1, 16)
                    p_low[i] = join(p_low_0, p_low_1, 16)
                    m[i] = join(m_0, m_1, 8)
                    v[i] = join(v_0, v_1, 8)
                    max2 = umax(max2, umax(max2_0, max2_1))
                    x22_0 = x22_0 + x22_2
                    x22_1 = x22_1 + x22_2
                if max2 > word(2139095040):
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 13), buffer(p_low_at, strip, uint16, 1, 13), count)
            else:
                x24 = from_bits(m_scale_i)
                max3 = word(0)
                max4 = word(0)
                max5 = word(0)
                for i in range(count // 2):
                    p_0, p_low_0, m_new_0, v_new_0, max3_0, max4_0, max5_0 = step_2(low(p[i], 16), low(p_low[i], 16), low(g[i], 16), low(m[i], 8), low(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x24)
                    p_1, p_low_1, m_new_1, v_new_1, max3_1, max4_1, max5_1 = step_2(high(p[i], 16), high(p_low[i], 16), high(g[i], 16), high(m[i], 8), high(v[i], 8), m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x24)
                    p[i] = join(p_0, p_1, 16)
                    p_low[i] = join(p_low_0, p_low_1, 16)
                    m_new_spill_0[i] = m_new_0
                    v_new_spill_0[i] = v_new_0
                    m_new_spill_1[i] = m_new_1
                    v_new_spill_1[i] = v_new_1
                    max3 = umax(max3, umax(max3_0, max3_1))
                    max4 = umax(max4, umax(max4_0, max4_1))
                    max5 = umax(max5, umax(max5_0, max5_1))
                if count % 2:
                    p_last = buffer(p_at, strip + count - 1, uint16, 0, 13)
                    p_low_last = buffer(p_low_at, strip + count - 1, uint16, 1, 13)
                    g_last = buffer(g_at, strip + count - 1, uint16, 2, 13)
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 13)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 13)
                    p_0, p_low_0, m_new_0, v_new_0, max3_0, max4_0, max5_0 = step_2(p_last[0], p_low_last[0], g_last[0], m_last[0], v_last[0], m_scale_i, v_scale_i, beta1, rest1, beta2, rest2, step_size, root, eps, x24)
                    p_last[0] = p_0
                    p_low_last[0] = p_low_0
                    m_new_spill_0[count // 2] = m_new_0
                    v_new_spill_0[count // 2] = v_new_0
                    max3 = umax(max3, max3_0)
                    max4 = umax(max4, max4_0)
                    max5 = umax(max5, max5_0)
                if max5 > word(2139095040):
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 13), buffer(p_low_at, strip, uint16, 1, 13), count)
                x29 = select(max3 < 2136997632, max3, word(2136997632)) + 2097407 & 2139095040
                x30 = select(x29 > 159383552, x29 - 125829120, word(33554432))
                x31 = from_bits(x30)
                x32 = select(max4 < 2136997888, max4, word(2136997888))
                x33 = select(x32 > 266338304, x32 - 266338304, word(0)) + 8388607 & 2139095040
                x34 = x33 + 1048576
                m_scale[0] = x30
                v_scale[0] = x33
                x36_0 = x7 + start * x8
                x36_1 = x36_0 + x8
                x36_2 = x8 + x8
                for i in range(count // 2):
                    m_0, v_0 = step_3(m_new_spill_0[i], v_new_spill_0[i], x30, x31, x33, x34, x36_0)
                    m_1, v_1 = step_3(m_new_spill_1[i], v_new_spill_1[i], x30, x31, x33, x34, x36_1)
                    m[i] = join(m_0, m_1, 8)
                    v[i] = join(v_0, v_1, 8)
                    x36_0 = x36_0 + x36_2
                    x36_1 = x36_1 + x36_2
                if count % 2:
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 13)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 13)
                    m_0, v_0 = step_3(m_new_spill_0[count // 2], v_new_spill_0[count // 2], x30, x31, x33, x34, x36_0)
                    m_last[0] = m_0
                    v_last[0] = v_0
        first = claim(job, first, chunk)
    restore_mode(mode)
