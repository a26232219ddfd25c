// A view's patches: the weights of one of them over others, and a photo on which one is selected, or which shows those weights.

import { element, fitImage } from "report/dom";
import { paintShares } from "report/colours";

export const MEAN = "mean";
const TALLEST = 640; // pixels

const cellsOf = (info, view) => info.grids[view - 1][0] * info.grids[view - 1][1];

// Weights of one query over the cells of all views that it attends to; head may be MEAN. kind: what the arrays' names begin with.
export function createReader(info, arrays, kind = "") {
  const fills = info.keys.map((keys) => fillsOf(info, keys));
  function one(view, block, head, token) {
    const keys = fills[view - 1].length;
    const row = (block * info.heads + head) * cellsOf(info, view) + token;
    const peak = arrays[`${kind}peaks${view}`].values[row];
    const stored = arrays[`${kind}weights${view}`].values.subarray(row * keys, (row + 1) * keys);
    return Float32Array.from(stored, (level, i) => peak * (level / info.levels) ** 2 * fills[view - 1][i]);
  }
  return (view, block, head, token) => {
    if (head !== MEAN) return one(view, block, head, token);
    const heads = Array.from({ length: info.heads }, (_, h) => one(view, block, h, token));
    return heads[0].map((_, i) => heads.reduce((sum, weights) => sum + weights[i], 0) / info.heads);
  };
}

// The parts of a query's weights: [{ view, weights }], one for each view that it attends to.
export function byKeyView(info, view, weights) {
  let start = 0;
  return info.keys[view - 1].map((key) => ({ view: key, weights: weights.subarray(start, (start += cellsOf(info, key))) }));
}

// How much of each cell of these views lies within its view's grid: pooled cells at the far edges may have fewer tokens than the others.
function fillsOf(info, views) {
  const within = (span, at) => Math.min(1, span - at);
  return views.flatMap((view) => {
    const [, columns] = info.grids[view - 1];
    const [spanRows, spanColumns] = info.spans[view - 1];
    return Array.from({ length: cellsOf(info, view) }, (_, cell) => within(spanRows, Math.floor(cell / columns)) * within(spanColumns, cell % columns));
  });
}

// Weights over the cells of these views as they are coloured, per token: a weight is the sum over a cell's tokens, and those with fewer
// of them would look dark.
export function perToken(info, views, weights) {
  const fills = fillsOf(info, views);
  return weights.map((weight, i) => weight / fills[i]);
}

// Of one query's weights: the largest per token, and a clause about the cell that has it.
export function brightest(info, view, weights) {
  const keys = info.keys[view - 1];
  const brightness = perToken(info, keys, weights);
  const [peak, fills] = [peakOf(brightness), fillsOf(info, keys)];
  const at = brightness.indexOf(peak);
  return { peak, clause: `puts ${percent(weights[at])} of its weight on the brightest patch; spread evenly, that patch would get ${percent(fills[at] / sumOf(fills))}.` };
}

const peakOf = (weights) => weights.reduce((most, weight) => Math.max(most, weight), 0);
export const sumOf = (weights) => weights.reduce((sum, weight) => sum + weight, 0);
export const toShares = (weights, peak) => weights.map((weight) => weight / (peak || 1));
export const percent = (weight) => `${(100 * weight).toFixed(weight < 0.0995 ? 2 : 1)} %`;

// Counted from 1.
export function rowAndColumn(info, { view, token }) {
  const [, columns] = info.grids[view - 1];
  return [Math.floor(token / columns) + 1, (token % columns) + 1];
}

export const markNote = (info) => {
  if (!info.marks) return "";
  const where = info.grids.length > 2 ? "are seen by no other view: hidden there, or outside of their images" : "are not seen by the other view: hidden there, or outside of its image";
  return `Hatched patches ${where}. A ring marks the selected patch’s true place.`;
};

// picking: { token: () => the selected one or null if it is in another view, choose: (token) => void }; none for a view that only shows.
export function createPanel(view, info, photo, colourMap, status, picking = null) {
  const [rows, columns] = info.grids[view - 1];
  const canvas = element("canvas", { class: `of-view${view}`, role: "img" });
  const caption = element("figcaption", { class: `of-view${view}` });
  const heat = document.createElement("canvas");
  const scale = Math.max(1, Math.round(640 / photo.naturalWidth));
  [canvas.width, canvas.height] = [photo.naturalWidth * scale, photo.naturalHeight * scale];
  fitImage(canvas, photo.naturalWidth, photo.naturalHeight, TALLEST);
  const context = canvas.getContext("2d");
  // Pooled cells at the far edges may extend beyond the image.
  const [spanRows, spanColumns] = info.spans[view - 1];
  const [cellWidth, cellHeight] = [canvas.width / spanColumns, canvas.height / spanRows];
  const hidden = new Set(info.marks?.[view - 1].hidden);
  const many = info.grids.length > 2;
  let weights = null;

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * spanColumns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * spanRows);
    return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
  }
  // Moves by one cell; from the middle if the selected patch is in the other view.
  function onKey(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    // Elsewhere the same keys step through the layers.
    event.stopPropagation();
    const from = picking.token() ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const move = (place, by, count) => Math.min(count - 1, Math.max(0, place + by));
    picking.choose(move(Math.floor(from / columns), steps[0], rows) * columns + move(from % columns, steps[1], columns));
  }
  if (picking) {
    const text = `View ${view}: arrow keys select the patch whose attention is shown`;
    for (const [name, value] of Object.entries({ tabindex: 0, role: "application", "aria-label": text })) canvas.setAttribute(name, value);
    canvas.classList.add("picks");
    canvas.addEventListener("keydown", onKey);
    canvas.addEventListener("click", (event) => picking.choose(cellAt(event)));
  }
  canvas.addEventListener("pointermove", (event) => {
    if (weights) status.textContent = `Weight here: ${percent(weights[cellAt(event)])}${hidden.has(cellAt(event)) ? `, of a patch that ${many ? "no other view sees" : "the other view does not see"}` : ""}.`;
  });
  canvas.addEventListener("pointerleave", () => (status.textContent = status.dataset.text));

  const corner = (token) => [(token % columns) * cellWidth, Math.floor(token / columns) * cellHeight];

  function hatch(strength) {
    context.lineWidth = Math.max(1, canvas.width / 400);
    for (const token of hidden) {
      const [left, top] = corner(token);
      context.save();
      context.beginPath();
      context.rect(left, top, cellWidth, cellHeight);
      context.clip();
      for (const [colour, off] of [["#000", 0], ["#fff", 1.6 * context.lineWidth]]) {
        context.beginPath();
        context.globalAlpha = strength;
        context.strokeStyle = colour;
        for (let at = -cellHeight; at < cellWidth; at += Math.max(8, cellWidth / 4)) {
          context.moveTo(left + at + off, top + cellHeight);
          context.lineTo(left + at + off + cellHeight, top);
        }
        context.stroke();
      }
      context.restore();
    }
  }
  function ring(token) {
    const [left, top] = corner(token);
    for (const [colour, width] of [["#000", 7], ["#fff", 3.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.ellipse(left + cellWidth / 2, top + cellHeight / 2, 0.3 * cellWidth, 0.3 * cellHeight, 0, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function outline(token) {
    const [left, top] = corner(token);
    for (const [colour, width] of [["#000", 7], ["#fff", 3.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(left, top, cellWidth, cellHeight);
    }
  }

  return {
    node: element("figure", {}, canvas, caption),
    showQuery(token) {
      weights = null;
      context.drawImage(photo, 0, 0, canvas.width, canvas.height);
      hatch(0.75);
      outline(token);
      const unseen = many ? ", which no other view sees" : `, which view ${3 - view} does not see`;
      caption.textContent = `View ${view}: the selected patch${hidden.has(token) ? unseen : ""}`;
    },
    // place: of the selected patch among this view's cells; -1 or nothing where it is not seen. peak: the weight per token of full brightness.
    // share: of the patch's attention that this view gets, to be told. token: the selected patch, where it is one of this view's.
    showWeights(given, place = -1, { peak, share = null, token = null }) {
      weights = given;
      paintShares(heat, columns, rows, toShares(perToken(info, [view], given), peak), colourMap, (strength) => 255 * Math.sqrt(strength));
      context.globalAlpha = 1;
      context.drawImage(photo, 0, 0, canvas.width, canvas.height);
      context.fillStyle = "rgb(0 0 0 / 0.55)";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.globalAlpha = 0.85;
      context.imageSmoothingEnabled = false;
      context.drawImage(heat, 0, 0, columns * cellWidth, rows * cellHeight);
      context.imageSmoothingEnabled = true;
      context.globalAlpha = 1;
      hatch(0.3);
      if (place >= 0) ring(place);
      if (token !== null) outline(token);
      const told = share === null ? "" : `, ${percent(share)}`;
      caption.textContent = `View ${view}: ${token === null ? "" : "the selected patch, and "}where it attends${told}`;
      if (!picking) canvas.setAttribute("aria-label", `View ${view}: where the selected patch attends`);
    },
  };
}
