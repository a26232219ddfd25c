// All views' points, cameras and the ground truth on the stage, and the controls below it.

import { createCamera } from "report/cameras";
import { byId, choice, element, themeColour, whenLookChanges } from "report/dom";
import { TRUTH } from "report/geometry";
import { createPoints } from "report/points";
import { createStage } from "report/stage";
import { errorColours, imageColours, readHex, viewColours } from "report/tints";

const MOVE_MILLISECONDS = 550;
const ease = (share) => share * share * (3 - 2 * share);
export const IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];

export function createCloud(state, geometry, values, colourMaps, photos) {
  const centre = middle(geometry, geometry.hasTruth ? TRUTH : values.layers.length - 1);
  const canDraw = hasWebGL();
  document.body.dataset.webgl = canDraw;
  if (!canDraw) {
    byId("stage-hint").hidden = true;
    byId("stage").append(element("p", { class: "absent" }, "This browser does not provide WebGL 2, which the 3D view needs. Everything else on the page works without it."));
    return;
  }
  const stage = createStage(byId("stage"), centre, geometry.views.length > 2 ? 1.3 : 1);
  const pixelAngles = values.intrinsics.map(([[fx], [, fy]]) => geometry.stride / Math.min(fx, fy));
  const views = geometry.views.map((view) => ({ view, points: createPoints(geometry.size(view).count, pixelAngles[view - 1]), colours: imageColours(photos[view - 1], values.shapes[view - 1], geometry.size(view), geometry.stride) }));
  const truth = geometry.hasTruth ? geometry.views.map((view) => truthPoints(geometry, view, pixelAngles[view - 1], values.true_poses?.[view - 2])) : [];
  const marker = createPoints(1, 12 / 500);
  const cameras = photos.map((photo, i) => createCamera(values.shapes[i], values.intrinsics[i], photo));
  const trueCameras = (values.true_poses ?? []).map((pose, i) => {
    const camera = createCamera(values.shapes[i + 1], values.intrinsics[i + 1]);
    camera.moveTo(pose);
    camera.blend(1);
    return camera;
  });
  cameras[0].moveTo(IDENTITY);
  const everyPoints = [...views.map(({ points }) => points), ...truth, marker];
  stage.world.add(...everyPoints.map(({ object }) => object), ...[...cameras, ...trueCameras].map(({ object }) => object));
  stage.whenResized((pixels) => everyPoints.forEach(({ uniforms }) => (uniforms.pixelsPerUnit.value = pixels)));
  const move = createMovement(stage, views, cameras);
  // Seen from camera 1 itself, its image would cover everything else.
  stage.beforeFrame.push(() => (cameras[0].object.visible = stage.distanceToCamera1() > 0.12));

  state.watch(["layer"], ({ layer }) => {
    const poses = [null, ...values.layers[layer].poses];
    views.forEach(({ view, points }, i) => points.moveTo(geometry.points(view, layer), geometry.ranks(view, layer), placeOf(poses[i]?.camera)));
    cameras.forEach((camera, i) => i && camera.moveTo(poses[i].camera));
    move();
  });
  state.watch(["threshold"], ({ threshold }) => views.forEach(({ points }) => (points.uniforms.threshold.value = threshold)));
  state.watch(["shown", "visible"], ({ shown, visible }) => {
    views.forEach(({ points }, i) => (points.object.visible = visible[i] && shown !== "truth"));
    truth.forEach(({ object, scale, uniforms }, i) => {
      object.visible = visible[i] && shown !== "layer";
      // Beside the layer's points, smaller and translucent.
      scale(shown === "both" ? 0.6 : 1);
      uniforms.opacity.value = shown === "both" ? 0.7 : 1;
    });
  });
  const paint = () => {
    const { tint, layer, shown } = state.values;
    const own = geometry.views.map((view) => readHex(themeColour(`view${view}`)));
    views.forEach(({ view, points, colours }, i) => {
      if (tint === "image") points.paint(colours);
      else if (tint === "view") points.paint(viewColours(colours, own[i]));
      else points.paint(errorColours(geometry.errors(view, layer), values.error_range, colourMaps.error));
    });
    // Beside a layer the ground truth has one colour; alone it is coloured like a layer.
    truth.forEach((points, i) => {
      const alone = tint === "view" ? viewColours(views[i].colours, own[i]) : views[i].colours;
      points.paint(shown === "both" ? viewColours(views[i].colours, readHex(themeColour("truth"))) : alone);
    });
    cameras.forEach((camera, i) => camera.paint(themeColour(`view${i + 1}`)));
    trueCameras.forEach((camera) => camera.paint(themeColour("truth")));
    marker.paint(readHex(themeColour("marker")));
  };
  state.watch(["tint", "shown"], paint);
  state.watch(["layer"], () => state.values.tint === "error" && paint());
  whenLookChanges(byId("stage"), paint);
  state.watch(["pointed", "layer", "shown"], ({ pointed, layer, shown }) =>
    pointAt(marker, geometry, pointed, pointed?.endsWith(TRUTH) || shown === TRUTH ? TRUTH : layer),
  );
  state.watch(["threshold", "shown", "visible", "tint", "pointed"], stage.redraw);
  addControls(state, geometry, stage);
}

// Tested on a spare canvas, to tell a missing WebGL from other failures on the stage; its context is released.
export function hasWebGL() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

// A camera's position; undefined without a pose.
export const placeOf = (pose) => pose?.slice(0, 3).map((row) => row[3]);

// Median of the points of view 1.
export function middle(geometry, layer) {
  const points = geometry.points(1, layer);
  return [0, 1, 2].map((axis) => {
    const sorted = points.filter((value, i) => i % 3 === axis && !Number.isNaN(value)).sort();
    return sorted.length ? sorted[sorted.length >> 1] : axis === 2 ? 1 : 0;
  });
}

function truthPoints(geometry, view, pixelAngle, truePose) {
  const points = createPoints(geometry.size(view).count, pixelAngle, 0.7);
  points.moveTo(geometry.points(view, TRUTH), geometry.ranks(view, TRUTH), placeOf(truePose));
  points.uniforms.blend.value = 1;
  return points;
}

function pointAt(marker, geometry, pointed, layer) {
  marker.object.visible = pointed !== null;
  if (pointed === null) return;
  const [view, index] = pointed.split(" ", 2).map(Number);
  const place = geometry.points(view, layer).subarray(3 * index, 3 * index + 3);
  marker.moveTo(place, [Number.isNaN(place[0]) ? -1 : 1]);
  marker.uniforms.blend.value = 1;
}

// Points and cameras glide to the next layer; they jump at first, and where reduced motion is preferred.
export function createMovement(stage, views, cameras) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let start = null;
  let first = true;
  stage.beforeFrame.push((now) => {
    if (start === null) return;
    const share = calm.matches || first ? 1 : Math.min(1, Math.max(0, (now - start) / MOVE_MILLISECONDS));
    views.forEach(({ points }) => (points.uniforms.blend.value = ease(share)));
    cameras.forEach((camera) => camera.blend(ease(share)));
    if (share < 1) return stage.redraw();
    start = null;
    first = false;
  });
  return () => {
    start = performance.now();
    stage.redraw();
  };
}

function addControls(state, geometry, stage) {
  const tints = [["image", "image"], ["view", "view"], ...(geometry.hasErrors ? [["error", "error"]] : [])];
  const tint = choice("Colour", tints, (value) => state.set({ tint: value }));
  const look = choice("Look from", [["side", "the side"], ["camera1", "camera 1"], ["above", "above"]], (value) => stage.lookFrom[value]());
  state.watch(["tint"], (now) => tint.show(now.tint));
  const rows = [tint.row];
  if (geometry.hasTruth) {
    const shown = choice("Show", [["layer", "layer"], ["both", "both"], ["truth", "truth"]], (value) => state.set({ shown: value }));
    state.watch(["shown"], (now) => shown.show(now.shown));
    rows.push(shown.row);
  }
  rows.push(look.row, viewSwitches(state, geometry.views));
  if (geometry.hasConfidence) rows.push(thresholdSlider(state));
  byId("cloud-controls").append(...rows);
}

// Of more views than two, all can be shown or hidden at once.
function viewSwitches(state, views) {
  const boxes = views.map((view, i) => {
    const box = element("input", { type: "checkbox", checked: true, change: () => state.set({ visible: state.values.visible.with(i, box.checked) }) });
    return { box, label: element("label", { class: `key view${view}` }, box, `view ${view}`) };
  });
  state.watch(["visible"], ({ visible }) => boxes.forEach(({ box }, i) => (box.checked = visible[i])));
  const set = (wanted) => state.set({ visible: views.map((_, i) => wanted(i)) });
  const everything = element("button", { type: "button", click: () => set(() => true) }, "all");
  const nothing = element("button", { type: "button", click: () => set(() => false) }, "none");
  return element("div", { class: "switches" }, boxes.map(({ label }) => label), views.length > 2 ? element("span", { class: "all-or-none" }, everything, nothing) : null);
}

function thresholdSlider(state) {
  const output = element("output");
  const slider = element("input", { type: "range", min: 0, max: 95, step: 5, value: 0, input: () => state.set({ threshold: slider.value / 100 }) });
  state.watch(["threshold"], ({ threshold }) => (output.textContent = `${Math.round(100 * threshold)} %`));
  return element("label", { class: "threshold" }, element("span", {}, "Hide least confident"), slider, output);
}
