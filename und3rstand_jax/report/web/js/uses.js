// What the model uses: every head of the decoders by what it looks at and by what its loss costs, and the one that is selected.

import { byId, element } from "report/dom";
import { createHeadGrids } from "report/head_grids";
import { createHeadDetail } from "report/head_detail";

export const ATTENTIONS = { cross_attn: "cross-attention", self_attn: "self-attention" };
export const sameHead = (one, other) => ["attention", "view", "block", "head"].every((name) => one[name] === other[name]);
export const nameOf = ({ attention, view, block, head }) => `block ${block}, head ${head}, ${ATTENTIONS[attention]} of view ${view}`;
export const capital = (text) => text[0].toUpperCase() + text.slice(1);

const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;

// Of a head: { match, elsewhere, sink, cost }; cost of both views, and what is unknown is null.
export function createNumbers(use) {
  return ({ attention, view, block, head }) =>
    Object.fromEntries(Object.entries(use.numbers[attention]).map(([name, values]) => [name, values?.[view - 1][block][head] ?? null]));
}

// A head in a sentence, for labels and readings.
export function createWords(use, numbersOf) {
  return (head) => {
    const { match, elsewhere, sink, cost } = numbersOf(head);
    const loss = cost.map((value) => (value === null ? "unknown" : use.measure === "error" ? signed(value, 4) : value.toFixed(4)));
    return [
      capital(nameOf(head)),
      use.measure === "error" ? `without it the error of view 1 changes by ${loss[0]}, of view 2 by ${loss[1]}` : `without it the points of view 1 move by ${loss[0]}, of view 2 by ${loss[1]}`,
      match === null ? null : `${share(match)} of its attention on the true place${elsewhere === null ? "" : `, ${share(elsewhere)} on other patches’ places`}`,
      `${share(sink)} on its strongest key`,
    ].filter(Boolean).join("; ");
  };
}

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
    ? "what its loss costs on this pair (the change of the error, in the mean of both views, when it is set to zero)"
    : "what its loss costs on this pair (how far the points move, in the mean of both views, when it is set to zero, over their mean distance to view 1’s camera)";
  const match = use.numbers.cross_attn.match ? ", by how much of its attention lies on the true place in the other view and the patches around it" : "";
  return `Every attention head of both views’ decoders, by ${cost}${match}, or by how much lies on the one key that gets most (a sink, where all queries share it). Select a head to see its attention, and the points without it.`;
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
