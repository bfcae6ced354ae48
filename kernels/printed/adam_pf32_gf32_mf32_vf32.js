// Reads and writes p, m, v; reads g: 28 bytes per parameter.
const adam_pf32_gf32_mf32_vf32 = {
  name: "adam_pf32_gf32_mf32_vf32",
  array: Float32Array,
  state: ["m", "v"],
  scalars: ["beta1", "rest1", "beta2", "rest2", "step_size", "root", "eps", "decay", "keep"],
  totals: [],
  passes: [
    {
      buffers: ["p", "g", "m", "v"],
      sums: [],
      noise: false,
      step(n, p, g, m, v, beta1, rest1, beta2, rest2, step_size, root, eps, decay, keep) {
        for (let i = 0; i < n; i++) {
          const p_i = p[i];
          const g_i = g[i];
          const m_i = m[i];
          const v_i = v[i];
          const m_new = fround(fround(beta1 * m_i) + fround(rest1 * g_i));
          const v_new = fround(fround(beta2 * v_i) + fround(rest2 * fround(g_i * g_i)));
          const p_new = fround(p_i - fround(fround(step_size * m_new) / fround(fround(fround(sqrt(v_new)) * root) + eps)));
          p[i] = p_new;
          m[i] = m_new;
          v[i] = v_new;
        }
      },
    },
  ],
};
