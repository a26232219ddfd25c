// Cameras as pyramids of lines with the view's image at their base.

import { BufferAttribute, BufferGeometry, DoubleSide, Group, LineBasicMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, Quaternion, SRGBColorSpace, Texture, Vector3 } from "three";

const DEPTH = 0.16;

// Where the image's edges are at a depth in front of its camera. Its outermost pixels have their centres at 0 and at side - 1.
export function imageEdges([height, width], intrinsics, depth) {
  const [[fx, , cx], [, fy, cy]] = intrinsics;
  const at = (pixel, centre, focal) => (depth * (pixel - centre)) / focal;
  return { left: at(-0.5, cx, fx), right: at(width - 0.5, cx, fx), top: at(-0.5, cy, fy), bottom: at(height - 0.5, cy, fy) };
}

function corners(shape, intrinsics) {
  const { left, right, top, bottom } = imageEdges(shape, intrinsics, DEPTH);
  return [[left, top, DEPTH], [right, top, DEPTH], [right, bottom, DEPTH], [left, bottom, DEPTH]];
}

function outline(shape, intrinsics) {
  const around = corners(shape, intrinsics);
  const [left, right, , below] = around;
  // A small roof shows which way is up.
  const roof = [(left[0] + right[0]) / 2, left[1] - 0.175 * (below[1] - left[1]), DEPTH];
  const lines = around.flatMap((corner, i) => [[0, 0, 0], corner, corner, around[(i + 1) % 4]]);
  return [...lines, left, roof, roof, right].flat();
}

function picture(shape, intrinsics, photo) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(new Float32Array(corners(shape, intrinsics).flat()), 3));
  geometry.setAttribute("uv", new BufferAttribute(new Float32Array([0, 1, 1, 1, 1, 0, 0, 0]), 2));
  geometry.setIndex([0, 1, 2, 0, 2, 3]);
  const texture = new Texture(photo);
  texture.colorSpace = SRGBColorSpace;
  texture.needsUpdate = true;
  return new Mesh(geometry, new MeshBasicMaterial({ map: texture, side: DoubleSide, transparent: true, opacity: 0.85 }));
}

// shape: [height, width] of the view; intrinsics: rows of its matrix, in pixels.
export function createCamera(shape, intrinsics, photo = null) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(new Float32Array(outline(shape, intrinsics)), 3));
  const material = new LineBasicMaterial();
  const object = new Group().add(new LineSegments(geometry, material));
  if (photo) object.add(picture(shape, intrinsics, photo));
  const from = { place: new Vector3(), turn: new Quaternion() };
  const to = { place: new Vector3(), turn: new Quaternion() };
  let placed = false;

  return {
    object,
    paint: (colour) => material.color.setStyle(colour),
    // pose: rows of the matrix to view 1's frame, or null without a pose; then nothing moves.
    moveTo(pose) {
      object.visible = pose !== null;
      if (!pose) return (placed = false);
      from.place.copy(object.position);
      from.turn.copy(object.quaternion);
      new Matrix4().set(...pose.flat()).decompose(to.place, to.turn, new Vector3());
      if (!placed) [from.place, from.turn].forEach((start, i) => start.copy([to.place, to.turn][i]));
      placed = true;
    },
    blend(share) {
      object.position.lerpVectors(from.place, to.place, share);
      object.quaternion.slerpQuaternions(from.turn, to.turn, share);
    },
  };
}
