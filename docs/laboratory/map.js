// The map: contours, the start, and the paths of the runs up to a step.

class SurfaceMap {
  constructor(canvas, trails, moved) {
    this.canvas = canvas;
    this.moved = moved; // called with the new start
    this.trails = new Trails(trails, { halo: true });
    this.background = null;
    this.listen();
  }

  show(problem, surface) {
    [this.problem, this.surface, this.background] = [problem, surface, null];
  }

  toPixels(x, y) {
    const { x_range: [x0, x1], y_range: [y0, y1] } = this.problem;
    const { clientWidth: w, clientHeight: h } = this.canvas;
    return [((x - x0) / (x1 - x0)) * w, ((y1 - y) / (y1 - y0)) * h];
  }

  // Returns the place under a pixel, in three decimals.
  fromPixels(px, py) {
    const { x_range: [x0, x1], y_range: [y0, y1] } = this.problem;
    const { clientWidth: w, clientHeight: h } = this.canvas;
    return this.within(x0 + (px / w) * (x1 - x0), y1 - (py / h) * (y1 - y0));
  }

  within(x, y) {
    const clamp = (v, [low, high]) => Math.round(Math.min(Math.max(v, low), high) * 1000) / 1000;
    return [clamp(x, this.problem.x_range), clamp(y, this.problem.y_range)];
  }

  listen() {
    const { canvas } = this;
    let dragging = false;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const nearStart = (event) => {
      const [sx, sy] = this.toPixels(...this.start);
      const [px, py] = at(event);
      return Math.hypot(px - sx, py - sy) < 32;
    };
    // A finger scrolls the page, unless it begins on the start; a tap elsewhere moves the start there.
    canvas.addEventListener("touchstart", (event) => nearStart(event.touches[0]) && event.preventDefault(), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || (event.pointerType === "touch" && !nearStart(event))) return;
      dragging = true;
      canvas.setPointerCapture(event.pointerId);
      this.moved(...this.fromPixels(...at(event)));
    });
    canvas.addEventListener("pointermove", (event) => dragging && this.moved(...this.fromPixels(...at(event))));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (dragging = false));
    canvas.addEventListener("click", (event) => this.moved(...this.fromPixels(...at(event))));
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!way) return;
      event.preventDefault();
      const { x_range: [x0, x1], y_range: [y0, y1] } = this.problem;
      const far = event.shiftKey ? 0.1 : 0.01;
      const [x, y] = this.start;
      this.moved(...this.within(x + way[0] * far * (x1 - x0), y + way[1] * far * (y1 - y0)));
    });
  }

  // Draws what stays: the contours, numbers at the edges, and the minima.
  drawBehind(canvas) {
    const { context, width, height, ratio } = prepare(canvas);
    if (!width) return;
    const { x_range: xRange, y_range: yRange, least, minima } = this.problem;
    const wanted = `${width}×${height}×${ratio}×${colours.low}`;
    if (!this.background || this.drawnFor !== wanted) {
      const f = (x, y) => this.surface.loss(x, y);
      this.background = drawContours(f, least, xRange, yRange, Math.round(width * ratio), Math.round(height * ratio), ratio);
      this.drawnFor = wanted;
    }
    context.drawImage(this.background, 0, 0, width, height);
    this.drawTicks(context, width, height);
    for (const [x, y] of minima) this.drawMinimum(context, ...this.toPixels(x, y));
  }

  // Draws what moves: the start, and the runs up to step t; `version` is another where anything but t is new.
  draw(runs, start, t, version) {
    this.start = start;
    const { context, width, height } = prepare(this.canvas);
    const lines = runs.map((run) => ({ ...run, end: run.xs.length - 1, at: (k) => this.toPixels(run.xs[k], run.ys[k]) }));
    this.trails.draw(lines, t, version);
    this.drawStart(context, ...this.toPixels(...start));
    this.drawHeads(context, runs, t, width, height);
  }

  drawTicks(context, width, height) {
    context.fillStyle = colours.ink;
    context.textBaseline = "bottom";
    context.textAlign = "center";
    const { x_range: [x0, x1], y_range: [y0, y1] } = this.problem;
    for (const x of ticks(x0, x1, 6)) {
      const [px] = this.toPixels(x, 0);
      if (px > 24 && px < width - 24) context.fillText(plainNumber(x), px, height - 5);
    }
    context.textBaseline = "middle";
    context.textAlign = "left";
    for (const y of ticks(y0, y1, 5)) {
      const [, py] = this.toPixels(0, y);
      if (py > 14 && py < height - 26) context.fillText(plainNumber(y), 7, py);
    }
  }

  drawMinimum(context, x, y) {
    context.setLineDash([]);
    context.strokeStyle = colours.ink;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const [dx, dy] of [[1, 1], [1, -1]]) {
      context.moveTo(x - 5 * dx, y - 5 * dy);
      context.lineTo(x + 5 * dx, y + 5 * dy);
    }
    context.stroke();
  }

  drawStart(context, x, y) {
    context.beginPath();
    context.arc(x, y, 7, 0, 2 * Math.PI);
    context.lineWidth = 5;
    context.strokeStyle = colours.card;
    context.stroke();
    context.lineWidth = 2.5;
    context.strokeStyle = colours.ink;
    context.stroke();
  }

  // Markers where the runs are, and their names beside them, none over another.
  drawHeads(context, runs, t, width, height) {
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const taken = [];
    for (const run of runs) {
      const k = Math.min(t, run.xs.length - 1);
      const [x, y] = this.toPixels(run.xs[k], run.ys[k]);
      if (!(x > -1 && x < width + 1 && y > -1 && y < height + 1)) continue;
      marker(context, STYLES[run.slot].marker, x, y, 5.5, colours.series[run.slot]);
      const size = context.measureText(run.title).width;
      const left = x + 12 + size > width - 4;
      let at = Math.min(Math.max(y, 12), height - 28);
      const begin = left ? x - 11 - size : x + 11;
      const clash = () => taken.find(([b, e, v]) => begin < e && begin + size > b && Math.abs(at - v) < 15);
      for (let tries = 0; clash() && tries < 12; tries++) at = clash()[2] + (at < height - 60 ? 15 : -15);
      taken.push([begin, begin + size, at]);
      context.textAlign = "left";
      haloed(context, run.title, begin, at, colours.series[run.slot]);
    }
  }
}
