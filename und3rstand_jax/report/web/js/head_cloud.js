// Both views' points with and without the selected head, on a stage of their own.

import { createCamera } from "report/cameras";
import { createMovement, hasWebGL, IDENTITY, middle, placeOf } from "report/cloud";
import { element, themeColour, whenLookChanges } from "report/dom";
import { TRUTH } from "report/geometry";
import { createPoints } from "report/points";
import { createStage } from "report/stage";
import { imageColours } from "report/tints";

// follow: { layer, watch, cameraOf }: which points to show, when they may have changed, and view 2's camera beside them.
export function createHeadCloud(holder, geometry, values, photos, follow) {
  if (!hasWebGL()) {
    holder.append(element("p", { class: "absent" }, "This browser does not provide WebGL 2, which the 3D view needs."));
    return;
  }
  const stage = createStage(holder, middle(geometry, geometry.hasTruth ? TRUTH : values.layers.length - 1));
  const angles = values.intrinsics.map(([[fx], [, fy]]) => geometry.stride / Math.min(fx, fy));
  const views = [1, 2].map((view) => {
    const points = createPoints(geometry.size(view).count, angles[view - 1]);
    points.paint(imageColours(photos[view - 1], values.shapes[view - 1], geometry.size(view), geometry.stride));
    return { view, points };
  });
  const cameras = photos.map((photo, i) => createCamera(values.shapes[i], values.intrinsics[i], photo));
  cameras[0].moveTo(IDENTITY);
  stage.world.add(...views.map(({ points }) => points.object), ...cameras.map(({ object }) => object));
  stage.whenResized((pixels) => views.forEach(({ points }) => (points.uniforms.pixelsPerUnit.value = pixels)));
  stage.beforeFrame.push(() => (cameras[0].object.visible = stage.distanceToCamera1() > 0.12));
  const move = createMovement(stage, views, cameras);
  whenLookChanges(holder, () => cameras.forEach((camera, i) => camera.paint(themeColour(`view${i + 1}`))));
  let shown = null;
  follow.watch(() => {
    const layer = follow.layer();
    if (layer === shown) return;
    shown = layer;
    const camera = follow.cameraOf(layer);
    views.forEach(({ view, points }) => points.moveTo(geometry.points(view, layer), geometry.ranks(view, layer), view === 1 ? undefined : placeOf(camera)));
    cameras[1].moveTo(camera);
    move();
  });
}
