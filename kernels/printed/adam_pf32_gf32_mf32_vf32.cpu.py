"""adam_pf32_gf32_mf32_vf32: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, m, v; reads g: 28 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types

from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode
from fastopt.kernels.cpu.memory import buffer, prefetch
from fastopt.kernels.cpu.values import sqrt

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, float64, float64, float64, float64, float64,
    float64, float64, float64, float64,
)


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
def adam_pf32_gf32_mf32_vf32(
    job, n, chunk, prefetching, p_at, g_at, m_at, v_at, beta1, rest1, beta2, rest2, step_size, root,
    eps, decay, keep,
):
    mode = standard_mode()
    beta1 = float32(beta1)
    rest1 = float32(rest1)
    beta2 = float32(beta2)
    rest2 = float32(rest2)
    step_size = float32(step_size)
    root = float32(root)
    eps = float32(eps)
    decay = float32(decay)
    keep = float32(keep)
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 64 if prefetching else chunk
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip, float32, 0, 4)
            g = buffer(g_at, strip, float32, 1, 4)
            m = buffer(m_at, strip, float32, 2, 4)
            v = buffer(v_at, strip, float32, 3, 4)
            if prefetching:
                prefetch(p, 64)
                prefetch(g, 64)
                prefetch(m, 64)
                prefetch(v, 64)
            for i in range(count):
                p_i, g_i, m_i, v_i = p[i], g[i], m[i], v[i]
                m_new = beta1 * m_i + rest1 * g_i
                v_new = beta2 * v_i + rest2 * (g_i * g_i)
                p_new = p_i - step_size * m_new / (sqrt(v_new) * root + eps)
                p[i] = p_new
                m[i] = m_new
                v[i] = v_new
        first = claim(job, first, chunk)
    restore_mode(mode)
