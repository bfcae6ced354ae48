// Lines that grow with the steps of a run: each frame draws what is new, on a canvas that keeps what was drawn.

class Trails {
  // With `halo` lines stand out from what they cross.
  constructor(canvas, { halo = false } = {}) {
    [this.canvas, this.halo, this.t] = [canvas, halo, 0];
  }

  // Draws lines { slot, end, at } up to step t; `at(k)` is the place of step k in pixels, `end` the last one there is.
  // All are drawn anew where `version` is another than before, or t is smaller.
  draw(lines, t, version, clip = null) {
    if (version !== this.version || t < this.t) {
      this.context = prepare(this.canvas).context;
      this.lengths = lines.map(() => 0);
      [this.version, this.t] = [version, 0];
      if (clip) {
        this.context.beginPath();
        this.context.rect(...clip);
        this.context.clip();
      }
    }
    if (t > this.t) lines.forEach((line, k) => (this.lengths[k] += this.extend(line, t, this.lengths[k])));
    this.t = t;
  }

  // Draws a line on; returns the length of the new part. Its dashes go on after `before` pixels.
  extend({ slot, end, at }, t, before) {
    const { context } = this;
    const path = new Path2D();
    let length = 0;
    let last = at(Math.min(this.t, end));
    path.moveTo(...last);
    for (let k = this.t + 1; k <= Math.min(t, end); k++) {
      const next = at(k);
      if (!(Math.abs(next[0]) < 1e5 && Math.abs(next[1]) < 1e5)) break;
      length += Math.hypot(next[0] - last[0], next[1] - last[1]);
      path.lineTo(...next);
      last = next;
    }
    context.lineJoin = "round";
    if (this.halo) {
      context.setLineDash([]);
      [context.strokeStyle, context.globalAlpha, context.lineWidth] = [colours.card, 0.55, 4];
      context.stroke(path);
    }
    context.setLineDash(STYLES[slot].dash);
    [context.strokeStyle, context.globalAlpha, context.lineWidth] = [colours.series[slot], 1, 2];
    context.lineDashOffset = before;
    context.stroke(path);
    return length;
  }
}
