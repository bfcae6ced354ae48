// What printed functions of settings and t call. `KNOWN_POWERS` and `KNOWN_COSINES` come from powers.py.
const $min = (a, b) => (b < a ? b : a); // Python's min and max of two numbers
const $max = (a, b) => (b > a ? b : a);

// Python's remainder, which has the sign of b.
function $mod(a, b) {
  const r = a % b;
  return r !== 0 && r < 0 !== b < 0 ? r + b : r;
}

// `accumulated` of Python's, which remembers what it was last asked for too.
const latest = new Map();
function $accumulated(step, t, start, ...settings) {
  const key = [step.name, start, ...settings].join();
  let [k, x] = latest.get(key) ?? [0, start];
  if (k > t) [k, x] = [0, start];
  while (k + 1 <= t) {
    k++;
    x = step(x, k, ...settings);
  }
  latest.set(key, [k, x]);
  return x;
}

const unknownBits = (name) => (...given) => {
  throw new RangeError(`${name}(${given.join(", ")}) is not known to have the bits that Python gives it`);
};
const $exp = unknownBits("exp");
const $log = unknownBits("log");

// Reads float64 numbers from base64.
function unpacked(text) {
  return new Float64Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

const view = new DataView(new ArrayBuffer(8));

// Divides a float64 into an odd integer and the power of two by which it is multiplied.
function dividedFloat(x) {
  view.setFloat64(0, x);
  const word = view.getBigUint64(0);
  let exponent = Number((word >> 52n) & 0x7ffn) - 1075;
  let odd = (word & 0xfffffffffffffn) | 0x10000000000000n;
  while (!(odd & 1n)) {
    odd >>= 1n;
    exponent++;
  }
  return [odd, exponent];
}

// Computes 1, x, x², … of a positive float64 as integers, and rounds each once, to the nearest float64, ties to even.
// `powers.py` makes sure that none is below the normal numbers.
class ExactPowers {
  constructor(x, largest) {
    this.largest = largest; // exponent for which the bits are known to be Python's
    [this.odd, this.exponent] = dividedFloat(x);
    this.integer = 1n;
    this.length = 1; // of the integer, in bits
    this.values = [1];
  }

  at(k) {
    while (this.values.length <= k) {
      this.integer *= this.odd;
      while (this.integer >> BigInt(this.length)) this.length++;
      this.values.push(this.rounded(this.exponent * this.values.length));
    }
    return this.values[k];
  }

  rounded(exponent) {
    const extra = this.length - 53;
    if (extra <= 0) return Number(this.integer) * 2 ** exponent;
    const shift = BigInt(extra);
    let top = this.integer >> shift;
    const rest = this.integer - (top << shift);
    const half = 1n << (shift - 1n);
    if (rest > half || (rest === half && top & 1n)) top += 1n;
    return Number(top) * 2 ** (extra + exponent);
  }
}

const exactPowers = new Map(KNOWN_POWERS.bases.map(([x, largest]) => [x, new ExactPowers(x, largest)]));
const otherPowers = new Map();
{
  const numbers = unpacked(KNOWN_POWERS.others); // x, y, x ** y, …
  for (let k = 0; k < numbers.length; k += 3) otherPowers.set(`${numbers[k]},${numbers[k + 1]}`, numbers[k + 2]);
}

// Returns what Python gives for x ** y, or throws an error where that is not known.
function $power(x, y) {
  if (y === 0 || x === 1) return 1;
  if (y === 1) return x;
  if (x === 0 && y > 0) return 0;
  const found = otherPowers.get(`${x},${y}`);
  if (found !== undefined) return found;
  const exact = exactPowers.get(x);
  if (exact && Number.isInteger(y) && y > 0 && y <= exact.largest) return exact.at(y);
  return unknownBits("power")(x, y);
}

// Returns what Python gives for cos(π k / n), k from 0 to n, where n divides KNOWN_COSINES.n.
const cosines = new Map();
unpacked(KNOWN_COSINES.values).forEach((y, k) => cosines.set(Math.PI * (k / KNOWN_COSINES.n), y));
const $cos = (x) => cosines.get(x) ?? unknownBits("cos")(x);
