// The first tab: rules descend a surface.

const PROBLEM_ABOUT = {
  bowl: "Fifty times steeper across than along. SGD’s rate must suit the steep side, so it zigzags there and creeps along the valley. Momentum adds up what keeps its direction and cancels what does not; RMSprop and Adam divide each direction by its own steepness.",
  saddle: "The origin is a minimum along x and a maximum along y. The gradient vanishes there, and a run that arrives exactly along x stays. Rules that divide by the gradient’s size leave it sooner, and so does, with most seeds, a run with a little noise: try the sliders.",
  rosenbrock: "Steep walls lead into a curved, nearly level valley. Finding the valley takes a few steps, following it takes hundreds: memory of past gradients helps.",
  beale: "A plateau with small gradients, between sharp ridges. SGD’s steps are as small as its gradients; rules that divide by the gradient’s size cross the plateau at their own speed.",
  crate: "Many minima, one of them the lowest. Small steps end in the nearest one. Larger steps, momentum or noise carry a run over the edges, and a falling rate lets it come to rest.",
  batch: "A line fitted to 64 points, x its height and y its slope. Each step sees a few of them only, so its gradient points somewhere near the right way. Larger batches: less scatter, and more work for each step.",
};
const SYMBOLS = { beta: "β, memory", alpha: "α, memory", rho: "ρ, memory", momentum: "Momentum" };
const MOST_RULES = STYLES.length;
const BASICS = ["sgd", "momentum", "nesterov", "rmsprop", "adam"];

class Descent {
  constructor() {
    const { data } = fastopt;
    this.state = { problem: "bowl", precision: "float64", noise: 0, batch: 8, seed: 0, steps: 100, t: 100, start: null };
    this.chosen = []; // { name, slot, settings, lr }
    this.lossTrails = new Trails($("loss-trails"));
    this.version = 0; // of all that is drawn but the step
    this.playing = false;
    this.speed = 30;
    this.map = new SurfaceMap($("map"), $("trails"), (x, y) => this.moveStart(x, y));
    const titles = Object.entries(data.problems).map(([value, p]) => element("option", { value }, p.title));
    $("problem").append(...titles);
    $("problem").addEventListener("change", () => this.setProblem($("problem").value));
    $("precision").addEventListener("change", () => this.set({ precision: $("precision").value }));
    this.makeChips();
    this.schedule = scheduleChoice({
      select: $("schedule"), slot: $("schedule-sliders"), about: $("schedule-about"), prefix: "schedule",
      kind: "constant", changed: () => this.compute(),
    });
    this.makeGradientSliders();
    this.makeTransport();
    $("digits").addEventListener("change", () => this.draw());
    for (const name of ["sgd", "momentum", "rmsprop", "adam"]) this.choose(name, true);
    this.setProblem("bowl");
  }

  makeChips() {
    for (const [name, { title }] of Object.entries(fastopt.data.rules)) {
      const input = element("input", { type: "checkbox", id: `rule-${name}`, value: name });
      input.addEventListener("change", () => {
        this.choose(name, input.checked);
        this.compute();
      });
      const chip = element("label", { class: "chip" }, input, element("span", {}, title));
      $(BASICS.includes(name) ? "rule-basics" : "rule-others").append(chip);
    }
    BASICS.forEach((name) => $("rule-basics").append($(`rule-${name}`).parentElement));
  }

  makeGradientSliders() {
    const { data } = fastopt;
    const set = (name) => (x) => this.set({ [name]: x });
    this.batchSlider = slider({
      id: "batch", label: "Batch size, of 64 points", values: data.batches, value: this.state.batch, changed: set("batch"),
    });
    this.lengthSlider = slider({
      id: "run-length", label: "Steps of the run", values: data.runLengths, value: 100, changed: (steps) => this.set({ steps, t: steps }),
    });
    const noise = slider({ id: "noise", label: "Noise, its standard deviation", values: data.noises, value: 0, changed: set("noise") });
    const seeds = Array.from({ length: 20 }, (_, k) => k);
    const seed = slider({ id: "seed", label: "Seed of noise and batches", values: seeds, value: 0, changed: set("seed") });
    $("gradient-sliders").append(noise, this.batchSlider, seed, this.lengthSlider);
  }

  makeTransport() {
    $("run").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    $("step").addEventListener("click", () => {
      this.pause();
      this.goTo(this.state.t >= this.state.steps ? 1 : this.state.t + 1, true);
    });
    $("reset").addEventListener("click", () => {
      this.pause();
      this.goTo(0, true);
    });
    const speeds = [2, 5, 10, 30, 60, 120, 300];
    this.speedSlider = slider({ id: "speed", label: "Speed", values: speeds, value: 30, unit: "/s", changed: (x) => (this.speed = x) });
    $("speed-slot").append(this.speedSlider);
  }

  choose(name, wanted) {
    if (wanted) {
      const slot = STYLES.findIndex((_, k) => !this.chosen.some((one) => one.slot === k));
      const rule = fastopt.data.rules[name];
      this.chosen.push({ name, slot, title: rule.title, settings: structuredClone(rule.settings), lr: rule.rates[this.state.problem] });
    } else {
      this.chosen = this.chosen.filter((one) => one.name !== name);
    }
    for (const input of document.querySelectorAll(".chip input")) {
      const one = this.chosen.find((x) => x.name === input.value);
      input.checked = Boolean(one);
      input.disabled = !one && this.chosen.length >= MOST_RULES;
      input.parentElement.style.setProperty("--chip", one ? `var(--c${one.slot})` : "");
    }
    this.makeCards();
  }

  makeCards() {
    const { data } = fastopt;
    const cards = this.chosen.map((one) => {
      const rule = data.rules[one.name];
      const set = (change) => (x) => {
        change(x);
        this.compute();
      };
      const sliders = [
        slider({ id: `${one.name}-lr`, label: "Learning rate", values: data.learningRates, value: one.lr, changed: set((x) => (one.lr = x)) }),
        ...rule.sliders.map(([field, k]) => {
          const symbol = k === null ? (SYMBOLS[field] ?? field) : `β${"₁₂₃"[k]}`;
          const value = k === null ? one.settings[field] : one.settings[field][k];
          const change = (x) => (k === null ? (one.settings[field] = x) : (one.settings[field][k] = x));
          const id = k === null ? `${one.name}-${field}` : `${one.name}-${field}-${k}`;
          return slider({ id, label: symbol, values: data.decayRates, value, changed: set(change) });
        }),
      ];
      const title = element("h3", {}, element("canvas", { class: "swatch", "data-slot": one.slot, "aria-hidden": "true" }), rule.title);
      const parts = [title, element("p", {}, rule.about), element("div", { class: "sliders2" }, ...sliders), this.makeCode(one)];
      return element("div", { class: "card" }, ...parts);
    });
    $("rule-cards").replaceChildren(...cards);
  }

  // The text of a rule's step, as the page runs it.
  makeCode({ name, title }) {
    const text = element("pre", { tabindex: 0, "aria-label": `Code of ${title}` });
    const details = element("details", {}, element("summary", {}, "Code that runs here"), text);
    details.addEventListener("toggle", () => {
      const passes = fastopt.programs[name][this.state.precision].passes.map(({ step }) => String(step));
      text.textContent = passes.join("\n\n").replace(/^ {6}/gm, "");
    });
    return details;
  }

  setProblem(name) {
    const problem = fastopt.data.problems[name];
    $("problem").value = name;
    $("problem-about").textContent = PROBLEM_ABOUT[name];
    $("noise-about").textContent = problem.sampled
      ? "Small batches are noisy already; the slider adds more."
      : "Adds normal numbers to each gradient, as small batches do.";
    this.batchSlider.hidden = !problem.sampled;
    for (const one of this.chosen) one.lr = fastopt.data.rules[one.name].rates[name];
    this.makeCards();
    this.lengthSlider.setValue(problem.steps);
    this.speed = this.speedSlider.setValue(problem.steps / 4); // a run of about four seconds
    this.set({ problem: name, start: problem.start, steps: problem.steps, t: problem.steps });
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.compute();
  }

  moveStart(x, y) {
    this.set({ start: [x, y] });
    $("announcement").textContent = `Start at ${x}, ${y}`;
  }

  // Takes all runs, which are short, from start to end; what is shown of them is up to step t.
  compute() {
    const { problem, precision, start, steps, seed, noise, batch } = this.state;
    this.surface = new Surface(problem, precision);
    this.runs = this.chosen.map((one) => {
      const lr = makeSchedule(this.schedule.kind, one.lr, steps, this.schedule.settings);
      const run = takeRun({ rule: one.name, settings: one.settings, lr, problem, precision, start, steps, seed, batch, noise });
      return { ...one, ...run };
    });
    if (this.shown !== `${problem} ${precision}`) this.map.show(fastopt.data.problems[problem], this.surface);
    this.shown = `${problem} ${precision}`;
    this.makeRows();
    this.drawBehind();
    this.goTo(Math.min(this.state.t, steps));
  }

  play() {
    if (this.state.t >= this.state.steps) this.goTo(0);
    this.playing = true;
    $("run").textContent = "Pause";
    [this.frames, this.began] = [0, performance.now()];
    let [last, due] = [this.began, 0];
    const frame = (now) => {
      if (!this.playing) return;
      due += ((now - last) / 1000) * this.speed;
      last = now;
      this.frames++;
      if (due >= 1) this.goTo(Math.min(this.state.t + Math.floor(due), this.state.steps));
      due %= 1;
      if (this.state.t >= this.state.steps) this.pause(true);
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  pause(ended = false) {
    if (this.playing) this.framesPerSecond = (1000 * this.frames) / (performance.now() - this.began);
    this.playing = false;
    $("run").textContent = "Run";
    if (ended) this.announce();
  }

  goTo(t, announced = false) {
    this.state.t = t;
    this.draw();
    if (announced) this.announce();
  }

  announce() {
    const losses = this.runs.map((run) => `${run.title} ${short(run.losses[Math.min(this.state.t, run.losses.length - 1)], 4)}`);
    $("announcement").textContent = `Step ${this.state.t}. Loss: ${losses.join(", ")}`;
  }

  makeRows() {
    const rows = this.runs.map((run) => {
      const name = element("th", { scope: "row" }, element("canvas", { class: "swatch", "data-slot": run.slot, "aria-hidden": "true" }), run.title);
      const cells = ["t", "loss", "x", "y"].map((key) => element("td", { "data-number": key, "data-name": key === "t" ? "step" : key }));
      return element("tr", { "data-rule": run.name }, name, ...cells);
    });
    $("numbers").tBodies[0].replaceChildren(...rows);
  }

  drawSwatches() {
    for (const canvas of document.querySelectorAll("#panel-descent canvas.swatch")) drawSwatch(canvas, Number(canvas.dataset.slot));
  }

  draw() {
    const { t, steps, start } = this.state;
    $("clock").textContent = t;
    $("clock-end").textContent = steps;
    this.map.draw(this.runs, start, t, this.version);
    $("map").setAttribute("aria-label", `Map of ${fastopt.data.problems[this.state.problem].title}, start at ${start[0]}, ${start[1]}`);
    this.drawLosses(t);
    $("numbers").classList.toggle("full", $("digits").checked);
    const digits = $("digits").checked ? Infinity : 5;
    for (const [k, row] of [...$("numbers").tBodies[0].rows].entries()) {
      const run = this.runs[k];
      const at = Math.min(t, run.xs.length - 1);
      const numbers = { t: at, loss: run.losses[at], x: run.xs[at], y: run.ys[at] };
      for (const cell of row.cells) {
        const key = cell.dataset.number;
        if (key === "t") showNumber(cell, at, Infinity);
        else if (key) showNumber(cell, numbers[key], digits);
      }
    }
  }

  // What stays behind the runs while they go on: the map, and the axes and whole curves of the losses.
  drawBehind() {
    this.drawSwatches();
    this.map.drawBehind($("contours"));
    const { least } = fastopt.data.problems[this.state.problem];
    this.above = this.runs.map((run) => run.losses.map((loss) => Math.max(loss - least, 1e-12)));
    const finite = this.above.flatMap((ys) => [...ys].filter((y) => y < 1e6));
    const low = Math.max(finite.reduce((a, b) => Math.min(a, b), 1e-2), 1e-8);
    const high = finite.reduce((a, b) => Math.max(a, b), 1);
    this.lossScale = { xEnd: this.state.steps, yRange: [low * 0.6, high * 1.5], log: true };
    const series = this.above.map((ys, k) => ({ ys, slot: this.runs[k].slot, faint: 0.35, width: 1.25 }));
    this.lossChart = drawChart($("losses-behind"), { ...this.lossScale, series });
    this.version++;
  }

  drawLosses(t) {
    const { toX, toY, box } = this.lossChart;
    const within = (y) => Math.max(box.top, Math.min(box.bottom, y));
    const lines = this.above.map((ys, k) => ({ slot: this.runs[k].slot, end: ys.length - 1, at: (i) => [toX(i), toY(ys[i])] }));
    this.lossTrails.draw(lines, t, this.version, [box.left, box.top, box.right - box.left, box.bottom - box.top]);
    const { context } = prepare($("losses"));
    for (const { slot, end, at } of lines) {
      const [x, y] = at(Math.min(t, end));
      if (!Number.isNaN(y)) marker(context, STYLES[slot].marker, x, within(y), 4.5, colours.series[slot]);
    }
  }
}
