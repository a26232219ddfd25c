// A line chart over layers: a symbol per layer by its kind, bands for blocks, the current layer marked, values on hover, click to select.

import { drawing, element, whenLookChanges } from "report/dom";
import { blockRuns, symbol } from "report/layers";

const MARGIN = { top: 12, right: 14, bottom: 44, left: 46 };
const LABELS = 21; // their base line below the axis, clear of a symbol that stands on it

// One of `steps`, else 1, 2, 2.5 or 5 times a power of ten: about `wanted` of them up to `highest`.
function niceStep(highest, wanted, steps = []) {
  const rough = (0.999 * highest) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [...steps, ...[1, 2, 2.5, 5, 10].map((factor) => factor * power)].find((step) => step >= rough);
}

// series: [{ name, colour (a class), dashed, values (null where unknown) }]; options: { label, height, format, ceiling, steps }.
export function createChart(container, state, layers, series, { label, height = 260, format, ceiling = null, steps }) {
  const known = series.flatMap(({ values }) => values).filter((value) => value !== null);
  if (!known.length) {
    container.append(element("p", { class: "absent" }, "Unknown for these views."));
    return;
  }
  const stepY = niceStep(ceiling ?? (Math.max(...known) || 1), height > 220 ? 5 : 4, steps);
  const top = ceiling ?? stepY * Math.ceil(Math.max(...known, stepY) / stepY - 1e-9);
  const tip = element("div", { class: "tip", hidden: true });
  const holder = element("div", { class: "plot" });
  container.append(holder, tip);
  let marks = () => {};

  function draw(width) {
    if (!width) return;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const slot = inner.width / layers.length;
    const x = (index) => MARGIN.left + (index + 0.5) * slot;
    const y = (value) => MARGIN.top + inner.height * (1 - value / top);
    const radius = Math.min(4.2, Math.max(2.2, slot * 0.22));
    const svg = drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    svg.append(...bands(layers, x, slot, inner), ...grid(y, top, stepY, inner, format));
    const current = drawing("line", { class: "current-line", y1: MARGIN.top - 4, y2: MARGIN.top + inner.height });
    svg.append(current, ...series.flatMap((one) => line(one, x, y, layers, radius)));
    const nearest = (event) => {
      const left = event.clientX - svg.getBoundingClientRect().left - MARGIN.left;
      return Math.min(layers.length - 1, Math.max(0, Math.floor(left / slot)));
    };
    svg.addEventListener("pointermove", (event) => showTip(nearest(event), x));
    svg.addEventListener("pointerleave", () => (tip.hidden = true));
    svg.addEventListener("click", (event) => state.set({ layer: nearest(event), playing: false }));
    holder.replaceChildren(svg);
    const paths = [...svg.querySelectorAll("path.mark")];
    marks = (layer) => {
      current.setAttribute("x1", x(layer));
      current.setAttribute("x2", x(layer));
      paths.forEach((path) => path.classList.toggle("current", Number(path.dataset.layer) === layer));
    };
    marks(state.values.layer);
  }

  function showTip(index, x) {
    const rows = series.map(({ name, colour, dashed, values }) =>
      element("div", {}, element("i", { class: `${colour}${dashed ? " dashed" : ""}` }), `${name} `, element("b", {}, values[index] === null ? "unknown" : format(values[index]))),
    );
    tip.replaceChildren(element("strong", {}, layers[index].id), ...rows);
    tip.hidden = false;
    const half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(container.clientWidth - half, Math.max(half, x(index)))}px`;
  }

  whenLookChanges(holder, draw);
  state.watch(["layer"], ({ layer }) => marks(layer));
}

function bands(layers, x, slot, inner) {
  const bottom = MARGIN.top + inner.height;
  const runs = blockRuns(layers);
  const wide = runs.map(({ first, last }) => (last - first + 1) * slot);
  // Labels every so many blocks, so that they do not touch.
  const every = Math.max(1, Math.ceil(20 / Math.max(1, Math.min(...wide))));
  const hasHead = layers.at(-1).kind === "head";
  const clear = (first, last) => !hasHead || x(layers.length - 1) - (x(first) + x(last)) / 2 > 30;
  const drawn = runs.flatMap(({ first, last, label }, i) => [
    i % 2 ? null : drawing("rect", { class: "band", x: x(first) - slot / 2, y: MARGIN.top, width: x(last) - x(first) + slot, height: inner.height }),
    i % every || !clear(first, last) ? null : drawing("text", { class: "tick", x: (x(first) + x(last)) / 2, y: bottom + LABELS, "text-anchor": "middle" }, label),
  ]);
  const head = hasHead ? drawing("text", { class: "tick", x: x(layers.length - 1), y: bottom + LABELS, "text-anchor": "middle" }, "head") : null;
  const title = drawing("text", { class: "axis", x: MARGIN.left + inner.width / 2, y: bottom + LABELS + 18, "text-anchor": "middle" }, layers.some(({ stack }) => stack === "encoder") ? "block (e: encoder)" : "block");
  return [...drawn, head, title].filter(Boolean);
}

function grid(y, top, step, inner, format) {
  const values = Array.from({ length: Math.floor(top / step + 1e-6) + 1 }, (_, i) => i * step);
  return values.flatMap((value) => [
    drawing("line", { class: value ? "grid" : "grid base", x1: MARGIN.left, x2: MARGIN.left + inner.width, y1: y(value), y2: y(value) }),
    drawing("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, format(value, step)),
  ]);
}

// A dashed line has no symbols and goes on from one known value to the next: the lens reads some layers only, of a VGGT one in four.
function line({ colour, dashed, values }, x, y, layers, radius) {
  let pen = "M";
  const path = values.map((value, i) => {
    if (value === null) return (dashed || (pen = "M"), "");
    const part = `${pen}${x(i).toFixed(1)},${y(value).toFixed(1)}`;
    pen = "L";
    return part;
  });
  const symbols = values.map((value, i) =>
    value === null || dashed ? null : symbol(layers[i].kind, x(i), y(value), radius, { class: `mark ${colour}`, "data-layer": i }),
  );
  return [drawing("path", { class: `line ${colour}${dashed ? " dashed" : ""}`, d: path.join("") }), ...symbols.filter(Boolean)];
}
