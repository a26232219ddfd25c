// The selected head: its numbers, where a patch attends by it, and the points without it where the page has them.

import { choice, element } from "report/dom";
import { createHeadCloud } from "report/head_cloud";
import { mapRow, shareOf } from "report/maps";
import { brightest, createPanel, createReader, markNote, percent, rowAndColumn } from "report/patches";
import { capital, nameOf, sameHead } from "report/heads";

export function createHeadDetail(state, parts, values, arrays, geometry, colourMaps, photos) {
  const { use, numbersOf, choose } = parts;
  const title = element("h3", { class: "head-name" });
  const list = element("dl", { class: "head-numbers" });
  state.watch(["use"], ({ use: now }) => {
    title.textContent = capital(nameOf(now));
    list.replaceChildren(...numbers(use, numbersOf(now)).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  });
  const { node, start } = without(state, use, values, geometry, colourMaps, photos);
  const looks = attention(state, values, arrays, colourMaps, photos);
  return { node: element("div", { class: "head-detail" }, costliest(state, use, choose), title, list, looks), points: node, start };
}

// Buttons of the heads whose points are there, the costliest first.
function costliest(state, use, choose) {
  const short = ({ attention, view, block, head }) => `${block}.${head} ${attention === "cross_attn" ? "cross" : "self"}, view ${view}`;
  const buttons = use.without.map((head) => element("button", { type: "button", title: capital(nameOf(head)), "aria-label": capital(nameOf(head)), click: () => choose(head) }, short(head)));
  state.watch(["use"], ({ use: now }) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", sameHead(use.without[i], now))));
  return element("div", { class: "costliest" }, element("p", { class: "sub" }, "The heads that cost most to knock out, as block.head:"), element("div", { class: "chips" }, buttons));
}

function numbers(use, { mass, elsewhere, sink, cost }) {
  const rows = [];
  if (mass !== null) rows.push(["On the true place", `${percent(mass)}${elsewhere === null ? "" : ` (${percent(elsewhere)} on other patches’ true places)`}`]);
  rows.push(["On its strongest key", percent(sink)]);
  cost.forEach((change, i) => {
    const value = change === null ? "unknown" : use.unedited ? `${use.unedited[i].toFixed(4)} → ${(use.unedited[i] + change).toFixed(4)} without it` : `${change.toFixed(4)} without it`;
    rows.push([`${use.unedited ? "Error" : "Points moved"}, view ${i + 1}`, value]);
  });
  return rows;
}

// The asking view's photo, on which a patch is selected, and the one in which it attends. A patch stays selected from head to head.
function attention(state, values, arrays, colourMaps, photos) {
  const infos = { cross_attn: values.attention, self_attn: values.use.attention };
  const readers = Object.fromEntries(Object.entries(infos).filter(([, info]) => info).map(([name, info]) => [name, createReader(info, arrays, name === "self_attn" ? "self_" : "")]));
  const holder = element("div", { class: "attention-views" });
  const status = element("p", { class: "status", role: "status" });
  const asked = { 1: [0.5, 0.5], 2: [0.5, 0.5] }; // as fractions of the image: both attentions may be pooled differently
  let shown = null;

  function show() {
    const { use } = state.values;
    const info = infos[use.attention];
    if (!info) return (shown = null), holder.replaceChildren();
    const key = `${use.attention} ${use.view}`;
    if (shown?.key !== key) shown = build(use, info, key);
    const [rows, columns] = info.grids[use.view - 1];
    const [spanRows, spanColumns] = info.spans[use.view - 1];
    const [down, across] = asked[use.view];
    const token = Math.min(rows - 1, Math.floor(down * spanRows)) * columns + Math.min(columns - 1, Math.floor(across * spanColumns));
    shown.token = token;
    const weights = readers[use.attention](use.view, info.blocks.indexOf(use.block), use.head, token);
    shown.here.showQuery(token);
    const { peak, clause } = brightest(info, use.view, weights);
    shown.there.showWeights(weights, use.attention === "cross_attn" ? info.marks?.[use.view - 1].places[3 - use.view][token] : -1, { peak });
    const [row, column] = rowAndColumn(info, { view: use.view, token });
    status.dataset.text = `In this head, the patch in row ${row}, column ${column} ${clause}`;
    status.textContent = status.dataset.text;
  }
  function build(use, info, key) {
    const other = use.attention === "cross_attn" ? 3 - use.view : use.view;
    const pick = (token) => {
      const [, columns] = info.grids[use.view - 1];
      const [spanRows, spanColumns] = info.spans[use.view - 1];
      asked[use.view] = [(Math.floor(token / columns) + 0.5) / spanRows, ((token % columns) + 0.5) / spanColumns].map((place) => Math.min(place, 1));
      show();
    };
    const here = createPanel(use.view, info, photos[use.view - 1], colourMaps.attention, status, { token: () => shown.token, choose: pick });
    const there = createPanel(other, info, photos[other - 1], colourMaps.attention, status);
    holder.replaceChildren(here.node, there.node);
    return { key, here, there, token: 0 };
  }
  state.watch(["use"], show);
  const note = values.attention ? markNote(values.attention) : "";
  return element("div", {}, holder, status, note ? element("p", { class: "hint" }, note) : null);
}

// Cloud, depth and error with all heads and without the selected one, in place of one another, which shows best what changes.
function without(state, use, values, geometry, colourMaps, photos) {
  const last = values.layers.length - 1;
  const kept = () => use.without.findIndex((head) => sameHead(head, state.values.use));
  const layer = () => (state.values.without && kept() >= 0 ? values.layers.length + kept() : last);
  const follow = { layer, watch: (paint) => state.watch(["use", "without"], paint), point: () => {} };
  const [near, far] = values.geometry.depth_range;
  const means = use.without.flatMap((_, i) => [1, 2].map((view) => meanOf(geometry.errors(view, values.layers.length + i))));
  const range = Math.max(1e-3, 2 * Math.max(...means));
  const rows = [
    { title: "Depth", unit: "z in view 1’s frame", map: colourMaps.depth, values: geometry.depth, range: [near, far], shares: (map) => shareOf(map, near, far), read: (value) => value },
    { title: geometry.hasTruth ? "Error" : "Distance moved", unit: geometry.hasTruth ? "distance to ground truth" : "from the points with all heads", map: colourMaps.error, values: geometry.errors, range: [0, range], shares: (map) => shareOf(map, 0, range), read: (value) => value },
  ];
  const toggle = choice("Points", [[true, "without this head"], [false, "with all heads"]], (value) => state.set({ without: value }));
  state.watch(["without"], (now) => toggle.show(now.without));
  const stage = element("div", { class: "stage small" });
  const cloud = element("div", { class: "cloud" }, stage, element("div", { class: "controls" }, toggle.row));
  const shown = element("div", { class: "geometry" }, cloud, element("div", { class: "maps" }, rows.map((row) => mapRow(row, geometry, follow))));
  const absent = element("p", { class: "absent" });
  const cameraOf = (index) => (index > last ? use.without[index - values.layers.length].camera : values.layers[last].poses[0].camera);
  state.watch(["use"], ({ use: now }) => {
    shown.hidden = kept() < 0;
    absent.hidden = kept() >= 0;
    absent.textContent = `This file has the points without each of the ${use.without.length} heads that cost most to knock out; for this one, run python -m und3rstand_jax edit … --knock-out decoder.${now.block}.${now.attention}.heads:${now.head}@${now.view}`;
  });
  const start = () => createHeadCloud(stage, geometry, values, photos, { ...follow, cameraOf });
  return { node: element("div", { class: "head-points" }, element("h3", {}, "The points without it"), shown, absent), start };
}

function meanOf(values) {
  const finite = values.filter((value) => !Number.isNaN(value));
  return finite.length ? finite.reduce((sum, value) => sum + value, 0) / finite.length : 0;
}
