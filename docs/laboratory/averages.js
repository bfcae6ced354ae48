// The second tab: exponentially weighted averages of a noisy series, as `fastopt.EWA` computes them.

const POINTS = 200;

class Averages {
  constructor() {
    this.state = { beta: 0.9, noise: 2, seed: 0, t: 60 };
    const set = (name) => (x) => {
      this.state[name] = x;
      this.compute();
    };
    const { data } = fastopt;
    $("averages-sliders").append(
      slider({ id: "average-beta", label: "β", values: data.decayRates, value: 0.9, changed: set("beta") }),
      slider({ id: "average-noise", label: "Noise, its standard deviation", values: data.noises, value: 2, changed: set("noise") }),
      slider({ id: "average-seed", label: "Seed", values: Array.from({ length: 20 }, (_, k) => k), value: 0, changed: set("seed") }),
    );
    $("correction").addEventListener("change", () => this.draw());
    const canvas = $("averages-chart");
    const point = (event) => this.scale && this.goTo(Math.round(this.scale.fromX(event.offsetX)));
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
      const to = { Home: 1, End: POINTS }[event.key] ?? (by && this.state.t + by);
      if (to === undefined) return;
      event.preventDefault();
      this.goTo(to);
    });
    this.compute();
  }

  drawBehind() {
    for (const canvas of document.querySelectorAll("#panel-averages .swatch")) drawSwatch(canvas, Number(canvas.dataset.slot));
  }

  goTo(t) {
    this.state.t = Math.min(Math.max(t, 1), POINTS);
    this.draw();
  }

  // Computes the series θ₁ … and its averages: v ← β v + (1 − β) θ, corrected v / (1 − βᵗ).
  compute() {
    const { beta, noise, seed } = this.state;
    const { series_point: point, noisy } = fastopt.functions.float64;
    this.series = [];
    this.raw = [];
    this.corrected = [];
    let v = 0;
    for (let t = 1; t <= POINTS; t++) {
      const z = noisy(0, 1, ...fastopt.noiseKeys(seed, t), 0)[0];
      const theta = point(t, z, noise)[0];
      v = beta * v + (1 - beta) * theta;
      this.series.push(theta);
      this.raw.push(v);
      this.corrected.push(v / (1 - fastopt.power(beta, t)));
    }
    this.draw();
  }

  draw() {
    const { beta, t } = this.state;
    const corrects = $("correction").checked;
    const window = 1 / (1 - beta);
    const all = [...this.series, 0];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const series = [
      { ys: this.series, first: 1, dots: true, colour: colours.muted, slot: 0 },
      { ys: this.raw, first: 1, slot: 1, width: corrects ? 1.75 : 2.5 },
      ...(corrects ? [{ ys: this.corrected, first: 1, slot: 0, width: 2.5 }] : []),
    ];
    // Under the lines: the weight of each value in the average at t, as bars from below.
    const under = (context, toX, toY, box) => {
      const wide = Math.max(toX(1) - toX(0), 1.5);
      context.fillStyle = colours.accent;
      context.globalAlpha = 0.25;
      for (let k = 0; k < t; k++) {
        const tall = beta ** k * (box.bottom - box.top) * 0.3;
        context.fillRect(toX(t - k) - wide / 2, box.bottom - tall, wide * 0.86, tall);
      }
      context.globalAlpha = 1;
    };
    this.scale = drawChart($("averages-chart"), { series, xEnd: POINTS, yRange: [low - 0.5, high + 0.5], cursor: t, under });
    $("corrected-key").hidden = !corrects;
    showNumber($("window"), window, 2);
    showNumber($("average-t"), t, Infinity);
    showNumber($("average-theta"), this.series[t - 1], Infinity);
    showNumber($("average-raw"), this.raw[t - 1], Infinity);
    showNumber($("average-corrected"), this.corrected[t - 1], Infinity);
    $("averages-about").textContent =
      beta < 0.85
        ? "A short memory: it follows every turn, and the noise too."
        : beta < 0.985
          ? "A longer memory is smoother, and lags behind: it shows what was about a window ago."
          : "So long a memory that even the wave is averaged away; without correction it needs the whole chart to get up from zero.";
  }
}
