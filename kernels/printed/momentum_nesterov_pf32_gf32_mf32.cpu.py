"""momentum_nesterov_pf32_gf32_mf32: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, m; reads g: 20 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types

from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode
from fastopt.kernels.cpu.memory import buffer, prefetch

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, float64, float64, float64, float64, float64,
)


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
def momentum_nesterov_pf32_gf32_mf32(
    job, n, chunk, prefetching, p_at, g_at, m_at, beta, rest, m_size, g_size, decay,
):
    mode = standard_mode()
    beta = float32(beta)
    rest = float32(rest)
    m_size = float32(m_size)
    g_size = float32(g_size)
    decay = float32(decay)
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 64 if prefetching else chunk
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip, float32, 0, 3)
            g = buffer(g_at, strip, float32, 1, 3)
            m = buffer(m_at, strip, float32, 2, 3)
            if prefetching:
                prefetch(p, 64)
                prefetch(g, 64)
                prefetch(m, 64)
            for i in range(count):
                p_i, g_i, m_i = p[i], g[i], m[i]
                m_new = beta * m_i + rest * g_i
                p_new = p_i - (m_size * m_new + g_size * g_i)
                p[i] = p_new
                m[i] = m_new
        first = claim(job, first, chunk)
    restore_mode(mode)
