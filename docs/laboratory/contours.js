// A contour map: bands of colour between levels, and a line at each level by marching squares.

const LEVELS = 13;

// Samples f on a grid; heights are logarithmic above the minimum, so that valleys and walls show alike.
function sampleHeights(f, least, [x0, x1], [y0, y1], columns, rows) {
  const heights = new Float64Array(columns * rows);
  for (let j = 0; j < rows; j++) {
    const y = y1 + ((y0 - y1) * j) / (rows - 1);
    for (let i = 0; i < columns; i++) heights[j * columns + i] = f(x0 + ((x1 - x0) * i) / (columns - 1), y) - least;
  }
  const sorted = Float64Array.from(heights).sort();
  const unit = Math.max(sorted[Math.floor(sorted.length * 0.06)], 1e-9);
  for (let k = 0; k < heights.length; k++) heights[k] = Math.log1p(Math.max(heights[k], 0) / unit);
  return heights;
}

function parseColour(text) {
  const value = parseInt(text.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

// Draws the map of f into a canvas of this size in pixels.
function drawContours(f, least, xRange, yRange, width, height, ratio) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const cell = Math.max(2, Math.round(Math.sqrt((width * height) / 90000)));
  const [columns, rows] = [Math.ceil(width / cell) + 1, Math.ceil(height / cell) + 1];
  const heights = sampleHeights(f, least, xRange, yRange, columns, rows);
  const top = heights.reduce((a, b) => Math.max(a, b), 0);
  const context = canvas.getContext("2d");
  const [low, high] = [parseColour(colours.low), parseColour(colours.high)];

  const small = document.createElement("canvas");
  [small.width, small.height] = [columns, rows];
  const image = new ImageData(columns, rows);
  for (let k = 0; k < heights.length; k++) {
    const share = Math.min(heights[k] / top, 1);
    for (let c = 0; c < 3; c++) image.data[4 * k + c] = low[c] + (high[c] - low[c]) * share;
    image.data[4 * k + 3] = 255;
  }
  small.getContext("2d").putImageData(image, 0, 0);
  const [dx, dy] = [width / (columns - 1), height / (rows - 1)];
  context.imageSmoothingEnabled = true;
  context.drawImage(small, 0.5, 0.5, columns - 1, rows - 1, 0, 0, width, height);

  context.strokeStyle = colours.contour;
  context.lineWidth = ratio;
  for (let k = 1; k < LEVELS; k++) context.stroke(levelLine(heights, columns, rows, (top * k) / LEVELS, dx, dy));
  return canvas;
}

// The line at a level: in each square of four samples, straight between the edges where it crosses.
function levelLine(heights, columns, rows, level, dx, dy) {
  const path = new Path2D();
  const between = (a, b) => (level - a) / (b - a);
  for (let j = 0; j + 1 < rows; j++) {
    for (let i = 0; i + 1 < columns; i++) {
      const k = j * columns + i;
      const [a, b, c, d] = [heights[k], heights[k + 1], heights[k + columns + 1], heights[k + columns]];
      const points = [];
      if (a < level !== b < level) points.push([i + between(a, b), j]);
      if (b < level !== c < level) points.push([i + 1, j + between(b, c)]);
      if (d < level !== c < level) points.push([i + between(d, c), j + 1]);
      if (a < level !== d < level) points.push([i, j + between(a, d)]);
      for (let p = 0; p + 1 < points.length; p += 2) {
        path.moveTo(points[p][0] * dx, points[p][1] * dy);
        path.lineTo(points[p + 1][0] * dx, points[p + 1][1] * dy);
      }
    }
  }
  return path;
}
