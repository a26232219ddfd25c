// The relative pose: cameras and points seen from above, and a table of the angles.

import { imageEdges } from "report/cameras";
import { byId, element, themeColour, whenLookChanges } from "report/dom";
import { TRUTH } from "report/geometry";

export function createPose(state, layers, values, geometry) {
  const canvas = element("canvas", { role: "img", "aria-label": "Cameras from above" });
  const keys = [element("span", { class: "key view1" }, "camera and points of view 1"), element("span", { class: "key view2" }, "of view 2, by this layer")];
  if (values.true_pose) keys.push(element("span", { class: "key truth" }, "true camera of view 2"));
  keys.push(element("span", { class: "key faint" }, "camera 2 by all other layers"));
  const figure = element("figure", {}, canvas, element("figcaption", { class: "legend" }, keys));
  const { holder, showCurrent } = table(state, layers, values);
  byId("pose-body").append(figure, holder);
  state.watch(["layer"], showCurrent);
  byId("pose-note").textContent = values.true_pose ? "Angles are measured against the true camera." : `Without ground truth, angles are measured against the camera of ${values.reference}.`;
  const extent = extentFromAbove(geometry, geometry.hasTruth ? TRUTH : layers.length - 1);
  const draw = () => drawPlan(canvas, state.values.layer, values, geometry, extent);
  whenLookChanges(figure, draw);
  state.watch(["layer"], draw);
}

// [left, right, near, far] around the reference's points and the cameras at the origin.
function extentFromAbove(geometry, layer) {
  const middle = (values) => {
    const sorted = values.filter((value) => !Number.isNaN(value)).sort();
    return [sorted[Math.floor(0.02 * sorted.length)] ?? -1, sorted[Math.floor(0.98 * sorted.length)] ?? 1];
  };
  const both = [1, 2].map((view) => geometry.points(view, layer));
  const along = (axis) => middle(Float32Array.from(both.flatMap((points) => [...points.filter((_, i) => i % 3 === axis)])));
  const [[left, right], [, far]] = [along(0), along(2)];
  return [Math.min(left, -0.4) - 0.15, Math.max(right, 0.4) + 0.15, -0.45, far + 0.15];
}

function drawPlan(canvas, layer, values, geometry, [left, right, near, far]) {
  const width = Math.min(520, canvas.parentElement.clientWidth);
  if (!width) return;
  const ratio = Math.min(2, devicePixelRatio);
  const unit = Math.min(width / (right - left), 460 / (far - near));
  const height = unit * (far - near);
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const middle = (width - unit * (right - left)) / 2;
  const place = (x, z) => [middle + (x - left) * unit, height - (z - near) * unit];
  for (const view of [1, 2]) scatter(context, geometry.points(view, layer), place, themeColour(`view${view}`));
  const wedge = (view, pose, colour, size = 0.2, filled = false) => {
    if (pose) drawCamera(context, pose, imageEdges(values.shapes[view - 1], values.intrinsics[view - 1], size), place, colour, size, filled);
  };
  values.layers.forEach(({ pose }, i) => i !== layer && wedge(2, pose.camera, themeColour("faint"), 0.09));
  wedge(2, values.true_pose, themeColour("truth"), 0.26);
  wedge(1, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], themeColour("view1"), 0.2, true);
  wedge(2, values.layers[layer].pose.camera, themeColour("view2"), 0.2, true);
}

function scatter(context, points, place, colour) {
  context.fillStyle = colour;
  context.globalAlpha = 0.35;
  const every = 3 * Math.max(1, Math.round(points.length / 3 / 4000));
  for (let i = 0; i < points.length; i += every) {
    const [x, y] = place(points[i], points[i + 2]);
    context.fillRect(x - 0.6, y - 0.6, 1.2, 1.2);
  }
  context.globalAlpha = 1;
}

function drawCamera(context, pose, { left, right }, place, colour, size, filled) {
  const corner = (x) => place(...[0, 2].map((axis) => pose[axis][0] * x + pose[axis][2] * size + pose[axis][3]));
  context.beginPath();
  context.moveTo(...place(pose[0][3], pose[2][3]));
  context.lineTo(...corner(left));
  context.lineTo(...corner(right));
  context.closePath();
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = size > 0.1 ? 2 : 1;
  if (filled) {
    context.globalAlpha = 0.25;
    context.fill();
    context.globalAlpha = 1;
  }
  context.stroke();
}

function table(state, layers, values) {
  const angle = (value) => (value === null ? "–" : `${value.toFixed(2)}°`);
  const rows = layers.map(({ id }, index) => {
    const { rotation, translation } = values.layers[index].pose;
    // A button for keyboard users; its click bubbles to the row.
    const cells = [element("button", { type: "button" }, id), angle(rotation), angle(translation)].map((content) => element("td", {}, content));
    return element("tr", { click: () => state.set({ layer: index, playing: false }) }, cells);
  });
  const head = element("thead", {}, element("tr", {}, ["layer", "rotation", "translation"].map((text) => element("th", { scope: "col" }, text))));
  const holder = element("div", { class: "table", tabindex: 0 }, element("table", {}, head, element("tbody", {}, rows)));
  const showCurrent = ({ layer }) => {
    rows.forEach((row, i) => {
      row.classList.toggle("current", i === layer);
      row.querySelector("button").setAttribute("aria-pressed", i === layer);
    });
    // Scrolls only the table's own box; the page must not jump.
    holder.scrollTop = rows[layer].offsetTop - holder.clientHeight / 2;
  };
  return { holder, showCurrent };
}
