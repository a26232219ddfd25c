// Correspondences of the current layer as lines between view 1 and a later view.

import { cssColour } from "report/colours";
import { byId, choice, drawing, element, whenLookChanges } from "report/dom";
import { areMany, laterViews } from "report/views";

const NARROW = 600;

export function createMatches(state, values, colourMap, photos) {
  const body = byId("matches-body");
  const judged = values.layers.some(({ matches }) => matches.some(({ offsets }) => offsets));

  function draw() {
    const view = state.values.matched;
    const [[height1, width1], [height2, width2]] = [values.shapes[0], values.shapes[view - 1]];
    const stacked = body.clientWidth < NARROW;
    const gap = Math.round(0.04 * Math.max(width1, width2));
    const shift = stacked ? [0, height1 + gap] : [width1 + gap, 0];
    const [width, height] = stacked ? [Math.max(width1, width2), shift[1] + height2] : [shift[0] + width2, Math.max(height1, height2)];
    const picture = (photo, x, y, w, h) => drawing("image", { href: photo.src, x, y, width: w, height: h, preserveAspectRatio: "none" });
    const { id, matches: byView } = values.layers[state.values.layer];
    const matches = byView[view - 2];
    const dot = Math.max(width1, width2) / 160;
    const lines = matches.pixels1.map(([x1, y1], i) => {
      const [x2, y2] = matches.pixels2[i];
      const look = looks(matches, view, i, x1 / width1, values.match_threshold, colourMap);
      const ends = { x1: x1 + 0.5, y1: y1 + 0.5, x2: x2 + 0.5 + shift[0], y2: y2 + 0.5 + shift[1] };
      const dots = [[ends.x1, ends.y1], [ends.x2, ends.y2]].map(([cx, cy]) => drawing("circle", { cx, cy, r: dot }));
      return drawing("g", { class: `match ${look.kind}`, style: look.colour && `--own:${look.colour}` }, drawing("line", ends), dots, drawing("title", {}, look.text));
    });
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "matches", role: "img", "aria-label": "Correspondences" });
    svg.append(picture(photos[0], 0, 0, width1, height1), picture(photos[view - 1], ...shift, width2, height2), ...lines);
    body.replaceChildren(svg);
    byId("matches-lead").textContent = summary(id, matches, areMany(values) ? `views 1 and ${view}` : "both views", values.match_threshold);
  }

  whenLookChanges(body, draw);
  state.watch(["layer", "matched"], draw);
  if (areMany(values)) body.before(pairChoice(state, values));
  if (judged) byId("matches-legend").append(...legend(values.match_threshold, areMany(values) ? "the other view" : "view 2"));
}

function pairChoice(state, values) {
  const views = choice("View 1 with", laterViews(values).map((view) => [view, `view ${view}`]), (view) => state.set({ matched: view }));
  state.watch(["matched"], ({ matched }) => views.show(matched));
  return element("div", { class: "controls" }, views.row);
}

function legend(threshold, there) {
  const kinds = [["right", `within ${threshold} pixels of the true place`], ["wrong", "farther off"], ["unknown", `true place not visible in ${there}`]];
  return kinds.map(([kind, text]) => element("span", { class: `key ${kind}` }, text));
}

function looks({ offsets }, view, index, across, threshold, colourMap) {
  if (!offsets) return { kind: "placed", colour: cssColour(colourMap, across), text: "a mutual nearest neighbour" };
  const offset = offsets[index];
  if (offset === null) return { kind: "unknown", text: `its true place is not visible in view ${view}` };
  return { kind: offset <= threshold ? "right" : "wrong", text: `${offset.toFixed(1)} pixels from its true place` };
}

function summary(id, { accuracy, ...matches }, views, threshold) {
  const shown = matches.pixels1.length < matches.count ? `, ${matches.pixels1.length} of them drawn` : "";
  const found = `Mutual nearest neighbours among the points of ${views} after ${id}: ${matches.count}${shown}.`;
  if (accuracy === null) return found;
  return `${found} Of ${matches.known} with a known true place, ${(100 * accuracy).toFixed(1)} % are within ${threshold} pixels of it; the median offset is ${matches.median_offset.toFixed(1)} pixels.`;
}
