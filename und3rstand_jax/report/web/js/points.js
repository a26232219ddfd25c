// A view's points on the GPU: they move from one layer's positions to the next one's, and the least confident can be hidden.

import { BufferAttribute, BufferGeometry, Points, ShaderMaterial, Vector3 } from "three";

// A point is as large as its pixel's footprint, which grows with the distance to the camera that saw it. Hidden are the fraction `threshold`
// of the least confident points, and those without a position, whose rank is -1.
const VERTEX = `
  attribute vec3 target;
  attribute vec3 tint;
  attribute float rank, targetRank;
  uniform float blend, threshold, pixelAngle, pixelsPerUnit;
  uniform vec3 camera, targetCamera;
  varying vec3 colour;
  void main() {
    vec3 place = mix(position, target, blend);
    float shownRank = blend < 0.5 ? rank : targetRank;
    vec4 eye = modelViewMatrix * vec4(place, 1.0);
    gl_Position = shownRank <= threshold ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * eye;
    float seenFrom = distance(place, mix(camera, targetCamera, blend));
    gl_PointSize = clamp(seenFrom * pixelAngle * pixelsPerUnit / max(0.01, -eye.z), 1.5, 24.0);
    colour = tint;
  }`;

const FRAGMENT = `
  varying vec3 colour;
  uniform float opacity;
  void main() {
    vec2 off = gl_PointCoord - 0.5;
    if (dot(off, off) > 0.25) discard;
    gl_FragColor = vec4(colour, opacity);
  }`;

const withoutGaps = (places) => places.map((value) => (Number.isNaN(value) ? 0 : value));

// pixelAngle: the tangent of the angle between neighbouring pixels.
export function createPoints(count, pixelAngle, opacity = 1) {
  const geometry = new BufferGeometry();
  for (const [name, size] of [["position", 3], ["target", 3], ["tint", 3], ["rank", 1], ["targetRank", 1]])
    geometry.setAttribute(name, new BufferAttribute(new Float32Array(size * count), size));
  const material = new ShaderMaterial({
    vertexShader: VERTEX,
    fragmentShader: FRAGMENT,
    transparent: opacity < 1,
    uniforms: {
      blend: { value: 1 }, threshold: { value: 0 }, pixelAngle: { value: 0 }, pixelsPerUnit: { value: 500 }, opacity: { value: opacity },
      camera: { value: new Vector3() }, targetCamera: { value: new Vector3() },
    },
  });
  const object = new Points(geometry, material);
  // Its bounds change with every layer.
  object.frustumCulled = false;
  const uniforms = material.uniforms;

  function write(name, values) {
    geometry.attributes[name].array.set(values);
    geometry.attributes[name].needsUpdate = true;
  }

  // Discs a little larger than their pixels leave no gaps where a surface faces the viewer.
  const scale = (share) => (uniforms.pixelAngle.value = 1.35 * share * pixelAngle);
  scale(1);

  return {
    object,
    uniforms,
    scale,
    paint: (colours) => write("tint", colours),
    // Starts from where the points are now, even amid a movement. camera: the position they are seen from; view 1's if unknown.
    moveTo(places, ranks, camera = [0, 0, 0]) {
      const [from, to] = [geometry.attributes.position.array, geometry.attributes.target.array];
      const { value: blend } = uniforms.blend;
      write("position", from.map((value, i) => value + (to[i] - value) * blend));
      write("rank", geometry.attributes.targetRank.array);
      write("target", withoutGaps(places));
      write("targetRank", ranks);
      uniforms.camera.value.lerp(uniforms.targetCamera.value, blend);
      uniforms.targetCamera.value.set(...camera);
      uniforms.blend.value = 0;
    },
  };
}
