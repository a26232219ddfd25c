// Unpacks the page's data, builds its parts around one state, and says when it is ready.

import { unpackArrays } from "report/arrays";
import { createAttention } from "report/attention";
import { createCharts } from "report/charts";
import { createCloud } from "report/cloud";
import { readColourMap } from "report/colours";
import { byId } from "report/dom";
import { createFacts } from "report/facts";
import { createGeometry } from "report/geometry";
import { readLayer } from "report/layers";
import { createMaps } from "report/maps";
import { createMatches } from "report/matches";
import { createPose } from "report/pose";
import { createState } from "report/state";
import { createTimeline, layerFromAddress } from "report/timeline";
import { createUses } from "report/uses";
import { viewNumbers } from "report/views";

// The last layer first; playing from the end starts over.
const firstLayer = (layers) => layerFromAddress(layers) ?? layers.length - 1;

// The middle of view 1.
function firstQuery(attention) {
  if (!attention) return null;
  const [rows, columns] = attention.grids[0];
  return { view: 1, token: Math.floor(rows / 2) * columns + Math.floor(columns / 2) };
}

function geometryNote({ shapes, geometry: { stride } }) {
  const sizes = new Set(shapes.map(([height, width]) => `${width}×${height}`));
  return stride === 1 ? "" : `To keep this file small, one pixel per ${stride}×${stride} is shown (of ${[...sizes].join(" and ")}). `;
}

async function start() {
  const values = JSON.parse(byId("values").textContent);
  const photos = viewNumbers(values).map((view) => byId(`photo${view}`));
  const [arrays] = await Promise.all([unpackArrays(), ...photos.map((photo) => photo.decode())]);
  const layers = values.layers.map(({ id }) => readLayer(id));
  const colourMaps = Object.fromEntries(Object.entries(values.colormaps).map(([name, hex]) => [name, readColourMap(hex)]));
  const geometry = createGeometry(values, arrays);
  const state = createState({
    layer: firstLayer(layers), playing: false, pointed: null,
    tint: "image", shown: "layer", visible: photos.map(() => true), threshold: 0,
    block: 0, head: "mean", query: firstQuery(values.attention), linked: true, target: 2,
    matched: 2,
    use: null, useColour: "cost", without: true,
  });
  byId("geometry-note").textContent = geometryNote(values);
  createTimeline(state, layers);
  createCloud(state, geometry, values, colourMaps, photos);
  createMaps(state, geometry, values, colourMaps);
  createCharts(state, layers, values, geometry.hasErrors);
  createAttention(state, layers, values, arrays, colourMaps.attention, photos);
  createUses(state, values, arrays, geometry, colourMaps, photos);
  createMatches(state, values, colourMaps.depth, photos);
  createPose(state, layers, values, geometry);
  createFacts(values.facts);
  document.body.dataset.ready = "true";
}

await start();
