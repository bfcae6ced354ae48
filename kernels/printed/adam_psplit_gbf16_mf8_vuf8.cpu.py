"""adam_psplit_gbf16_mf8_vuf8: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, p.low, m, m.scale, v, v.scale; reads g: 14.0625 bytes per parameter.
"""

from numba import float32, float64, int32, intp, njit, types, uint16, uint32, uint8

from fastopt.kernels.cpu.apply import apply
from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode, wide_vectors
from fastopt.kernels.cpu.memory import buffer, one_nan_of_two, scratch
from fastopt.kernels.cpu.values import LANES, each, from_bits, high, join, low, ramp, select, sqrt, top, umax, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, float64,
    float64, float64, float64, float64, float64, float64, float64, float64,
)


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_0(g_i, m_i, v_i, beta1, rest1, beta2, rest2, x10, x11, x9):
    x12 = from_bits(g_i << 16)
    m_new = beta1 * from_bits(word(from_bits(((m_i << 20) & 133169152) + x9) - x10) | ((m_i << 24) & 2147483648)) + rest1 * x12
    v_new = beta2 * from_bits((v_i << 20) + x11) + rest2 * (x12 * x12)
    x13 = sqrt(v_new)
    return x13, m_new, v_new, word(m_new) & 2147483647, word(v_new) - 1


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_1(p_i, p_low_i, m_new, x13, v_new, step_size, root, eps, x15, x16, x17, x20, x21, x24):
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (x13 * root + eps)
    x22 = word(p_new)
    x23 = word(m_new)
    x25 = word(v_new)
    return x22 + 32768 >> 16, x22 & 65535, word(from_bits(x23 & 2147483647) + x16) - select(x23 >= 2147483648, x17, x15) + (x24 >> 12) >> 20, select(x25 < x21, x21, x25) - x20 + ((x24 << 12) >> 12) >> 20, word(p_new) & word(2147483647)


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_2(g_i, m_i, v_i, beta1, rest1, beta2, rest2, x26, x27, x28):
    x29 = from_bits(g_i << 16)
    m_new = beta1 * from_bits(select((m_i & 127) == 127, word(2143289344), word(from_bits(word(from_bits(((m_i << 20) & 133169152) + x26) - x27) | ((m_i << 24) & 2147483648))))) + rest1 * x29
    x30 = word(m_new) & 2147483647
    v_new = beta2 * from_bits(select(v_i == 255, word(2143289344), select(v_i == 0, word(0), (v_i << 20) + x28))) + rest2 * (x29 * x29)
    x31 = word(v_new)
    x32 = sqrt(v_new)
    return x32, m_new, v_new, select(x30 < 2139095040, x30, word(0)), select(x31 < 2139095040, x31, word(0))


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_3(p_i, p_low_i, m_new, x32, v_new, step_size, root, eps, x34, x35, x37, x38, x41):
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (x32 * root + eps)
    x39 = word(p_new)
    x40 = word(m_new)
    x42 = word(from_bits(x40 & 2147483647) + x35) - x34 + (x41 >> 12) >> 20
    x43 = word(v_new)
    x44 = select(x43 < x38, x38, x43) - x37 + ((x41 << 12) >> 12) >> 20
    return x39 + 32768 >> 16, x39 & 65535, select(x42 >= 127, word(127), x42 | ((x40 >> 24) & 128)), select(v_new == float32(0.0), word(0), select((x44 > 255) | (x43 >= 2139095040), word(255), x44)), word(p_new) & word(2147483647)


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
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
    x13_spill_0 = scratch(float32, 7, 15)
    x13_spill_1 = scratch(float32, 8, 15)
    m_new_spill_0 = scratch(float32, 9, 15)
    m_new_spill_1 = scratch(float32, 10, 15)
    v_new_spill_0 = scratch(float32, 11, 15)
    v_new_spill_1 = scratch(float32, 12, 15)
    x32_spill_0 = scratch(float32, 13, 15)
    x32_spill_1 = scratch(float32, 14, 15)
    far = 256 if prefetching else 0
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 256
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip // 2, uint32, 0, 15)
            p_low = buffer(p_low_at, strip // 2, uint32, 1, 15)
            g = buffer(g_at, strip // 2, uint32, 2, 15)
            m = buffer(m_at, strip // 2, uint16, 3, 15)
            m_scale = buffer(m_scale_at, strip // 256, uint32, 4, 15)
            v = buffer(v_at, strip // 2, uint16, 5, 15)
            v_scale = buffer(v_scale_at, strip // 256, uint32, 6, 15)
            m_scale_i = m_scale[0]
            v_scale_i = v_scale[0]
            tile = (offset + strip) // 256
            tile_low, tile_high = word(tile), word(tile >> 32)
            start = word(strip % 256)
            x0 = tile_low ^ key0
            x1 = (x0 ^ (x0 >> 16)) * 2246822507
            x2 = (x1 ^ (x1 >> 13)) * 3266489909
            x3 = tile_high ^ key1
            x4 = (x3 ^ (x3 >> 16)) * 2246822507
            x5 = (x4 ^ (x4 >> 13)) * 3266489909
            x6 = ((x2 ^ (x2 >> 16)) ^ (x5 ^ (x5 >> 16))) * 2654435761 * 2654435761
            x7 = x6 ^ (x6 >> 16)
            x8 = (x7 ^ (x7 >> 15)) * 374761393 | 1
            m_codes = buffer(m_at, strip // 4, int32, 3, 15)
            v_codes = buffer(v_at, strip // 4, int32, 5, 15)
            unusual = word(0)
            plain = count == 256
            if plain:
                for i in range(64):
                    unusual = unusual | (m_codes[i] & 2139062143) + 16843009 | (((v_codes[i] & 2139062143) + 16843009 & v_codes[i]) | (~((v_codes[i] & 2139062143) + 2139062143 | v_codes[i])))
                plain = unusual & word(2155905152) == word(0)
            max0 = word(0)
            max1 = word(0)
            if plain:
                x9 = m_scale_i & 2139095040
                x10 = from_bits(x9)
                x11 = v_scale_i & 2139095040
                max0_each = each(word(0))
                max1_each = each(word(0))
                for i in range(0, 128, 2 * LANES):
                    max0_each, max1_each = apply(
                        step_0, 2, 2, i, far,
                        loads=(g, m, v),
                        reloads=(),
                        uniform=(beta1, rest1, beta2, rest2, x10, x11, x9),
                        sequences=(),
                        stores=(),
                        spills=(x13_spill_0, m_new_spill_0, v_new_spill_0, x13_spill_1, m_new_spill_1, v_new_spill_1),
                        maxima=(max0_each, max1_each),
                    )
                max0 = top(max0_each)
                max1 = top(max1_each)
                plain = max0 < word(2136997632) and max1 < word(2136997887)
            if plain:
                x14 = select(max0 < 2136997632, max0, word(2136997632)) + 2097407 & 2139095040
                x15 = select(x14 > 159383552, x14 - 125829120, word(33554432))
                x16 = from_bits(x15)
                x17 = x15 - 134217728
                x18 = max1 + 1
                x19 = select(x18 < 2136997888, x18, word(2136997888))
                x20 = select(x19 > 266338304, x19 - 266338304, word(0)) + 8388607 & 2139095040
                x21 = x20 + 1048576
                m_scale[0] = x15
                v_scale[0] = x20
                max2_each = each(word(0))
                x24_each_0 = ramp(x7, x8 + x8)
                x24_each_1 = x24_each_0 + x8
                x24_step = each(x8) * (2 * LANES)
                for i in range(0, 128, 2 * LANES):
                    max2_each, x24_each_0, x24_each_1 = apply(
                        step_1, 2, 2, i, far,
                        loads=(p, p_low),
                        reloads=(m_new_spill_0, x13_spill_0, v_new_spill_0, m_new_spill_1, x13_spill_1, v_new_spill_1),
                        uniform=(step_size, root, eps, x15, x16, x17, x20, x21),
                        sequences=((x24_each_0, x24_each_1, x24_step),),
                        stores=(p, p_low, m, v),
                        spills=(),
                        maxima=(max2_each,),
                    )
                max2 = top(max2_each)
                if max2 > word(2139095040):
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 0), buffer(p_low_at, strip, uint16, 0, 0), count)
            else:
                x26 = m_scale_i & 2139095040
                x27 = from_bits(x26)
                x28 = v_scale_i & 2139095040
                max3 = word(0)
                max4 = word(0)
                for i in range(count // 2):
                    x32_0, m_new_0, v_new_0, max3_0, max4_0 = step_2(low(g[i], 16), low(m[i], 8), low(v[i], 8), beta1, rest1, beta2, rest2, x26, x27, x28)
                    x32_1, m_new_1, v_new_1, max3_1, max4_1 = step_2(high(g[i], 16), high(m[i], 8), high(v[i], 8), beta1, rest1, beta2, rest2, x26, x27, x28)
                    x32_spill_0[i] = x32_0
                    m_new_spill_0[i] = m_new_0
                    v_new_spill_0[i] = v_new_0
                    x32_spill_1[i] = x32_1
                    m_new_spill_1[i] = m_new_1
                    v_new_spill_1[i] = v_new_1
                    max3 = umax(max3, umax(max3_0, max3_1))
                    max4 = umax(max4, umax(max4_0, max4_1))
                if count % 2:
                    g_last = buffer(g_at, strip + count - 1, uint16, 2, 15)
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 15)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 15)
                    x32_0, m_new_0, v_new_0, max3_0, max4_0 = step_2(g_last[0], m_last[0], v_last[0], beta1, rest1, beta2, rest2, x26, x27, x28)
                    x32_spill_0[count // 2] = x32_0
                    m_new_spill_0[count // 2] = m_new_0
                    v_new_spill_0[count // 2] = v_new_0
                    max3 = umax(max3, max3_0)
                    max4 = umax(max4, max4_0)
                x33 = select(max3 < 2136997632, max3, word(2136997632)) + 2097407 & 2139095040
                x34 = select(x33 > 159383552, x33 - 125829120, word(33554432))
                x35 = from_bits(x34)
                x36 = select(max4 < 2136997888, max4, word(2136997888))
                x37 = select(x36 > 266338304, x36 - 266338304, word(0)) + 8388607 & 2139095040
                x38 = x37 + 1048576
                m_scale[0] = x34
                v_scale[0] = x37
                max5 = word(0)
                x41_0 = x7 + start * x8
                x41_1 = x41_0 + x8
                x41_2 = x8 + x8
                for i in range(count // 2):
                    p_0, p_low_0, m_0, v_0, max5_0 = step_3(low(p[i], 16), low(p_low[i], 16), m_new_spill_0[i], x32_spill_0[i], v_new_spill_0[i], step_size, root, eps, x34, x35, x37, x38, x41_0)
                    p_1, p_low_1, m_1, v_1, max5_1 = step_3(high(p[i], 16), high(p_low[i], 16), m_new_spill_1[i], x32_spill_1[i], v_new_spill_1[i], step_size, root, eps, x34, x35, x37, x38, x41_1)
                    p[i] = join(p_0, p_1, 16)
                    p_low[i] = join(p_low_0, p_low_1, 16)
                    m[i] = join(m_0, m_1, 8)
                    v[i] = join(v_0, v_1, 8)
                    max5 = umax(max5, umax(max5_0, max5_1))
                    x41_0 = x41_0 + x41_2
                    x41_1 = x41_1 + x41_2
                if count % 2:
                    p_last = buffer(p_at, strip + count - 1, uint16, 0, 15)
                    p_low_last = buffer(p_low_at, strip + count - 1, uint16, 1, 15)
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 15)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 15)
                    p_0, p_low_0, m_0, v_0, max5_0 = step_3(p_last[0], p_low_last[0], m_new_spill_0[count // 2], x32_spill_0[count // 2], v_new_spill_0[count // 2], step_size, root, eps, x34, x35, x37, x38, x41_0)
                    p_last[0] = p_0
                    p_low_last[0] = p_low_0
                    m_last[0] = m_0
                    v_last[0] = v_0
                    max5 = umax(max5, max5_0)
                if max5 > word(2139095040):
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 0), buffer(p_low_at, strip, uint16, 0, 0), count)
        first = claim(job, first, chunk)
    restore_mode(mode)
