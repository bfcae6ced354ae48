"""momentum_pbf16_sr_gbf16_mbf16_sr: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, m; reads g: 10 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types, uint16, uint32

from fastopt.kernels.cpu.apply import apply
from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode, wide_vectors
from fastopt.kernels.cpu.memory import buffer, one_nan
from fastopt.kernels.cpu.values import LANES, add_halves, any_half_above, each, from_bits, high, join, low, ramp, umax, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, intp, float64, float64, float64, float64,
    float64,
)


@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
def step(p_i, g_i, m_i, beta, rest, m_size, x13, x10):
    m_new = beta * from_bits(m_i << 16) + rest * from_bits(g_i << 16)
    p_new = from_bits(p_i << 16) - m_size * m_new
    x11 = word(p_new) + x10 >> 16
    x12 = add_halves(x10, x13)
    return x11, word(m_new) + x12 >> 16


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
def momentum_pbf16_sr_gbf16_mbf16_sr(
    job, n, chunk, prefetching, p_at, g_at, m_at, key0, key1, offset, beta, rest, m_size, g_size,
    decay,
):
    mode = standard_mode()
    wide_vectors()
    beta = float32(beta)
    rest = float32(rest)
    m_size = float32(m_size)
    g_size = float32(g_size)
    decay = float32(decay)
    key0, key1 = word(key0), word(key1)
    far = 256 if prefetching else 0
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 256
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip // 2, uint32, 0, 3)
            g = buffer(g_at, strip // 2, uint32, 1, 3)
            m = buffer(m_at, strip // 2, uint32, 2, 3)
            tile = (offset + strip) // 256
            tile_low, tile_high = word(tile), word(tile >> 32)
            start = word(strip % 256)
            if count % 256 == 0:
                x0 = tile_low ^ key0
                x1 = (x0 ^ (x0 >> 16)) * 2246822507
                x2 = (x1 ^ (x1 >> 13)) * 3266489909
                x3 = tile_high ^ key1
                x4 = (x3 ^ (x3 >> 16)) * 2246822507
                x5 = (x4 ^ (x4 >> 13)) * 3266489909
                x6 = ((x2 ^ (x2 >> 16)) ^ (x5 ^ (x5 >> 16))) * 2654435761 * 2654435761
                x7 = x6 ^ (x6 >> 16)
                x8 = ((x7 ^ (x7 >> 15)) * 374761393 & 4294901760) | 65536
                x9 = (x7 << 16) | (x7 >> 16)
                x13 = ((x9 >> 16) - (x7 >> 16)) & 0xFFFF
                max0_each = each(word(0))
                x10_each_0 = ramp(x7, x8 + x8)
                x10_each_1 = x10_each_0 + x8
                x10_each_0 = x10_each_0 >> 16
                x10_each_1 = x10_each_1 >> 16
                x10_step = each(x8) * (2 * LANES) >> 16
                for i in range(0, 128, 2 * LANES):
                    max0_each, x10_each_0, x10_each_1 = apply(
                        step, 2, 2, i, far,
                        loads=(p, g, m),
                        signs=(0, 0, 0),
                        reloads=(),
                        uniform=(beta, rest, m_size, x13),
                        sequences=((x10_each_0, x10_each_1, x10_step, 16),),
                        stores=(p, m),
                        least=(-1, -1),
                        spills=(),
                        maxima=(max0_each,),
                        quiet=(0,),
                        unread=(),
                    )
                nan = any_half_above(max0_each, 32640)
            else:
                x0 = tile_low ^ key0
                x1 = (x0 ^ (x0 >> 16)) * 2246822507
                x2 = (x1 ^ (x1 >> 13)) * 3266489909
                x3 = tile_high ^ key1
                x4 = (x3 ^ (x3 >> 16)) * 2246822507
                x5 = (x4 ^ (x4 >> 13)) * 3266489909
                x6 = ((x2 ^ (x2 >> 16)) ^ (x5 ^ (x5 >> 16))) * 2654435761 * 2654435761
                x7 = x6 ^ (x6 >> 16)
                x8 = ((x7 ^ (x7 >> 15)) * 374761393 & 4294901760) | 65536
                x9 = (x7 << 16) | (x7 >> 16)
                x13 = ((x9 >> 16) - (x7 >> 16)) & 0xFFFF
                max0 = word(0)
                x10_0 = x7 + start * x8
                x10_1 = x10_0 + x8
                x10_2 = x8 + x8
                for i in range(count // 2):
                    p_0, m_0 = step(low(p[i], 16), low(g[i], 16), low(m[i], 16), beta, rest, m_size, x13, x10_0 >> 16)
                    p_1, m_1 = step(high(p[i], 16), high(g[i], 16), high(m[i], 16), beta, rest, m_size, x13, x10_1 >> 16)
                    p[i] = join(p_0, p_1, 16)
                    m[i] = join(m_0, m_1, 16)
                    max0 = umax(max0, p_0 & word(32767))
                    max0 = umax(max0, p_1 & word(32767))
                    x10_0 = x10_0 + x10_2
                    x10_1 = x10_1 + x10_2
                if count % 2:
                    p_last = buffer(p_at, strip + count - 1, uint16, 0, 3)
                    g_last = buffer(g_at, strip + count - 1, uint16, 1, 3)
                    m_last = buffer(m_at, strip + count - 1, uint16, 2, 3)
                    p_0, m_0 = step(p_last[0], g_last[0], m_last[0], beta, rest, m_size, x13, x10_0 >> 16)
                    p_last[0] = p_0
                    m_last[0] = m_0
                    max0 = umax(max0, p_0 & word(32767))
                nan = max0 > word(32640)
            if nan:
                one_nan(buffer(p_at, strip, uint16, 0, 0), count)
                one_nan(buffer(m_at, strip, uint16, 0, 0), count)
        first = claim(job, first, chunk)
    restore_mode(mode)
