// Canvases: sharp on every screen, in the colours of the page; lines told apart by colour, dashes and markers.

const STYLES = [
  { dash: [], marker: "circle" },
  { dash: [9, 4], marker: "square" },
  { dash: [2, 4], marker: "triangle" },
  { dash: [11, 4, 2, 4], marker: "diamond" },
  { dash: [18, 5], marker: "cross" },
  { dash: [5, 3, 1, 3, 1, 3], marker: "star" },
];

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "card", "ink", "muted", "line", "soft", "accent", "low", "high", "contour"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  colours.series = STYLES.map((_, k) => style.getPropertyValue(`--c${k}`).trim());
}

// Makes a canvas as sharp as the screen; returns its context, in CSS pixels, and its size.
function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "12px system-ui, sans-serif";
  return { context, width, height, ratio };
}

function marker(context, kind, x, y, size, colour) {
  context.beginPath();
  const corners = { square: 4, triangle: 3, diamond: 4, star: 10, cross: 12 }[kind];
  if (!corners) context.arc(x, y, size, 0, 2 * Math.PI);
  for (let k = 0; k < (corners ?? 0); k++) {
    let [angle, far] = [(2 * Math.PI * k) / corners - Math.PI / 2, size * 1.25];
    if (kind === "square") angle += Math.PI / 4;
    if (kind === "star" && k % 2) far *= 0.5;
    if (kind === "cross") {
      const arm = Math.floor(k / 3);
      angle = (Math.PI / 2) * arm + [-0.35, 0.35, Math.PI / 4][k % 3] - Math.PI / 2;
      if (k % 3 === 2) far *= 0.48;
    }
    context.lineTo(x + far * Math.cos(angle), y + far * Math.sin(angle));
  }
  context.closePath();
  context.fillStyle = colour;
  context.strokeStyle = colours.card;
  context.lineWidth = 1.5;
  context.setLineDash([]);
  context.fill();
  context.stroke();
}

// Draws the sample of a style that stands beside a name.
function drawSwatch(canvas, slot) {
  const { context, width, height } = prepare(canvas);
  context.strokeStyle = colours.series[slot];
  context.lineWidth = 2;
  context.setLineDash(STYLES[slot].dash);
  context.beginPath();
  context.moveTo(1, height / 2);
  context.lineTo(width - 8, height / 2);
  context.stroke();
  marker(context, STYLES[slot].marker, width - 8, height / 2, 4.5, colours.series[slot]);
}

// Writes text with a halo, so that it can be read on lines.
function haloed(context, text, x, y, colour) {
  context.lineJoin = "round";
  context.setLineDash([]);
  context.lineWidth = 4;
  context.strokeStyle = colours.card;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-12); k++) found.push(k * step);
  return found;
}

const plainNumber = (x) => String(Number(x.toPrecision(6))).replace("-", "−");

// Draws a chart of series { ys, slot, label, width, faint, dots }, y over 0, 1, 2, …; `faint` is its opacity; `log` is a logarithmic y axis.
// Returns where it drew: its box, functions from data to pixels, and back for x.
function drawChart(canvas, { series, xEnd, yRange, log = false, cursor = null, under = null }) {
  const { context, width, height } = prepare(canvas);
  const box = { left: 46, right: width - 12, top: 10, bottom: height - 26 };
  const scale = log ? Math.log10 : (y) => y;
  const [low, high] = yRange.map(scale);
  const toX = (x) => box.left + (x / xEnd) * (box.right - box.left);
  const toY = (y) => box.bottom - ((scale(y) - low) / (high - low)) * (box.bottom - box.top);
  drawAxes(context, width, box, { xEnd, low, high, log, toX });
  context.save();
  context.beginPath();
  context.rect(box.left, box.top - 6, box.right - box.left + 6, box.bottom - box.top + 7);
  context.clip();
  under?.(context, toX, toY, box);
  for (const one of series) drawSeries(context, one, toX, toY, box);
  if (cursor !== null) {
    context.setLineDash([]);
    context.strokeStyle = colours.muted;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(toX(cursor), box.top);
    context.lineTo(toX(cursor), box.bottom);
    context.stroke();
  }
  context.restore();
  return { toX, toY, box, fromX: (px) => ((px - box.left) / (box.right - box.left)) * xEnd };
}

function drawAxes(context, width, box, { xEnd, low, high, log, toX }) {
  context.fillStyle = colours.muted;
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const y of log ? decades(low, high) : ticks(low, high, 5)) {
    const at = Math.round(box.bottom - ((y - low) / (high - low)) * (box.bottom - box.top)) + 0.5;
    context.beginPath();
    context.moveTo(box.left, at);
    context.lineTo(box.right, at);
    context.stroke();
    context.fillText(log ? power10(y) : plainNumber(y), box.left - 7, at);
  }
  context.textBaseline = "top";
  for (const x of ticks(0, xEnd, Math.max(3, width / 110))) {
    context.textAlign = x === 0 ? "left" : x > xEnd * 0.96 ? "right" : "center";
    context.fillText(plainNumber(x), toX(x), box.bottom + 8);
  }
}

function decades(low, high) {
  const found = [];
  const step = Math.max(1, Math.ceil((high - low) / 6));
  for (let k = Math.ceil(low); k <= high; k++) if (k % step === 0) found.push(k);
  return found;
}

const RAISED = [..."⁰¹²³⁴⁵⁶⁷⁸⁹"];
const power10 = (k) => (k === 0 ? "1" : `10${k < 0 ? "⁻" : ""}${[...String(Math.abs(k))].map((d) => RAISED[d]).join("")}`);

function drawSeries(context, { ys, slot, first = 0, width = 2, faint = 0, dots = false, head = false, colour }, toX, toY, box) {
  const paint = colour ?? colours.series[slot];
  context.globalAlpha = faint || 1;
  context.strokeStyle = context.fillStyle = paint;
  const inside = (y) => (Number.isFinite(y) ? Math.max(-1e4, Math.min(1e4, y)) : y === Infinity ? -1e4 : 1e4);
  if (dots) {
    ys.forEach((y, k) => context.fillRect(toX(first + k) - 1.25, inside(toY(y)) - 1.25, 2.5, 2.5));
  } else {
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(STYLES[slot].dash);
    context.beginPath();
    for (let k = 0; k < ys.length; k++) {
      if (Number.isNaN(ys[k])) break;
      context.lineTo(toX(first + k), inside(toY(ys[k])));
    }
    context.stroke();
    if (head && ys.length) {
      const y = Math.max(box.top, Math.min(box.bottom, inside(toY(ys[ys.length - 1]))));
      marker(context, STYLES[slot].marker, toX(first + ys.length - 1), y, 4.5, paint);
    }
  }
  context.globalAlpha = 1;
}
