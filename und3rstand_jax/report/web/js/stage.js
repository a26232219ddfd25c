// The 3D stage: camera and orbit controls; draws only when something changed.

import { Group, OrbitControls, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three";

import { element, whenLookChanges } from "report/dom";

const FIELD_OF_VIEW = 42;

// centre: what to look at first, in view 1's frame; from how many times the usual distance.
export function createStage(holder, centre, distance = 1) {
  const renderer = new WebGLRenderer({ antialias: true, alpha: true });
  const canvas = renderer.domElement;
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", "Point clouds of the views");
  holder.append(canvas);
  // The renderer asks for the context to be restored; the browser decides.
  const lost = element("p", { class: "absent", hidden: true }, "The browser lost the WebGL context of the 3D view. Reload the page if it does not recover.");
  holder.append(lost);
  canvas.addEventListener("webglcontextlost", () => (lost.hidden = false));
  canvas.addEventListener("webglcontextrestored", () => {
    lost.hidden = true;
    redraw();
  });
  const scene = new Scene();
  // From x right, y down, z forward to the screen's x right, y up, z backward.
  const world = new Group();
  world.scale.set(1, -1, -1);
  scene.add(world);
  const camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
  // The wheel scrolls the page unless the stage has the focus.
  canvas.addEventListener("wheel", (event) => document.activeElement !== canvas && event.stopImmediatePropagation(), { capture: true, passive: true });
  const controls = new OrbitControls(camera, canvas);
  controls.enableDamping = true;
  controls.dampingFactor = 0.12;
  canvas.addEventListener("pointerdown", () => canvas.focus({ preventScroll: true }));

  let waiting = false;
  const beforeFrame = [];
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame((now) => {
      waiting = false;
      for (const prepare of beforeFrame) prepare(now);
      controls.update();
      renderer.render(scene, camera);
    });
  }
  controls.addEventListener("change", redraw);

  const toScene = ([x, y, z]) => new Vector3(x, -y, -z);
  function look(from, at, times = 1) {
    controls.target.copy(toScene(at));
    camera.position.copy(toScene(from)).sub(controls.target).multiplyScalar(times).add(controls.target);
    controls.update();
    redraw();
  }
  const [x, y, z] = centre;
  // Farther away where the stage is narrow.
  const overview = (from, at) => look(from, at, distance * Math.max(1, (1.15 * holder.clientHeight) / holder.clientWidth));
  const lookFrom = {
    side: () => overview([x - 0.8, y - 0.66, z - 1.85], [x + 0.04, y + 0.02, z - 0.14]),
    camera1: () => look([0, 0, -0.05], [0, 0, z]),
    above: () => overview([x, y - 2.6, z * 0.55 - 0.001], [x, y, z * 0.55]),
  };
  canvas.addEventListener("dblclick", lookFrom.side);

  const resized = [];
  function resize() {
    const [width, height] = [holder.clientWidth, holder.clientHeight];
    if (!width || !height) return;
    renderer.setPixelRatio(Math.min(2, devicePixelRatio));
    renderer.setSize(width, height);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    const pixelsPerUnit = renderer.domElement.height / (2 * Math.tan((FIELD_OF_VIEW * Math.PI) / 360));
    for (const tell of resized) tell(pixelsPerUnit);
    redraw();
  }
  new ResizeObserver(resize).observe(holder);
  whenLookChanges(holder, redraw);
  lookFrom.side();

  const distanceToCamera1 = () => camera.position.length();
  return { world, redraw, distanceToCamera1, lookFrom, beforeFrame, whenResized: (tell) => (resized.push(tell), resize()) };
}
