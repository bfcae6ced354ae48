"""rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32: one step on the CPU in float32. Printed by fastopt; do not edit.

Reads and writes p, v, a, m; reads g: 36 bytes per parameter.
"""

from numba import float32, float64, intp, njit, types

from fastopt.kernels.cpu.jobs import claim, restore_mode, standard_mode
from fastopt.kernels.cpu.memory import buffer, prefetch
from fastopt.kernels.cpu.values import select, sqrt

SIGNATURE = types.void(
    intp, intp, intp, intp, intp, intp, intp, intp, intp, float64, float64, float64, float64,
    float64, float64,
)


@njit(nogil=True, no_cfunc_wrapper=True, error_model="numpy")
def rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32(
    job, n, chunk, prefetching, p_at, g_at, v_at, a_at, m_at, lr, alpha, rest, eps, momentum, decay,
):
    mode = standard_mode()
    lr = float32(lr)
    alpha = float32(alpha)
    rest = float32(rest)
    eps = float32(eps)
    momentum = float32(momentum)
    decay = float32(decay)
    first = claim(job, -chunk, chunk)
    while first < n:
        last = min(first + chunk, n)
        length = 64 if prefetching else chunk
        for strip in range(first, last, length):
            count = min(length, last - strip)
            p = buffer(p_at, strip, float32, 0, 5)
            g = buffer(g_at, strip, float32, 1, 5)
            v = buffer(v_at, strip, float32, 2, 5)
            a = buffer(a_at, strip, float32, 3, 5)
            m = buffer(m_at, strip, float32, 4, 5)
            if prefetching:
                prefetch(p, 64)
                prefetch(g, 64)
                prefetch(v, 64)
                prefetch(a, 64)
                prefetch(m, 64)
            for i in range(count):
                p_i, g_i, v_i, a_i, m_i = p[i], g[i], v[i], a[i], m[i]
                v_new = alpha * v_i + rest * (g_i * g_i)
                a_new = alpha * a_i + rest * g_i
                x0 = v_new - a_new * a_new
                m_new = momentum * m_i + g_i / (sqrt(select(x0 < float32(0.0), float32(0.0), x0)) + eps)
                p_new = p_i - lr * m_new
                p[i] = p_new
                v[i] = v_new
                a[i] = a_new
                m[i] = m_new
        first = claim(job, first, chunk)
    restore_mode(mode)
