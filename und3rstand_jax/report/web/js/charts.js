// The three charts over layers: error, accuracy of the matches, angles of the pose.

import { createChart } from "report/chart";
import { byId, drawing, element } from "report/dom";
import { kindName, kindsOf, symbol } from "report/layers";
import { areMany, laterViews, viewNumbers } from "report/views";

function decimals(value, step) {
  const digits = step === undefined ? 3 : Math.max(0, Math.ceil(-Math.log10(step) + 1e-9) + (/^[^1-9]*25/.test(String(step)) ? 1 : 0));
  return value.toFixed(digits);
}

const percent = (value) => `${(100 * value).toFixed(0)} %`;
const degrees = (value, step) => `${step === undefined ? value.toFixed(1) : decimals(value, step)}°`;
const ANGLE_STEPS = [1, 2, 5, 10, 15, 30, 45, 60];

export function createCharts(state, layers, values, hasErrors) {
  byId("errors").hidden = !hasErrors;
  if (!hasErrors) return;
  const pick = (read) => values.layers.map((layer) => read(layer) ?? null);
  const numbers = viewNumbers(values);
  const reference = values.true_poses ? "the ground truth" : values.reference;
  byId("errors-lead").textContent =
    `Mean distance between a layer’s points and those of ${reference}, ${areMany(values) ? "the pointmaps of all views divided by their" : "each pair of pointmaps divided by its"} mean distance to view 1’s camera. ` +
    "Click a point to go to its layer.";
  const views = numbers.map((view) => ({ name: `view ${view}`, colour: `view${view}`, values: pick((layer) => layer.errors[view - 1]) }));
  const known = values.lens ?? {};
  const hasLens = layers.some(({ id }) => id in known);
  const lens = numbers.map((view) => ({ name: `view ${view}, lens`, colour: `view${view}`, dashed: true, values: layers.map(({ id }) => known[id]?.[view - 1] ?? null) }));
  byId("lens").hidden = !hasLens;
  if (hasLens) createChart(byId("lens-chart"), state, layers, [...lens, ...views], { label: "Error by layer, of the lens and of the probes, in every view", height: 240, format: decimals });
  createChart(byId("error-chart"), state, layers, views, { label: areMany(values) ? "Error by layer, of every view" : "Error by layer, of view 1 and of view 2", height: 300, format: decimals });

  byId("accuracy-lead").textContent =
    `Of the mutual nearest neighbours ${areMany(values) ? "of view 1 and each later view, together, whose true place is visible there" : "whose true place is visible in view 2"}, the share within ${values.match_threshold} pixels of it.`;
  const accuracy = [{ name: "correct", colour: "plain", values: pick((layer) => layer.accuracy) }];
  createChart(byId("accuracy-chart"), state, layers, accuracy, { label: "Share of correct matches by layer", height: 210, format: percent, ceiling: 1 });

  if (areMany(values)) byId("lens-of").textContent = "One set of views";
  if (areMany(values)) byId("angles-title").textContent = `Poses of views 2 to ${numbers.length}`;
  byId("angles-lead").replaceChildren(
    `${areMany(values) ? "Median over these views of the angle" : "Angle"} to ${values.true_poses ? "the true camera" : `the camera of ${reference}`}: `,
    element("span", { class: "key rotation" }, "rotation"), ", ",
    element("span", { class: "key translation" }, "direction of translation"), ".",
  );
  const angles = ["rotation", "translation"].map((name) => ({ name, colour: name, values: pick((layer) => layer[name]) }));
  createChart(byId("angles-chart"), state, layers, angles, { label: `Pose error of view${areMany(values) ? "s 2 to " : " "}${laterViews(values).at(-1)} by layer: rotation and direction of translation`, height: 210, format: degrees, steps: ANGLE_STEPS });
  byId("legend").append(...legend(layers, numbers));
  byId("lens-legend").append(...["", " dashed"].flatMap((kind) => numbers.map((view) => element("span", { class: `key${kind} view${view}` }, `${kind ? "lens" : "probes"}, view ${view}`))));
}

function legend(layers, numbers) {
  const views = numbers.map((view) => element("span", { class: `key view${view}` }, `view ${view}`));
  const kinds = kindsOf(layers).map((kind) =>
    element("span", {}, drawing("svg", { viewBox: "-2 -2 4 4", width: 14, height: 14 }, symbol(kind, 0, 0, 1.2)), kind === "head" ? " the model’s own head" : ` after ${kindName(kind)}`),
  );
  return [...views, ...kinds];
}
