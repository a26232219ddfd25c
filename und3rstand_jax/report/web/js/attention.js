// Where a token attends in the views that it reads: one block and head large, all blocks and heads as thumbnails.

import { byId, choice, element } from "report/dom";
import { paintShares } from "report/colours";
import { brightest, byKeyView, createPanel, createReader, markNote, MEAN, perToken, rowAndColumn, sumOf, toShares } from "report/patches";
import { areMany, viewNumbers } from "report/views";

export function createAttention(state, layers, values, arrays, colourMap, photos) {
  const info = values.attention;
  const body = byId("attention-body");
  if (!info) {
    body.append(element("p", { class: "absent" }, "This report has no cross-attention."));
    return;
  }
  byId("attention-title").textContent = `${info.words[0].toUpperCase()}${info.words.slice(1)}`;
  const many = areMany(values);
  // Whether views compete for a patch's attention: then how much each gets is told.
  const several = info.keys.some((keys) => keys.length > 1);
  const own = info.keys.some((keys, i) => keys.includes(i + 1));
  if (several)
    byId("attention-lead").textContent =
      `Click a patch in any view, or select it with the arrow keys: every ${own ? "" : "other "}view shows where its token attends, and how much of its attention that view gets.`;
  const weightsOf = createReader(info, arrays);
  byId("attention-note").textContent = note(info, values.grids);
  const status = element("p", { class: "status", role: "status" });
  const panels = viewNumbers(values).map((view) =>
    createPanel(view, info, photos[view - 1], colourMap, status, {
      token: () => (state.values.query.view === view ? state.values.query.token : null),
      choose: (token) => state.set({ query: { view, token } }),
    }),
  );
  const grid = createGrid(state, info, colourMap, values.shapes);
  // Beside a wide grid there is room for one photo, not for two.
  const views = element("div", { class: `attention-views${info.heads > 7 && !many ? " stacked" : ""}`, style: `--views:${Math.min(4, panels.length)}` }, panels.map(({ node }) => node));
  body.append(element("div", { class: `attention${many ? " many" : ""}` }, element("div", {}, views, controls(state, info, several), status), grid.node));

  followSlider(state, layers, info);
  state.watch(["block", "head", "query"], ({ block, head, query }) => {
    const weights = weightsOf(query.view, block, head, query.token);
    const { peak, clause } = brightest(info, query.view, weights);
    showOn(panels, info, query, weights, peak, several);
    const who = `Block ${info.blocks[block]}, ${head === MEAN ? `mean of ${info.heads} heads` : `head ${head}`}`;
    const [row, column] = rowAndColumn(info, query);
    status.dataset.text = `${who}: the patch in row ${row}, column ${column} of view ${query.view} ${clause}`;
    status.textContent = status.dataset.text;
  });
  state.watch(["query", "target"], ({ query }) => {
    const target = targetOf(state, info);
    grid.paint((block, head) => {
      const weights = weightsOf(query.view, block, head, query.token);
      const part = byKeyView(info, query.view, weights).find(({ view }) => view === target).weights;
      return toShares(perToken(info, [target], part), brightest(info, query.view, weights).peak);
    }, target);
  });
  state.watch(["block", "head"], ({ block, head }) => grid.mark(block, head));
}

// All maps of one query have one scale, so that views can be compared.
function showOn(panels, info, query, weights, peak, several) {
  const parts = new Map(byKeyView(info, query.view, weights).map((part) => [part.view, part.weights]));
  panels.forEach((panel, i) => {
    const view = i + 1;
    const token = view === query.view ? query.token : null;
    if (!parts.has(view)) return panel.showQuery(query.token);
    const place = info.marks?.[query.view - 1].places[view]?.[query.token];
    panel.showWeights(parts.get(view), place, { peak, share: several ? sumOf(parts.get(view)) : null, token });
  });
}

// The view in the thumbnails: the one asked for, or the first that the selected patch attends to.
function targetOf(state, info) {
  const keys = info.keys[state.values.query.view - 1];
  return keys.includes(state.values.target) ? state.values.target : keys[0];
}

function targetChoice(state, info) {
  const targets = choice("Small maps show", info.grids.map((_, i) => [i + 1, `view ${i + 1}`]), (view) => state.set({ target: view }));
  state.watch(["query", "target"], ({ query }) => {
    targets.show(targetOf(state, info));
    targets.row.querySelectorAll("button").forEach((button, i) => (button.hidden = !info.keys[query.view - 1].includes(i + 1)));
  });
  return targets.row;
}

function note(info, grids) {
  const sizes = new Set(grids.map(([rows, columns]) => `${rows}×${columns}`));
  const pooled = info.pool === 1 ? "" : `To keep this file small, ${info.pool}×${info.pool} tokens are pooled (of ${[...sizes].join(" and ")}): weights are sums, colours are weights per token. `;
  const steps = info.levels < 63 ? `Weights are quantised to ${info.levels} levels. ` : "";
  const special = info.special ? `What is missing from 100 % goes to the ${info.special} special tokens of each view. ` : "";
  const scaled = info.keys.some((keys) => keys.length > 1) ? "The maps of one patch are scaled to their common maximum." : "Each map is scaled to its own maximum.";
  return `${pooled}${steps}${special}${scaled} ${markNote(info)}`;
}

// The block of the current layer, while linked; layers outside of the blocks that have this attention change nothing.
function followSlider(state, layers, info) {
  state.watch(["layer", "linked"], ({ layer, linked }) => {
    const { stack, block } = layers[layer];
    const index = info.stacks.includes(stack) ? info.blocks.indexOf(block) : stack === "head" ? info.blocks.length - 1 : -1;
    if (linked && index >= 0) state.set({ block: index });
  });
}

function controls(state, info, several) {
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
  return element("div", { class: "attention-controls" }, block, head, element("label", {}, link, "follow the layer slider"), several ? targetChoice(state, info) : null);
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
    paint(sharesOf, view) {
      const [gridRows, gridColumns] = info.grids[view - 1];
      const [height, width] = shapes[view - 1];
      for (const { block, head, canvas } of cells) {
        paintShares(canvas, gridColumns, gridRows, sharesOf(block, head), colourMap);
        canvas.style.aspectRatio = `${width} / ${height}`;
      }
    },
    mark: (block, head) => cells.forEach((cell) => cell.button.setAttribute("aria-pressed", cell.block === block && cell.head === head)),
  };
}
