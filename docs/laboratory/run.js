// A run of a rule on a problem: what `fastopt.demo.laboratory.runs` does in Python, with the same bits.

const arrays = { float32: Float32Array, float64: Float64Array };
const rounded = { float32: Math.fround, float64: (x) => x };

// Returns a learning rate that follows a schedule from `lr` on: a number, or an object with `at(t)`.
function makeSchedule(kind, lr, steps, settings) {
  const { InverseTime, Exponential, Step, Cosine, Warmup, Product } = fastopt.schedules;
  const made = (at, fields) => ({ ...fields, at: (t) => at(fields, t) });
  switch (kind) {
    case "time":
      return made(InverseTime, { start: lr, k: settings.k });
    case "exponential":
      return made(Exponential, { start: lr, gamma: settings.gamma });
    case "step":
      return made(Step, { start: lr, every: settings.every, factor: settings.factor });
    case "cosine": {
      const left = made(Warmup, { steps: settings.warmup });
      return made(Product, { left, right: made(Cosine, { start: lr, steps, end: 0 }) });
    }
  }
  return lr;
}

// A problem in one precision: the value of its function, and the gradient that step t gets.
class Surface {
  constructor(name, precision) {
    this.problem = fastopt.data.problems[name];
    this.round = rounded[precision];
    const functions = fastopt.functions[precision];
    [this.f, this.g] = [functions[`${name}_f`], functions[`${name}_gradient`]];
    [this.noisy, this.sampleNumber] = [functions.noisy, functions.sample_number];
    this.a = arrays[precision].from(fastopt.data.samples.a);
    this.c = arrays[precision].from(fastopt.data.samples.c);
  }

  loss(x, y) {
    if (!this.problem.sampled) return this.f(x, y)[0];
    let total = 0;
    for (let k = 0; k < this.a.length; k++) total = this.round(total + this.f(x, y, this.a[k], this.c[k])[0]);
    return this.round(total / this.a.length);
  }

  gradient(x, y, keys, batch, noise) {
    const g = this.problem.sampled ? this.ofBatch(x, y, keys, batch) : this.g(x, y);
    if (!noise) return g;
    return g.map((part, k) => this.noisy(part, this.round(noise), keys[0], keys[1], k)[0]);
  }

  ofBatch(x, y, keys, batch) {
    const total = [0, 0];
    for (let j = 0; j < batch; j++) {
      const index = fastopt.data.firstOfBatch + j;
      const k = batch < this.a.length ? this.sampleNumber(keys[0], keys[1], index)[0] : j;
      this.g(x, y, this.a[k], this.c[k]).forEach((part, i) => (total[i] = this.round(total[i] + part)));
    }
    return total.map((sum) => this.round(sum / batch));
  }
}

// Takes all steps of a run; returns the positions and losses at t = 0, 1, … in typed arrays.
// A run whose scalars are not finite, which an Optimizer refuses, ends there: `stopped` is that step.
function takeRun({ rule, settings, lr, problem, precision, start, steps, seed, batch, noise }) {
  const program = fastopt.programs[rule][precision];
  const surface = new Surface(problem, precision);
  const memory = fastopt.allocate(program, start, fastopt.data.rules[rule].initial);
  const xs = new Float64Array(steps + 1);
  const ys = new Float64Array(steps + 1);
  const losses = new Float64Array(steps + 1);
  let stopped = null;
  for (let t = 0; t <= steps; t++) {
    if (t) {
      const now = { ...settings, lr: typeof lr === "number" ? lr : lr.at(t) };
      const scalars = fastopt.scalars[rule](now, t);
      const numbers = program.scalars.map((name) => scalars[name]);
      if (!numbers.every(Number.isFinite)) {
        stopped = t;
        break;
      }
      const keys = fastopt.noiseKeys(seed, t);
      memory.g.set(surface.gradient(memory.p[0], memory.p[1], keys, batch, noise));
      fastopt.takeStep(program, memory, numbers);
    }
    [xs[t], ys[t]] = memory.p;
    losses[t] = surface.loss(xs[t], ys[t]);
  }
  const length = stopped ?? steps + 1;
  return { xs: xs.subarray(0, length), ys: ys.subarray(0, length), losses: losses.subarray(0, length), stopped };
}
