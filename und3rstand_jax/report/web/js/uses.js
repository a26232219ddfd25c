// What the model uses: every head of the decoders by what it looks at and by what knocking it out costs, and the one that is selected.

import { byId, element } from "report/dom";
import { createHeadGrids } from "report/head_grids";
import { createHeadDetail } from "report/head_detail";
import { createNumbers, createWords } from "report/heads";

export function createUses(state, values, arrays, geometry, colourMaps, photos) {
  const { use } = values;
  byId("uses").hidden = !use;
  if (!use) return;
  byId("uses-lead").textContent = lead(use);
  const numbersOf = createNumbers(use);
  const parts = { use, numbersOf, words: createWords(use, numbersOf), choose: (head) => choose(state, values, head) };
  const { attention, view, block, head } = use.without[0];
  state.set({ use: { attention, view, block, head } });
  const grids = createHeadGrids(state, parts, colourMaps);
  const detail = createHeadDetail(state, parts, values, arrays, geometry, colourMaps, photos);
  byId("uses-body").append(element("div", { class: "uses" }, grids, detail.node, detail.points));
  // Only now does its stage have a size.
  detail.start();
}

function lead(use) {
  const cost = use.measure === "error"
    ? "what knocking it out costs on this pair (the change of the error, averaged over both views, when its output is set to zero)"
    : "what knocking it out costs on this pair (how far the points move, averaged over both views, when its output is set to zero, over their mean distance to view 1’s camera)";
  const mass = use.numbers.cross_attn.mass ? ", by how much of its attention lies on the true place in the other view and the patches around it" : "";
  return `Every attention head of both views’ decoders, coloured by ${cost}${mass}, or by how much of its attention goes to its strongest key (a sink, if all queries share it). Select a head to see its attention, and the points without it.`;
}

// Of cross-attention, the section on it follows.
function choose(state, values, { attention, view, block, head }) {
  const changes = { use: { attention, view, block, head } };
  const index = attention === "cross_attn" ? (values.attention?.blocks.indexOf(block) ?? -1) : -1;
  if (index >= 0) {
    const [rows, columns] = values.attention.grids[view - 1];
    const middle = { view, token: Math.floor(rows / 2) * columns + Math.floor(columns / 2) };
    Object.assign(changes, { block: index, head, linked: false, query: state.values.query.view === view ? state.values.query : middle });
  }
  state.set(changes);
}
