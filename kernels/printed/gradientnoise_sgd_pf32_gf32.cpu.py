"""gradientnoise_sgd_pf32_gf32: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p; reads g: 12 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types

from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode, wide_vectors
from fastopt.kernels.cpu.memory import buffer, prefetch, scratch
from fastopt.kernels.cpu.values import from_bits, sqrt, word

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, float64, float64, float64,
)


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
def gradientnoise_sgd_pf32_gf32(
    job, n, chunk, prefetching, p_at, g_at, key0, key1, offset, lr, decay, noise_scale,
):
    mode = standard_mode()
    wide_vectors()
    lr = float32(lr)
    decay = float32(decay)
    noise_scale = float32(noise_scale)
    key0, key1 = word(key0), word(key1)
    x11_spill = scratch(float32, 2, 4)
    x16_spill = scratch(float32, 3, 4)
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 128 if prefetching else 256
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip, float32, 0, 4)
            g = buffer(g_at, strip, float32, 1, 4)
            tile = (offset + strip) // 256
            tile_low, tile_high = word(tile), word(tile >> 32)
            start = word(strip % 256)
            x0 = tile_low ^ key0
            x1 = (x0 ^ (x0 >> 16)) * 2246822507
            x2 = (x1 ^ (x1 >> 13)) * 3266489909
            x3 = tile_high ^ key1
            x4 = (x3 ^ (x3 >> 16)) * 2246822507
            x5 = (x4 ^ (x4 >> 13)) * 3266489909
            x6 = ((x2 ^ (x2 >> 16)) ^ (x5 ^ (x5 >> 16))) * 2654435761
            x7 = (x6 ^ (x6 >> 16)) * 2246822507
            x8 = (x7 ^ (x7 >> 13)) * 3266489909
            x9 = (x8 ^ (x8 >> 16)) | 1
            for i in range(count):
                index = start + word(i)
                x10 = (index ^ x6) * x9
                x11 = from_bits(((x10 ^ (x10 >> 16)) * 3266489909 >> 9) | 1073741824) - float32(3.0) + float32(1.1920929e-07)
                x11_spill[i] = x11
            if prefetching:
                prefetch(p, 128)
                prefetch(g, 128)
            for i in range(count):
                x11 = x11_spill[i]
                x12 = word((float32(1.0) - x11) * (float32(1.0) + x11)) + 4913933
                x13 = from_bits((x12 & 8388607) + 1060439283)
                x14 = (x13 - float32(1.0)) / (x13 + float32(1.0))
                x15 = x14 * x14
                x16 = sqrt(-((from_bits((x12 >> 23) | 1258291200) - float32(8.388735e+06)) * float32(0.6931472) + x14 * (float32(2.0) + x15 * (float32(0.6666667) + x15 * float32(0.4)))))
                x16_spill[i] = x16
            for i in range(count):
                x11 = x11_spill[i]
                x16 = x16_spill[i]
                p_i, g_i = p[i], g[i]
                x17 = x16 * x16
                x18 = x17 * x17
                p_new = p_i - lr * (g_i + noise_scale * (x11 * (float32(1.2533671) + float32(-0.0015589065) * x16 + (float32(0.33414847) + float32(0.002180625) * x16) * x17 + (float32(-0.02334358) + float32(0.06963132) * x16 + (float32(-0.056836393) + float32(0.019680353) * x16) * x17 + (float32(-0.0031776035) + float32(0.0001982846) * x16) * x18) * x18)))
                p[i] = p_new
        first = claim(job, first, chunk)
    restore_mode(mode)
