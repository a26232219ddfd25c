// Depth, confidence and error of every view as maps with colour bars. Hovering over a map shows its value and marks the point in 3D.

import { byId, element, fitImage } from "report/dom";
import { paintBar, paintShares } from "report/colours";
import { TRUTH } from "report/geometry";

const TALLEST = 260; // pixels

export const shareOf = (values, low, high) => Float32Array.from(values, (value) => (value - low) / (high - low));
const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

export function createMaps(state, geometry, values, colourMaps) {
  const [near, far] = values.geometry.depth_range;
  const depth = { values: geometry.depth, range: [near, far], shares: (map) => shareOf(map, near, far), read: (value) => value };
  const rows = [{ ...depth, title: "Depth", unit: "z in view 1’s frame", map: colourMaps.depth }];
  if (geometry.hasConfidence)
    rows.push({
      title: "Confidence", unit: "logarithmic", map: colourMaps.confidence,
      values: geometry.confidence, range: geometry.confidenceRange, shares: (map) => shareOf(map, 0, 255), read: geometry.confidenceValue,
    });
  if (geometry.hasErrors) rows.push({
    title: "Error", unit: geometry.hasTruth ? "distance to ground truth" : "distance to the reference", map: colourMaps.error,
    values: geometry.errors, range: [0, values.error_range], shares: (map) => shareOf(map, 0, values.error_range), read: (value) => value,
  });
  if (geometry.hasTruth) rows.push({ ...depth, title: "True depth", unit: "same scale", map: colourMaps.depth, isTruth: true });
  const follow = {
    layer: () => state.values.layer,
    watch: (paint) => state.watch(["layer"], paint),
    point: (pointed) => state.set({ pointed }),
  };
  if (geometry.views.length > 2) byId("maps").append(viewNames(geometry));
  byId("maps").append(...rows.map((row) => mapRow(row, geometry, follow)));
}

// Above the columns, where there are more than two.
function viewNames(geometry) {
  const names = geometry.views.map((view) => element("span", { class: `of-view${view}` }, `View ${view}`));
  return element("div", { class: "map-views", style: columns(geometry), "aria-hidden": "true" }, names);
}

const columns = ({ views }) => `--views:${views.length}`;

// follow: { layer: () => the one to show, watch: (paint) => void, point: (what the pointer is at, or null) => void }.
export function mapRow(row, geometry, follow) {
  const bar = element("canvas", { class: "bar" });
  paintBar(bar, row.map);
  const reading = element("span", { class: "reading" }, row.unit);
  const views = geometry.views.map((view) => mapCanvas(row, view, geometry, reading, follow));
  const scale = element("div", { class: "scale" }, element("span", {}, short(row.range[0])), bar, element("span", {}, short(row.range[1])));
  return element("div", { class: "map-row" }, element("div", { class: "map-head" }, element("b", {}, row.title), reading, scale), element("div", { class: "map-pair", style: columns(geometry) }, views));
}

function mapCanvas(row, view, geometry, reading, follow) {
  const { width, height } = geometry.size(view);
  const canvas = element("canvas", { class: `map of-view${view}`, role: "img", "aria-label": `${row.title}, view ${view}` });
  fitImage(canvas, width, height, TALLEST);
  const shown = () => row.values(view, row.isTruth ? TRUTH : follow.layer());
  const paint = () => paintShares(canvas, width, height, row.shares(shown()), row.map);
  follow.watch(paint);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const cell = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    const index = cell((event.clientY - box.top) / box.height, height) * width + cell((event.clientX - box.left) / box.width, width);
    const value = shown()[index];
    reading.textContent = Number.isNaN(value) ? "no value" : `view ${view}: ${row.read(value).toFixed(3)}`;
    follow.point(`${view} ${index} ${row.isTruth ? TRUTH : "layer"}`);
  });
  canvas.addEventListener("pointerleave", () => {
    reading.textContent = row.unit;
    follow.point(null);
  });
  return canvas;
}
