// Where a token attends in the other view: one block and head large, all blocks and heads as thumbnails.

import { byId, element, fitImage } from "report/dom";
import { paintShares } from "report/colours";

const MEAN = "mean";
const TALLEST = 640; // pixels

// Weights of one query over the other view's cells; head may be MEAN.
function createReader(info, arrays) {
  const count = (grid) => grid[0] * grid[1];
  function one(view, block, head, token) {
    const [own, other] = view === 1 ? info.grids : [...info.grids].reverse();
    const row = (block * info.heads + head) * count(own) + token;
    const peak = arrays[`peaks${view}`].values[row];
    const stored = arrays[`weights${view}`].values.subarray(row * count(other), (row + 1) * count(other));
    return Float32Array.from(stored, (level) => peak * (level / info.levels) ** 2);
  }
  return (view, block, head, token) => {
    if (head !== MEAN) return one(view, block, head, token);
    const heads = Array.from({ length: info.heads }, (_, h) => one(view, block, h, token));
    return heads[0].map((_, i) => heads.reduce((sum, weights) => sum + weights[i], 0) / info.heads);
  };
}

const toShares = (weights) => {
  const peak = weights.reduce((most, weight) => Math.max(most, weight), 0) || 1;
  return weights.map((weight) => weight / peak);
};
const percent = (weight) => `${(100 * weight).toFixed(weight < 0.0995 ? 2 : 1)} %`;

export function createAttention(state, layers, values, arrays, colourMap, photos) {
  const info = values.attention;
  const body = byId("attention-body");
  if (!info) {
    body.append(element("p", { class: "absent" }, "This report has no cross-attention."));
    return;
  }
  const weightsOf = createReader(info, arrays);
  byId("attention-note").textContent = note(info, values.grids);
  const status = element("p", { class: "status", role: "status" });
  const panels = [1, 2].map((view) => createPanel(view, state, info, photos[view - 1], colourMap, status));
  const grid = createGrid(state, info, colourMap, values.shapes);
  // Beside a wide grid there is room for one photo, not for two.
  const views = element("div", { class: `attention-views${info.heads > 7 ? " stacked" : ""}` }, panels.map(({ node }) => node));
  body.append(element("div", { class: "attention" }, element("div", {}, views, controls(state, info), status), grid.node));

  followSlider(state, layers, info);
  state.watch(["block", "head", "query"], ({ block, head, query }) => {
    const weights = weightsOf(query.view, block, head, query.token);
    panels.forEach((panel, i) => (i + 1 === query.view ? panel.showQuery(query.token) : panel.showWeights(weights)));
    const peak = weights.reduce((most, weight) => Math.max(most, weight), 0);
    const who = `Block ${info.blocks[block]}, ${head === MEAN ? `mean of ${info.heads} heads` : `head ${head}`}`;
    const [row, column] = rowAndColumn(info, query);
    status.dataset.text = `${who}: the patch in row ${row}, column ${column} of view ${query.view} puts ${percent(peak)} of its weight on the brightest patch; spread evenly, each patch would get ${percent(1 / weights.length)}.`;
    status.textContent = status.dataset.text;
  });
  state.watch(["query"], ({ query }) => grid.paint((block, head) => toShares(weightsOf(query.view, block, head, query.token)), query.view));
  state.watch(["block", "head"], ({ block, head }) => grid.mark(block, head));
}

// Counted from 1.
function rowAndColumn(info, { view, token }) {
  const [, columns] = info.grids[view - 1];
  return [Math.floor(token / columns) + 1, (token % columns) + 1];
}

function note(info, grids) {
  const sizes = new Set(grids.map(([rows, columns]) => `${rows}×${columns}`));
  const pooled = info.pool === 1 ? "" : `To keep this file small, ${info.pool}×${info.pool} tokens are pooled (of ${[...sizes].join(" and ")}). `;
  const steps = info.levels < 63 ? `Weights are quantised to ${info.levels} levels. ` : "";
  return `${pooled}${steps}Each map is scaled to its own maximum.`;
}

// The block of the current layer, while linked; layers outside the decoder's blocks change nothing.
function followSlider(state, layers, info) {
  state.watch(["layer", "linked"], ({ layer, linked }) => {
    const { stack, block } = layers[layer];
    const index = stack === "decoder" ? info.blocks.indexOf(block) : stack === "head" ? info.blocks.length - 1 : -1;
    if (linked && index >= 0) state.set({ block: index });
  });
}

function createPanel(view, state, info, photo, colourMap, status) {
  const [rows, columns] = info.grids[view - 1];
  const canvas = element("canvas", { class: `of-view${view}`, tabindex: 0, role: "application", "aria-label": `View ${view}: arrow keys select the patch whose attention is shown` });
  const caption = element("figcaption", { class: `of-view${view}` });
  const heat = document.createElement("canvas");
  const scale = Math.max(1, Math.round(640 / photo.naturalWidth));
  [canvas.width, canvas.height] = [photo.naturalWidth * scale, photo.naturalHeight * scale];
  fitImage(canvas, photo.naturalWidth, photo.naturalHeight, TALLEST);
  const context = canvas.getContext("2d");
  // Pooled cells at the far edges may extend beyond the image.
  const [spanRows, spanColumns] = info.spans[view - 1];
  const [cellWidth, cellHeight] = [canvas.width / spanColumns, canvas.height / spanRows];
  let weights = null;

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * spanColumns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * spanRows);
    return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
  }
  // Moves by one cell; from the middle if the selected patch is in the other view.
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    // Elsewhere the same keys step through the layers.
    event.stopPropagation();
    const { query } = state.values;
    const from = query.view === view ? query.token : Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const move = (place, by, count) => Math.min(count - 1, Math.max(0, place + by));
    const token = move(Math.floor(from / columns), steps[0], rows) * columns + move(from % columns, steps[1], columns);
    state.set({ query: { view, token } });
  });
  canvas.addEventListener("click", (event) => state.set({ query: { view, token: cellAt(event) } }));
  canvas.addEventListener("pointermove", (event) => {
    if (weights) status.textContent = `Weight here: ${percent(weights[cellAt(event)])}.`;
  });
  canvas.addEventListener("pointerleave", () => (status.textContent = status.dataset.text));

  return {
    node: element("figure", {}, canvas, caption),
    showQuery(token) {
      weights = null;
      const [left, top] = [(token % columns) * cellWidth, Math.floor(token / columns) * cellHeight];
      context.drawImage(photo, 0, 0, canvas.width, canvas.height);
      for (const [colour, width] of [["#000", 7], ["#fff", 3.5]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(left, top, cellWidth, cellHeight);
      }
      caption.textContent = `View ${view}: the selected patch`;
    },
    showWeights(given) {
      weights = given;
      paintShares(heat, columns, rows, toShares(given), colourMap, (share) => 255 * Math.sqrt(share));
      context.globalAlpha = 1;
      context.drawImage(photo, 0, 0, canvas.width, canvas.height);
      context.fillStyle = "rgb(0 0 0 / 0.55)";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.globalAlpha = 0.85;
      context.imageSmoothingEnabled = false;
      context.drawImage(heat, 0, 0, columns * cellWidth, rows * cellHeight);
      context.imageSmoothingEnabled = true;
      context.globalAlpha = 1;
      caption.textContent = `View ${view}: where it attends`;
    },
  };
}

function controls(state, info) {
  const select = (label, options, onChange) =>
    element("select", { change: ({ target }) => onChange(target.value), "aria-label": label }, options.map(([value, text]) => element("option", { value }, text)));
  const block = select("Block", info.blocks.map((name, i) => [i, `block ${name}`]), (value) => state.set({ block: Number(value), linked: false }));
  const heads = Array.from({ length: info.heads }, (_, h) => [h, `head ${h}`]);
  const head = select("Head", [[MEAN, "mean of heads"], ...heads], (value) => state.set({ head: value === MEAN ? MEAN : Number(value) }));
  const link = element("input", { type: "checkbox", change: () => state.set({ linked: link.checked }) });
  state.watch(["block", "head", "linked"], (now) => {
    block.value = now.block;
    head.value = now.head;
    link.checked = now.linked;
  });
  return element("div", { class: "attention-controls" }, block, head, element("label", {}, link, "follow the layer slider"));
}

// A row per block, a column per head, the mean first.
function createGrid(state, info, colourMap, shapes) {
  const columns = [MEAN, ...Array.from({ length: info.heads }, (_, head) => head)];
  const cells = info.blocks.flatMap((name, block) =>
    columns.map((head) => {
      const canvas = element("canvas");
      const label = `Block ${name}, ${head === MEAN ? "mean of heads" : `head ${head}`}`;
      const linked = () => (block === state.values.block ? {} : { linked: false });
      const button = element("button", { type: "button", title: label, "aria-label": label, click: () => state.set({ block, head, ...linked() }) }, canvas);
      return { block, head, canvas, button };
    }),
  );
  const corner = element("span", { class: "grid-label" }, "");
  const top = columns.map((head) => element("span", { class: "grid-label" }, head === MEAN ? "mean" : `${head}`));
  const rows = info.blocks.flatMap((name, block) => [element("span", { class: "grid-label side" }, `${name}`), ...cells.filter((cell) => cell.block === block).map(({ button }) => button)]);
  const grid = element("div", { class: "small-multiples" }, corner, top, rows);
  grid.style.gridTemplateColumns = `auto repeat(${columns.length}, minmax(0, 1fr))`;
  const node = element("div", { style: `--wanted:${columns.length * 66 + 24}px` }, element("p", { class: "grid-title" }, "Rows: blocks; columns: heads"), grid);
  return {
    node,
    paint(sharesOf, queryView) {
      const [gridRows, gridColumns] = info.grids[queryView === 1 ? 1 : 0];
      const [height, width] = shapes[queryView === 1 ? 1 : 0];
      for (const { block, head, canvas } of cells) {
        paintShares(canvas, gridColumns, gridRows, sharesOf(block, head), colourMap);
        canvas.style.aspectRatio = `${width} / ${height}`;
      }
    },
    mark: (block, head) => cells.forEach((cell) => cell.button.setAttribute("aria-pressed", cell.block === block && cell.head === head)),
  };
}
