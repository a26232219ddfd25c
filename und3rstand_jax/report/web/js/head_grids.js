// Blocks × heads of each view's cross- and self-attention, coloured by one number; a grid that is walked with the arrow keys.

import { cssColour, paintBar } from "report/colours";
import { choice, element } from "report/dom";
import { ATTENTIONS, capital, sameHead, signed } from "report/heads";

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -1e3], End: [0, 1e3] };
const mean = (values) => (values.includes(null) ? null : (values[0] + values[1]) / 2);

// What cells can be coloured by: name -> { title, of: head's number or null, range, share of the colour map, format }.
function createScales(use, numbersOf, heads) {
  const largest = (read) => heads.reduce((most, head) => Math.max(most, Math.abs(read(head) ?? 0)), 1e-6);
  const percent = (value) => `${(100 * value).toFixed(0)} %`;
  const plain = (name, title) => {
    const of = (head) => numbersOf(head)[name];
    const top = largest(of);
    return { title, of, range: [0, top], share: (value) => value / top, format: percent };
  };
  const cost = (head) => mean(numbersOf(head).cost);
  const top = largest(cost);
  const root = (value) => Math.sqrt(Math.abs(value) / top);
  const ofCost = use.measure === "error"
    ? { range: [-top, 0, top], share: (value) => 0.5 + 0.5 * Math.sign(value) * root(value), format: (value) => (value ? signed(value, 3) : "0") }
    : { range: [0, top], share: root, format: (value) => value.toFixed(3) };
  return {
    cost: { title: "cost of knocking it out", of: cost, note: "square-root scale", ...ofCost },
    ...(use.numbers.cross_attn.mass ? { mass: { ...plain("mass", "attention on the true place"), note: use.even ? `even attention: ${use.even.map((value, i) => `${value === null ? "unknown" : percent(value)} in view ${i + 1}`).join(", ")}` : null } } : {}),
    sink: plain("sink", "attention on the strongest key"),
  };
}

export function createHeadGrids(state, { use, numbersOf, words, choose }, colourMaps) {
  const groups = Object.keys(ATTENTIONS).flatMap((attention) => [1, 2].map((view) => ({ attention, view })));
  const rowsOf = ({ attention, view }) => use.numbers[attention].sink[view - 1].map((row, block) => row.map((_, head) => ({ attention, view, block, head })));
  const scales = createScales(use, numbersOf, groups.flatMap((group) => rowsOf(group).flat()));
  const reading = element("p", { class: "head-reading" });
  const read = (head) => (reading.textContent = `${words(head)}.`);
  const grids = groups.map((group) => createGrid(group, rowsOf(group), state, use, words, choose, read));
  const colour = choice("Colour by", Object.entries(scales).map(([name, { title }]) => [name, title]), (value) => state.set({ useColour: value }));
  const legend = element("div", { class: "head-legend" });

  state.watch(["useColour"], ({ useColour }) => {
    const { of, share, range, format, note } = scales[useColour];
    colour.show(useColour);
    grids.forEach(({ paint }) => paint((head) => (of(head) === null ? null : cssColour(colourMaps[useColour], share(of(head))))));
    const bar = element("canvas", { class: "bar", "aria-hidden": "true" });
    paintBar(bar, colourMaps[useColour]);
    legend.replaceChildren(bar, element("div", { class: "head-range" }, range.map((value) => element("span", {}, format(value)))), element("p", {}, [note, "dots: heads whose effect on the points can be shown"].filter(Boolean).join("; ")));
  });
  state.watch(["use"], ({ use: now }) => {
    grids.forEach(({ mark }) => mark(now));
    read(now);
  });
  const holder = element("div", { class: "head-grids" }, grids.map(({ node }) => node));
  holder.addEventListener("pointerleave", () => read(state.values.use));
  return element("div", { class: "heads" }, element("div", { class: "controls" }, colour.row), legend, holder, reading);
}

function createGrid({ attention, view }, rows, state, use, words, choose, read) {
  const title = `${capital(ATTENTIONS[attention])} of view ${view}`;
  const cells = rows.map((row) =>
    row.map((head) => {
      const kept = use.without.some((one) => sameHead(one, head));
      const node = element("div", {
        role: "gridcell", tabindex: -1, class: `head-cell${kept ? " kept" : ""}`, "aria-label": words(head) + (kept ? "; the points without it can be shown" : ""),
        click: () => (choose(head), node.focus({ preventScroll: true })), focus: () => (makeStop(node), read(head)), pointerenter: () => read(head),
      });
      return node;
    }),
  );
  const flat = cells.flat();
  // One cell of the grid is in the tab order: the one that had the focus last, or is selected.
  const makeStop = (stop) => flat.forEach((node) => (node.tabIndex = node === stop ? 0 : -1));
  makeStop(flat[0]);

  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const index = flat.indexOf(event.target);
    const [row, column] = [Math.floor(index / rows[0].length), index % rows[0].length];
    if (index < 0 || !(event.key in STEPS || ["Enter", " "].includes(event.key))) return;
    event.preventDefault();
    // Elsewhere the same keys step through the layers and play.
    event.stopPropagation();
    if (!(event.key in STEPS)) return choose(rows[row][column]);
    const move = (place, by, count) => Math.min(count - 1, Math.max(0, place + by));
    cells[move(row, STEPS[event.key][0], rows.length)][move(column, STEPS[event.key][1], rows[0].length)].focus();
  }

  const label = (text, role, side = "") => element("span", { class: `grid-label${side}`, role }, text);
  const top = element("div", { role: "row" }, label("", "columnheader"), rows[0].map((_, head) => label(`${head}`, "columnheader")));
  const body = cells.map((row, block) => element("div", { role: "row" }, label(`${block}`, "rowheader", " side"), row));
  const grid = element("div", { class: "head-grid", role: "grid", "aria-label": `${title}: rows are blocks, columns heads; arrow keys move, Enter selects`, keydown: onKey }, top, body);
  grid.style.gridTemplateColumns = `auto repeat(${rows[0].length}, minmax(0, 1fr))`;
  return {
    node: element("div", { class: "head-group" }, element("h3", { class: `of-view${view}` }, title), grid),
    paint: (colourOf) =>
      cells.forEach((row, block) =>
        row.forEach((node, head) => {
          const colour = colourOf(rows[block][head]);
          node.classList.toggle("unknown", colour === null);
          node.style.background = colour ?? "";
        }),
      ),
    mark: (now) =>
      cells.forEach((row, block) =>
        row.forEach((node, head) => {
          const selected = sameHead(rows[block][head], now);
          node.setAttribute("aria-selected", selected);
          if (selected) makeStop(node);
        }),
      ),
  };
}
