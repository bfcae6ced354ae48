// The third tab: learning-rate schedules, and what they do to SGD on small batches.

const SHOWN_STEPS = 200;
const SHOWN_RATE = 0.33;

class Schedules {
  constructor() {
    this.t = 100;
    this.shown = scheduleChoice({
      select: $("shown-schedule"), slot: $("shown-sliders"), about: $("shown-about"), prefix: "shown", kind: "cosine",
      changed: () => this.compute(),
    });
    const canvas = $("rates-chart");
    const point = (event) => this.scale && this.goTo(Math.round(this.scale.fromX(event.offsetX)));
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10 }[event.key];
      const to = { Home: 1, End: SHOWN_STEPS }[event.key] ?? (by && this.t + by);
      if (to === undefined) return;
      event.preventDefault();
      this.goTo(to);
    });
    this.makeLegend();
    this.compute();
  }

  goTo(t) {
    this.t = Math.min(Math.max(t, 1), SHOWN_STEPS);
    this.draw();
  }

  compute() {
    const rates = (kind, settings) => {
      const lr = makeSchedule(kind, SHOWN_RATE, SHOWN_STEPS, settings);
      return Array.from({ length: SHOWN_STEPS }, (_, k) => (typeof lr === "number" ? lr : lr.at(k + 1)));
    };
    this.curves = Object.keys(SCHEDULE_NAMES).map((kind, slot) => {
      const chosen = kind === this.shown.kind;
      return { kind, slot, chosen, ys: rates(kind, chosen ? this.shown.settings : fastopt.data.starting) };
    });
    const { least, start } = fastopt.data.problems.batch;
    const losses = (kind, settings) => {
      const lr = makeSchedule(kind, SHOWN_RATE, SHOWN_STEPS, settings);
      const run = takeRun({
        rule: "sgd", settings: fastopt.data.rules.sgd.settings, lr, problem: "batch", precision: "float64",
        start, steps: SHOWN_STEPS, seed: 0, batch: 2, noise: 0,
      });
      return run.losses.map((loss) => loss - least);
    };
    this.constant = losses("constant", {});
    this.scheduled = losses(this.shown.kind, this.shown.settings);
    this.draw();
  }

  draw() {
    const series = this.curves.map(({ ys, slot, chosen }) => ({ ys, slot, first: 1, width: chosen ? 3 : 1.5, faint: chosen ? 0 : 0.6 }));
    series.sort((a, b) => b.faint - a.faint);
    this.scale = drawChart($("rates-chart"), { series, xEnd: SHOWN_STEPS, yRange: [0, SHOWN_RATE * 1.08], cursor: this.t });
    const slot = this.curves.findIndex((one) => one.chosen);
    // Smoothed as the second tab does it: an average of β = 0.9, corrected for its start.
    const averaged = (ys) => {
      let v = 0;
      return ys.map((y, k) => (v = 0.9 * v + 0.1 * y) / (1 - fastopt.power(0.9, k + 1)));
    };
    const [constant, scheduled] = [averaged(this.constant), averaged(this.scheduled)];
    const settled = [
      ...(slot ? [{ ys: constant, slot: 0, width: 1.5 }] : []),
      { ys: scheduled, slot, width: 2.5, head: true },
    ];
    const both = [...constant, ...scheduled];
    drawChart($("settle-chart"), { series: settled, xEnd: SHOWN_STEPS, yRange: [Math.min(...both) * 0.7, Math.max(...both) * 1.4], log: true });
    [...$("rates-legend").children].forEach((key, k) => key.classList.toggle("chosen", k === slot));
    const late = (ys) => ys.subarray(-SHOWN_STEPS / 5).reduce((a, b) => a + b) / (SHOWN_STEPS / 5);
    showNumber($("rate-t"), this.t, Infinity);
    showNumber($("rate-now"), this.curves[slot].ys[this.t - 1], Infinity);
    showNumber($("settled-constant"), late(this.constant), 5);
    showNumber($("settled-schedule"), late(this.scheduled), 5);
  }

  // Names the curves, the highlighted one in bold.
  makeLegend() {
    const names = ["constant", "by time", "exponential", "by steps", "cosine"];
    const keys = names.map((name, slot) =>
      element("span", {}, element("canvas", { class: "swatch", "data-slot": slot }), name),
    );
    $("rates-legend").replaceChildren(...keys);
    this.drawBehind();
  }

  drawBehind() {
    for (const canvas of $("rates-legend").querySelectorAll("canvas")) drawSwatch(canvas, Number(canvas.dataset.slot));
  }
}
