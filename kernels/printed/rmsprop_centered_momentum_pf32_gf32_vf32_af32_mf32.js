// Reads and writes p, v, a, m; reads g: 36 bytes per parameter.
const rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32 = {
  name: "rmsprop_centered_momentum_pf32_gf32_vf32_af32_mf32",
  array: Float32Array,
  state: ["v", "a", "m"],
  scalars: ["lr", "alpha", "rest", "eps", "momentum", "decay"],
  totals: [],
  passes: [
    {
      buffers: ["p", "g", "v", "a", "m"],
      sums: [],
      noise: false,
      step(n, p, g, v, a, m, lr, alpha, rest, eps, momentum, decay) {
        for (let i = 0; i < n; i++) {
          const p_i = p[i];
          const g_i = g[i];
          const v_i = v[i];
          const a_i = a[i];
          const m_i = m[i];
          const v_new = fround(fround(alpha * v_i) + fround(rest * fround(g_i * g_i)));
          const a_new = fround(fround(alpha * a_i) + fround(rest * g_i));
          const x0 = fround(v_new - fround(a_new * a_new));
          const m_new = fround(fround(momentum * m_i) + fround(g_i / fround(fround(sqrt((x0 < 0) ? 0 : x0)) + eps)));
          const p_new = fround(p_i - fround(lr * m_new));
          p[i] = p_new;
          v[i] = v_new;
          a[i] = a_new;
          m[i] = m_new;
        }
      },
    },
  ],
};
