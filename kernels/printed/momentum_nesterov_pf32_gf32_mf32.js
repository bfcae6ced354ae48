// Reads and writes p, m; reads g: 20 bytes per parameter.
const momentum_nesterov_pf32_gf32_mf32 = {
  name: "momentum_nesterov_pf32_gf32_mf32",
  array: Float32Array,
  state: ["m"],
  scalars: ["beta", "rest", "m_size", "g_size", "decay"],
  totals: [],
  passes: [
    {
      buffers: ["p", "g", "m"],
      sums: [],
      noise: false,
      step(n, p, g, m, beta, rest, m_size, g_size, decay) {
        for (let i = 0; i < n; i++) {
          const p_i = p[i];
          const g_i = g[i];
          const m_i = m[i];
          const m_new = fround(fround(beta * m_i) + fround(rest * g_i));
          const p_new = fround(p_i - fround(fround(m_size * m_new) + fround(g_size * g_i)));
          p[i] = p_new;
          m[i] = m_new;
        }
      },
    },
  ],
};
