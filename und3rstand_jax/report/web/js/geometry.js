// Every layer's points, depth, confidence and error on the page's pixel grid, in units of the mean distance to view 1's camera.
// Layers are numbers; behind the last one come the points without single heads. TRUTH stands for the ground truth. Views are numbers from 1.

export const TRUTH = "truth";

function remember(compute) {
  const known = new Map();
  return (view, layer) => {
    const key = `${view} ${layer}`;
    if (!known.has(key)) known.set(key, compute(view, layer));
    return known.get(key);
  };
}

// By confidence level, the fraction of all views' points that are no more confident; where all are equal, none is among the least confident.
function ranksByLevel(maps) {
  const counts = new Float64Array(256);
  let total = 0;
  for (const map of maps) for (const level of map) counts[level]++, total++;
  let below = 0;
  return Float32Array.from(counts, (count) => (below += count) / total);
}

export function createGeometry(values, arrays) {
  const { steps_per_unit: steps, no_point: missing } = values.geometry;
  const last = values.layers.length - 1;
  const views = Object.keys(arrays).filter((name) => /^points\d+$/.test(name)).map((_, i) => i + 1);
  const hasTruth = "truth1" in arrays;
  const hasConfidence = "confidence1" in arrays;

  function size(view) {
    const [, , height, width] = arrays[`points${view}`].shape;
    return { width, height, count: width * height };
  }

  const stored = (view, layer) => {
    const { count } = size(view);
    if (layer === TRUTH) return arrays[`truth${view}`].values;
    return arrays[`points${view}`].values.subarray(layer * 3 * count, (layer + 1) * 3 * count);
  };

  // x, y, z of point after point; NaN where there is none.
  const points = remember((view, layer) => {
    const { count } = size(view);
    const planes = stored(view, layer);
    const result = new Float32Array(3 * count);
    for (let i = 0; i < count; i++)
      for (let axis = 0; axis < 3; axis++) {
        const step = planes[axis * count + i];
        result[3 * i + axis] = step === missing ? NaN : step / steps;
      }
    return result;
  });

  const depth = (view, layer) => points(view, layer).filter((_, i) => i % 3 === 2);

  function confidence(view, layer) {
    const { count } = size(view);
    return arrays[`confidence${view}`].values.subarray(layer * count, (layer + 1) * count);
  }

  const [low, high] = values.geometry.log_confidence_range ?? [0, 1];
  const confidenceValue = (level) => Math.exp(low + (level / 255) * (high - low));

  // Each point's rank: the fraction of all views' points that are no more confident, so 1 for the most confident; -1 where there is no point.
  const ranks = remember((view, layer) => {
    const place = points(view, layer);
    const { count } = size(view);
    const certain = hasConfidence && layer !== TRUTH && layer <= last;
    const byLevel = certain ? ranksByLevel(views.map((each) => confidence(each, layer))) : null;
    const levels = certain ? confidence(view, layer) : null;
    return Float32Array.from({ length: count }, (_, i) => (Number.isNaN(place[3 * i]) ? -1 : certain ? byLevel[levels[i]] : 1));
  });

  const reference = hasTruth ? TRUTH : last;

  // Distance of each point to the reference's.
  const errors = remember((view, layer) => {
    const [here, there] = [points(view, layer), points(view, reference)];
    return Float32Array.from({ length: size(view).count }, (_, i) =>
      Math.hypot(here[3 * i] - there[3 * i], here[3 * i + 1] - there[3 * i + 1], here[3 * i + 2] - there[3 * i + 2]),
    );
  });

  // A single layer is its own reference and has no errors.
  const hasErrors = hasTruth || last > 0;

  return { views, size, points, depth, confidence, confidenceValue, confidenceRange: [confidenceValue(0), confidenceValue(255)], ranks, errors, hasErrors, hasTruth, hasConfidence, stride: values.geometry.stride };
}
