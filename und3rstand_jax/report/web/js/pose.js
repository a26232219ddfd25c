// The relative poses: cameras and points seen from above, and a table of the angles.

import { imageEdges } from "report/cameras";
import { byId, element, themeColour, whenLookChanges } from "report/dom";
import { TRUTH } from "report/geometry";
import { areMany, laterViews } from "report/views";

const IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];

export function createPose(state, layers, values, geometry) {
  const canvas = element("canvas", { role: "img", "aria-label": "Cameras from above" });
  const many = areMany(values);
  const later = laterViews(values).map((view) => element("span", { class: `key view${view}` }, many ? `of view ${view}` : "of view 2, by this layer"));
  const keys = [element("span", { class: "key view1" }, "camera and points of view 1"), ...later];
  if (values.true_poses) keys.push(element("span", { class: "key truth" }, many ? "true cameras" : "true camera of view 2"));
  if (values.own_poses) keys.push(element("span", { class: "key camera-head" }, "by the model’s camera head"));
  keys.push(element("span", { class: "key faint" }, many ? "cameras by all other layers" : "camera 2 by all other layers"));
  if (many) byId("pose-lead").textContent = "Cameras of all later views in the camera frame of view 1, each by PnP on the layer’s points of that view.";
  const figure = element("figure", {}, canvas, element("figcaption", { class: "legend" }, keys));
  const { holder, showCurrent } = table(state, layers, values);
  const angles = many ? element("div", {}, element("p", { class: "sub" }, "Angles of rotation / direction of translation"), holder) : holder;
  byId("pose-body").append(figure, angles);
  state.watch(["layer"], showCurrent);
  byId("pose-note").textContent = measuredAgainst(values);
  const extent = extentFromAbove(geometry, geometry.hasTruth ? TRUTH : layers.length - 1);
  const draw = () => drawPlan(canvas, state.values.layer, values, geometry, extent);
  whenLookChanges(figure, draw);
  state.watch(["layer"], draw);
}

// What the angles are measured against, or why there are none.
function measuredAgainst(values) {
  const cameras = areMany(values) ? "cameras" : "camera";
  if (values.true_poses) return `Angles are measured against the true ${cameras}.`;
  if (!values.focal_known) return `No focal length fits view 1 in ${values.reference}, and PnP needs one: the layers’ poses and all angles are unknown (–).`;
  return `Without ground truth, angles are measured against the ${cameras} of ${values.reference}.`;
}

// [left, right, near, far] around the reference's points and the cameras at the origin.
function extentFromAbove(geometry, layer) {
  const middle = (values) => {
    const sorted = values.filter((value) => !Number.isNaN(value)).sort();
    return [sorted[Math.floor(0.02 * sorted.length)] ?? -1, sorted[Math.floor(0.98 * sorted.length)] ?? 1];
  };
  const every = geometry.views.map((view) => geometry.points(view, layer));
  const along = (axis) => middle(Float32Array.from(every.flatMap((points) => [...points.filter((_, i) => i % 3 === axis)])));
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
  for (const view of geometry.views) scatter(context, geometry.points(view, layer), place, themeColour(`view${view}`));
  const wedge = (view, pose, colour, size = 0.2, filled = false) => {
    if (pose) drawCamera(context, pose, imageEdges(values.shapes[view - 1], values.intrinsics[view - 1], size), place, colour, size, filled);
  };
  const later = laterViews(values);
  values.layers.forEach(({ poses }, i) => i !== layer && later.forEach((view, at) => wedge(view, poses[at].camera, themeColour("faint"), 0.09)));
  later.forEach((view, at) => wedge(view, values.true_poses?.[at], themeColour("truth"), 0.26));
  later.forEach((view, at) => wedge(view, values.own_poses?.poses[at].camera, themeColour("marker"), 0.16));
  wedge(1, IDENTITY, themeColour("view1"), 0.2, true);
  later.forEach((view, at) => wedge(view, values.layers[layer].poses[at].camera, themeColour(`view${view}`), 0.2, true));
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
  const many = areMany(values);
  const both = ({ rotation, translation }) => `${angle(rotation)} / ${angle(translation)}`;
  const anglesOf = (found) => (many ? [both(found), ...found.poses.map(both)] : [angle(found.rotation), angle(found.translation)]);
  const rows = layers.map(({ id }, index) => {
    const angles = anglesOf(values.layers[index]);
    // A button for keyboard users; its click bubbles to the row.
    const cells = [element("button", { type: "button" }, id), ...angles].map((content) => element("td", {}, content));
    return element("tr", { click: () => state.set({ layer: index, playing: false }) }, cells);
  });
  const titles = many ? ["layer", "median", ...laterViews(values).map((view) => `view ${view}`)] : ["layer", "rotation", "translation"];
  const head = element("thead", {}, element("tr", {}, titles.map((text) => element("th", { scope: "col" }, text))));
  const tables = [head, element("tbody", {}, rows)];
  if (values.own_poses) {
    const cells = ["camera head", ...anglesOf(values.own_poses)].map((content) => element("td", {}, content));
    tables.push(element("tfoot", {}, element("tr", {}, cells)));
  }
  const holder = element("div", { class: "table", tabindex: 0 }, element("table", {}, tables));
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
