// Where a token attends in the other view: one block and head large, all blocks and heads as thumbnails.

import { byId, element } from "report/dom";
import { paintShares } from "report/colours";
import { createPanel, createReader, markNote, MEAN, percent, rowAndColumn, toShares } from "report/patches";

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
  const panels = [1, 2].map((view) =>
    createPanel(view, info, photos[view - 1], colourMap, status, {
      token: () => (state.values.query.view === view ? state.values.query.token : null),
      choose: (token) => state.set({ query: { view, token } }),
    }),
  );
  const grid = createGrid(state, info, colourMap, values.shapes);
  // Beside a wide grid there is room for one photo, not for two.
  const views = element("div", { class: `attention-views${info.heads > 7 ? " stacked" : ""}` }, panels.map(({ node }) => node));
  body.append(element("div", { class: "attention" }, element("div", {}, views, controls(state, info), status), grid.node));

  followSlider(state, layers, info);
  state.watch(["block", "head", "query"], ({ block, head, query }) => {
    const weights = weightsOf(query.view, block, head, query.token);
    const place = info.marks?.[query.view - 1].places[query.token];
    panels.forEach((panel, i) => (i + 1 === query.view ? panel.showQuery(query.token) : panel.showWeights(weights, place)));
    const peak = weights.reduce((most, weight) => Math.max(most, weight), 0);
    const who = `Block ${info.blocks[block]}, ${head === MEAN ? `mean of ${info.heads} heads` : `head ${head}`}`;
    const [row, column] = rowAndColumn(info, query);
    status.dataset.text = `${who}: the patch in row ${row}, column ${column} of view ${query.view} puts ${percent(peak)} of its weight on the brightest patch; spread evenly, each patch would get ${percent(1 / weights.length)}.`;
    status.textContent = status.dataset.text;
  });
  state.watch(["query"], ({ query }) => grid.paint((block, head) => toShares(weightsOf(query.view, block, head, query.token)), query.view));
  state.watch(["block", "head"], ({ block, head }) => grid.mark(block, head));
}

function note(info, grids) {
  const sizes = new Set(grids.map(([rows, columns]) => `${rows}×${columns}`));
  const pooled = info.pool === 1 ? "" : `To keep this file small, ${info.pool}×${info.pool} tokens are pooled (of ${[...sizes].join(" and ")}). `;
  const steps = info.levels < 63 ? `Weights are quantised to ${info.levels} levels. ` : "";
  return `${pooled}${steps}Each map is scaled to its own maximum. ${markNote(info)}`;
}

// The block of the current layer, while linked; layers outside the decoder's blocks change nothing.
function followSlider(state, layers, info) {
  state.watch(["layer", "linked"], ({ layer, linked }) => {
    const { stack, block } = layers[layer];
    const index = stack === "decoder" ? info.blocks.indexOf(block) : stack === "head" ? info.blocks.length - 1 : -1;
    if (linked && index >= 0) state.set({ block: index });
  });
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
