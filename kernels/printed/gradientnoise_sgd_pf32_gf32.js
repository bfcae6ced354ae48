// Reads and writes p; reads g: 12 bytes per parameter.
const gradientnoise_sgd_pf32_gf32 = {
  name: "gradientnoise_sgd_pf32_gf32",
  array: Float32Array,
  state: [],
  scalars: ["lr", "decay", "noise_scale"],
  totals: [],
  passes: [
    {
      buffers: ["p", "g"],
      sums: [],
      noise: true,
      step(n, p, g, key0, key1, offset, lr, decay, noise_scale) {
        for (let first = 0; first < n; first += TILE) {
          const count = Math.min(TILE, n - first);
          const tile = offset / TILE + first / TILE;
          const tile_low = tile >>> 0, tile_high = floor(tile / 2 ** 32);
          const x0 = (tile_low ^ key0) >>> 0;
          const x1 = imul((x0 ^ (x0 >>> 16)) >>> 0, 0x85ebca6b) >>> 0;
          const x2 = imul((x1 ^ (x1 >>> 13)) >>> 0, 0xc2b2ae35) >>> 0;
          const x3 = (tile_high ^ key1) >>> 0;
          const x4 = imul((x3 ^ (x3 >>> 16)) >>> 0, 0x85ebca6b) >>> 0;
          const x5 = imul((x4 ^ (x4 >>> 13)) >>> 0, 0xc2b2ae35) >>> 0;
          const x6 = imul((((x2 ^ (x2 >>> 16)) >>> 0) ^ ((x5 ^ (x5 >>> 16)) >>> 0)) >>> 0, 0x9e3779b1) >>> 0;
          const x7 = imul((x6 ^ (x6 >>> 16)) >>> 0, 0x85ebca6b) >>> 0;
          const x8 = imul((x7 ^ (x7 >>> 13)) >>> 0, 0xc2b2ae35) >>> 0;
          const x9 = (((x8 ^ (x8 >>> 16)) >>> 0) | 1) >>> 0;
          for (let i = first; i < first + count; i++) {
            const index = i - first;
            const p_i = p[i];
            const g_i = g[i];
            const x10 = imul((index ^ x6) >>> 0, x9) >>> 0;
            const x11 = fround(fround(floatOf((((imul((x10 ^ (x10 >>> 16)) >>> 0, 0xc2b2ae35) >>> 0) >>> 9) | 0x40000000) >>> 0) - 3) + 1.1920928955078125e-07);
            const x12 = wordOf(fround(fround(1 - x11) * fround(1 + x11))) + 0x4afb0d >>> 0;
            const x13 = floatOf(((x12 & 0x7fffff) >>> 0) + 0x3f3504f3 >>> 0);
            const x14 = fround(fround(x13 - 1) / fround(x13 + 1));
            const x15 = fround(x14 * x14);
            const x16 = fround(sqrt(-fround(fround(fround(floatOf(((x12 >>> 23) | 0x4b000000) >>> 0) - 8388735) * 0.6931471824645996) + fround(x14 * fround(2 + fround(x15 * fround(0.6666666865348816 + fround(x15 * 0.4000000059604645))))))));
            const x17 = fround(x16 * x16);
            const x18 = fround(x17 * x17);
            const p_new = fround(p_i - fround(lr * fround(g_i + fround(noise_scale * fround(x11 * fround(fround(fround(1.2533670663833618 + fround(-0.0015589065151289105 * x16)) + fround(fround(0.33414846658706665 + fround(0.0021806249860674143 * x16)) * x17)) + fround(fround(fround(fround(-0.023343579843640327 + fround(0.06963132321834564 * x16)) + fround(fround(-0.05683639273047447 + fround(0.01968035288155079 * x16)) * x17)) + fround(fround(-0.0031776034738868475 + fround(0.00019828460062853992 * x16)) * x18)) * x18)))))));
            p[i] = p_new;
          }
        }
      },
    },
  ],
};
