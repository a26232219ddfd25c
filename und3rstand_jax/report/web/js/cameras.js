// Cameras as pyramids of lines with the view's image at their base.

import { BufferAttribute, BufferGeometry, DoubleSide, Group, LineBasicMaterial, LineSegments, Matrix4, Mesh, MeshBasicMaterial, Quaternion, SRGBColorSpace, Texture, Vector3 } from "three";

const DEPTH = 0.16;

function corners(shape, focal) {
  const [height, width] = shape;
  const [x, y] = [(DEPTH * width) / 2 / focal, (DEPTH * height) / 2 / focal];
  return [[-x, -y, DEPTH], [x, -y, DEPTH], [x, y, DEPTH], [-x, y, DEPTH]];
}

function outline(shape, focal) {
  const around = corners(shape, focal);
  const [left, right] = around;
  // A small roof tells which way is up.
  const roof = [(left[0] + right[0]) / 2, left[1] * 1.35, DEPTH];
  const lines = around.flatMap((corner, i) => [[0, 0, 0], corner, corner, around[(i + 1) % 4]]);
  return [...lines, left, roof, roof, right].flat();
}

function picture(shape, focal, photo) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(new Float32Array(corners(shape, focal).flat()), 3));
  geometry.setAttribute("uv", new BufferAttribute(new Float32Array([0, 1, 1, 1, 1, 0, 0, 0]), 2));
  geometry.setIndex([0, 1, 2, 0, 2, 3]);
  const texture = new Texture(photo);
  texture.colorSpace = SRGBColorSpace;
  texture.needsUpdate = true;
  return new Mesh(geometry, new MeshBasicMaterial({ map: texture, side: DoubleSide, transparent: true, opacity: 0.85 }));
}

export function createCamera(shape, focal, photo = null) {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(new Float32Array(outline(shape, focal)), 3));
  const material = new LineBasicMaterial();
  const object = new Group().add(new LineSegments(geometry, material));
  if (photo) object.add(picture(shape, focal, photo));
  const from = { place: new Vector3(), turn: new Quaternion() };
  const to = { place: new Vector3(), turn: new Quaternion() };
  let placed = false;

  return {
    object,
    paint: (colour) => material.color.setStyle(colour),
    // pose: rows of the matrix to view 1's frame, or null where there is none; no movement from or to nowhere.
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
