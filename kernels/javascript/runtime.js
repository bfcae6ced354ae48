// What printed steps call, and what runs them. All of it is exact or correctly rounded.
const { abs, ceil, floor, fround, imul, sqrt, trunc } = Math;

const sign = (x) => (x > 0 ? 1 : x < 0 ? -1 : x === 0 ? 0 : x); // NumPy's: of −0 it is +0
const copysign = (x, y) => (y < 0 || Object.is(y, -0) ? -abs(x) : abs(x));
const rint = (x) => (abs(x) < 2 ** 52 ? copysign(abs(x) + 2 ** 52 - 2 ** 52, x) : x); // ties to even

const bits = new Uint32Array(1);
const bitsAsFloat = new Float32Array(bits.buffer);
const wordOf = (x) => ((bitsAsFloat[0] = x), bits[0]);
const floatOf = (word) => ((bits[0] = word), bitsAsFloat[0]);

const TILE = 256;

// Folds `count` values of a tile by halves, with +0 beyond them. An array of float32 rounds each sum as it stores it.
function tileTotal(values, count) {
  values.fill(0, count);
  for (let half = TILE / 2; half >= 1; half /= 2) {
    for (let i = 0; i < half; i++) values[i] += values[i + half];
  }
  return values[0];
}

// Folds the sums of tiles, as float64, until one is left.
function foldTiles(sums) {
  let rest = sums;
  while (rest.length > 1) {
    const next = new Float64Array(Math.ceil(rest.length / TILE));
    for (let k = 0; k < next.length; k++) {
      const tile = new Float64Array(TILE);
      const part = rest.subarray(k * TILE, (k + 1) * TILE);
      tile.set(part);
      next[k] = tileTotal(tile, part.length);
    }
    rest = next;
  }
  return rest.length ? rest[0] : 0;
}

const U64 = (x) => BigInt.asUintN(64, x);

// Scrambles 64 bits: see mix64 in kernels/compiler/noise.py.
function mix64(x) {
  let z = U64(x + MIXING.increment);
  for (const [shift, factor] of MIXING.rounds) z = U64((z ^ (z >> shift)) * factor);
  return z ^ (z >> MIXING.last);
}

// Returns the two keys of the noise of step t.
function noiseKeys(seed, t) {
  const key = mix64(mix64(U64(BigInt(seed))) ^ BigInt(t));
  return [Number(key & 0xffffffffn), Number(key >> 32n)];
}

// Returns the memory of a program's buffers: p as given, a gradient of zeros, and state as it starts.
function allocate(program, p, initial = {}) {
  const memory = { p: program.array.from(p), g: new program.array(p.length) };
  for (const name of program.state) memory[name] = new program.array(p.length).fill(initial[name] ?? 0);
  return memory;
}

// Takes one step, in place, on one tensor; `keys` are those of the noise, `scalars` in the order of program.scalars.
function takeStep(program, memory, scalars, keys = [0, 0], offset = 0) {
  const n = memory.p.length;
  const numbers = scalars.map((x) => (program.array === Float32Array ? fround(x) : x));
  const known = { ...memory };
  for (const pass of program.passes) {
    for (const k of pass.sums) known[`sum ${k}`] = new Float64Array(Math.ceil(n / TILE));
    const noise = pass.noise ? [...keys, offset] : [];
    pass.step(n, ...pass.buffers.map((name) => known[name]), ...noise, ...numbers);
    for (const k of pass.sums) {
      const total = foldTiles(known[`sum ${k}`]);
      // Over all parameters the tensors' totals are added to 0, which makes −0 a +0.
      known[`total ${k}`] = program.array.of(program.totals[k] === "all" ? 0 + total : total)[0];
    }
  }
}
