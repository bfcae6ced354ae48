"""adam_psplit_gbf16_mf8_vuf8: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, p.low, m, m.scale, v, v.scale; reads g: 14.0625 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types, uint16, uint32, uint8

from fastopt.kernels.cpu.apply import apply
from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode, wide_vectors
from fastopt.kernels.cpu.memory import buffer, one_nan_of_two, scratch
from fastopt.kernels.cpu.narrow import within
from fastopt.kernels.cpu.values import LANES, any_half_above, copysign, each, from_bits, high, join, low, ramp, select, signed, sqrt, top, umax, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, float64,
    float64, float64, float64, float64, float64, float64, float64, float64,
)


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_0(g_i, m_i, v_i, beta1, rest1, beta2, rest2, x10, x11, x9):
    x12 = from_bits(((m_i << 20) & 2280652800) + x9)
    x13 = from_bits(g_i << 16)
    m_new = beta1 * (x12 - copysign(x10, x12)) + rest1 * x13
    v_new = beta2 * from_bits((v_i << 20) + x11) + rest2 * (x13 * x13)
    x14 = sqrt(v_new)
    return x14, m_new, v_new, word(m_new) & 2147483647, word(v_new) - 1


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_1(m_new, v_new, x16, x17, x18, x21, x23):
    x22 = word(m_new)
    return word(from_bits(x22 & 2147483647) + x17) - select(x22 >= 2147483648, x18, x16) + (x23 >> 12), word(v_new) - x21 + ((x23 << 12) >> 12)


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_2(p_i, p_low_i, m_new, x14, step_size, root, eps):
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (x14 * root + eps)
    x24 = word(p_new)
    x25 = x24 + 32768 >> 16
    return x25, x24 & 65535


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_3(g_i, m_i, v_i, beta1, rest1, beta2, rest2, x26, x27, x28):
    x29 = from_bits(((signed(m_i) << 20) & 2280652800) + x26)
    x30 = from_bits(g_i << 16)
    m_new = beta1 * from_bits(select((m_i & 127) == 127, word(2143289344), word(x29 - copysign(x27, x29)))) + rest1 * x30
    x31 = word(m_new) & 2147483647
    v_new = beta2 * from_bits(select(v_i == 255, word(2143289344), select(v_i == 0, word(0), (v_i << 20) + x28))) + rest2 * (x30 * x30)
    x32 = word(v_new)
    x33 = sqrt(v_new)
    return x33, m_new, v_new, select(x31 < 2139095040, x31, word(0)), select(x32 < 2139095040, x32, word(0))


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step_4(p_i, p_low_i, m_new, x33, v_new, step_size, root, eps, x35, x36, x38, x39, x43):
    p_new = from_bits((p_i - (p_low_i >> 15) << 16) | p_low_i) - step_size * m_new / (x33 * root + eps)
    x40 = word(p_new)
    x41 = x40 + 32768 >> 16
    x42 = word(m_new)
    x44 = word(from_bits(x42 & 2147483647) + x36) - x35 + (x43 >> 12) >> 20
    x45 = word(v_new)
    x46 = select(x45 < x39, x39, x45) - x38 + ((x43 << 12) >> 12) >> 20
    return x41, x40 & 65535, select(x44 >= 127, word(127), x44 | ((x42 >> 24) & 128)), select(v_new == float32(0.0), word(0), select((x46 > 255) | (x45 >= 2139095040), word(255), x46))


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
    x14_spill_0 = scratch(float32, 7, 15)
    x14_spill_1 = scratch(float32, 8, 15)
    m_new_spill_0 = scratch(float32, 9, 15)
    m_new_spill_1 = scratch(float32, 10, 15)
    v_new_spill_0 = scratch(float32, 11, 15)
    v_new_spill_1 = scratch(float32, 12, 15)
    x33_spill_0 = scratch(float32, 13, 15)
    x33_spill_1 = scratch(float32, 14, 15)
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
            plain = count == 256
            plain = plain and within(buffer(m_at, strip, uint8, 3, 15), 127, 0, 126)
            plain = plain and within(buffer(v_at, strip, uint8, 5, 15), 255, 1, 254)
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
                        signs=(0, 1, 0),
                        reloads=(),
                        uniform=(beta1, rest1, beta2, rest2, x10, x11, x9),
                        sequences=(),
                        stores=(),
                        least=(),
                        spills=(x14_spill_0, m_new_spill_0, v_new_spill_0, x14_spill_1, m_new_spill_1, v_new_spill_1),
                        maxima=(max0_each, max1_each),
                        quiet=(),
                        unread=(),
                    )
                max0 = top(max0_each)
                max1 = top(max1_each)
                plain = max0 < word(2136997632) and max1 < word(2136997887)
            if plain:
                x15 = select(max0 < 2136997632, max0, word(2136997632)) + 2097407 & 2139095040
                x16 = select(x15 > 159383552, x15 - 125829120, word(33554432))
                x17 = from_bits(x16)
                x18 = x16 - 134217728
                x19 = max1 + 1
                x20 = select(x19 < 2136997888, x19, word(2136997888))
                x21 = select(x20 > 266338304, x20 - 266338304, word(0)) + 8388607 & 2139095040
                m_scale[0] = x16
                v_scale[0] = x21
                x23_each_0 = ramp(x7, x8 + x8)
                x23_each_1 = x23_each_0 + x8
                x23_step = each(x8) * (2 * LANES)
                for i in range(0, 128, 2 * LANES):
                    x23_each_0, x23_each_1 = apply(
                        step_1, 2, 2, i, far,
                        loads=(),
                        signs=(),
                        reloads=(m_new_spill_0, v_new_spill_0, m_new_spill_1, v_new_spill_1),
                        uniform=(x16, x17, x18, x21),
                        sequences=((x23_each_0, x23_each_1, x23_step, 32),),
                        stores=(m, v),
                        least=(0, 1),
                        spills=(),
                        maxima=(),
                        quiet=(),
                        unread=(),
                    )
                max2_each = each(word(0))
                for i in range(0, 128, 2 * LANES):
                    max2_each = apply(
                        step_2, 2, 2, i, far,
                        loads=(p, p_low),
                        signs=(0, 0),
                        reloads=(m_new_spill_0, x14_spill_0, m_new_spill_1, x14_spill_1),
                        uniform=(step_size, root, eps),
                        sequences=(),
                        stores=(p, p_low),
                        least=(-1, -1),
                        spills=(),
                        maxima=(max2_each,),
                        quiet=(0,),
                        unread=(),
                    )
                nan = any_half_above(max2_each, 32640)
                if nan:
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 0), buffer(p_low_at, strip, uint16, 0, 0), count)
            else:
                x26 = m_scale_i & 2139095040
                x27 = from_bits(x26)
                x28 = v_scale_i & 2139095040
                max3 = word(0)
                max4 = word(0)
                for i in range(count // 2):
                    x33_0, m_new_0, v_new_0, max3_0, max4_0 = step_3(low(g[i], 16), low(m[i], 8), low(v[i], 8), beta1, rest1, beta2, rest2, x26, x27, x28)
                    x33_1, m_new_1, v_new_1, max3_1, max4_1 = step_3(high(g[i], 16), high(m[i], 8), high(v[i], 8), beta1, rest1, beta2, rest2, x26, x27, x28)
                    x33_spill_0[i] = x33_0
                    m_new_spill_0[i] = m_new_0
                    v_new_spill_0[i] = v_new_0
                    x33_spill_1[i] = x33_1
                    m_new_spill_1[i] = m_new_1
                    v_new_spill_1[i] = v_new_1
                    max3 = umax(max3, max3_0)
                    max3 = umax(max3, max3_1)
                    max4 = umax(max4, max4_0)
                    max4 = umax(max4, max4_1)
                if count % 2:
                    g_last = buffer(g_at, strip + count - 1, uint16, 2, 15)
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 15)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 15)
                    x33_0, m_new_0, v_new_0, max3_0, max4_0 = step_3(g_last[0], m_last[0], v_last[0], beta1, rest1, beta2, rest2, x26, x27, x28)
                    x33_spill_0[count // 2] = x33_0
                    m_new_spill_0[count // 2] = m_new_0
                    v_new_spill_0[count // 2] = v_new_0
                    max3 = umax(max3, max3_0)
                    max4 = umax(max4, max4_0)
                x34 = select(max3 < 2136997632, max3, word(2136997632)) + 2097407 & 2139095040
                x35 = select(x34 > 159383552, x34 - 125829120, word(33554432))
                x36 = from_bits(x35)
                x37 = select(max4 < 2136997888, max4, word(2136997888))
                x38 = select(x37 > 266338304, x37 - 266338304, word(0)) + 8388607 & 2139095040
                x39 = x38 + 1048576
                m_scale[0] = x35
                v_scale[0] = x38
                max5 = word(0)
                x43_0 = x7 + start * x8
                x43_1 = x43_0 + x8
                x43_2 = x8 + x8
                for i in range(count // 2):
                    p_0, p_low_0, m_0, v_0 = step_4(low(p[i], 16), low(p_low[i], 16), m_new_spill_0[i], x33_spill_0[i], v_new_spill_0[i], step_size, root, eps, x35, x36, x38, x39, x43_0)
                    p_1, p_low_1, m_1, v_1 = step_4(high(p[i], 16), high(p_low[i], 16), m_new_spill_1[i], x33_spill_1[i], v_new_spill_1[i], step_size, root, eps, x35, x36, x38, x39, x43_1)
                    p[i] = join(p_0, p_1, 16)
                    p_low[i] = join(p_low_0, p_low_1, 16)
                    m[i] = join(m_0, m_1, 8)
                    v[i] = join(v_0, v_1, 8)
                    max5 = umax(max5, p_0 & word(32767))
                    max5 = umax(max5, p_1 & word(32767))
                    x43_0 = x43_0 + x43_2
                    x43_1 = x43_1 + x43_2
                if count % 2:
                    p_last = buffer(p_at, strip + count - 1, uint16, 0, 15)
                    p_low_last = buffer(p_low_at, strip + count - 1, uint16, 1, 15)
                    m_last = buffer(m_at, strip + count - 1, uint8, 3, 15)
                    v_last = buffer(v_at, strip + count - 1, uint8, 5, 15)
                    p_0, p_low_0, m_0, v_0 = step_4(p_last[0], p_low_last[0], m_new_spill_0[count // 2], x33_spill_0[count // 2], v_new_spill_0[count // 2], step_size, root, eps, x35, x36, x38, x39, x43_0)
                    p_last[0] = p_0
                    p_low_last[0] = p_low_0
                    m_last[0] = m_0
                    v_last[0] = v_0
                    max5 = umax(max5, p_0 & word(32767))
                nan = max5 > word(32640)
                if nan:
                    one_nan_of_two(buffer(p_at, strip, uint16, 0, 0), buffer(p_low_at, strip, uint16, 0, 0), count)
        first = claim(job, first, chunk)
    restore_mode(mode)
