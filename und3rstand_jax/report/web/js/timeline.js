// Selects the layer: slider, ticks, play button, keys and the address (#layer=decoder.3.mlp, or #layer=5 for the fifth).

import { byId, drawing } from "report/dom";
import { kindName, symbol } from "report/layers";

const MILLISECONDS_A_LAYER = 900;

// Index of the layer that the address names, or null.
export function layerFromAddress(layers) {
  // Unlike decodeURIComponent, URLSearchParams accepts any text, even a lone percent sign.
  const asked = new URLSearchParams(location.hash.slice(1)).get("layer") ?? "";
  const named = layers.findIndex((layer) => layer.id === asked);
  if (named >= 0) return named;
  const number = Number(asked);
  return Number.isInteger(number) && number >= 1 && number <= layers.length ? number - 1 : null;
}

export function createTimeline(state, layers) {
  const slider = byId("slider");
  slider.max = layers.length - 1;
  slider.addEventListener("input", () => state.set({ layer: Number(slider.value), playing: false }));
  byId("play").addEventListener("click", () => togglePlay(state, layers));
  byId("ticks").append(ticks(layers));
  addEventListener("keydown", (event) => onKey(event, state, layers));
  addEventListener("hashchange", () => state.set({ layer: layerFromAddress(layers) ?? state.values.layer }));
  state.watch(["layer"], ({ layer }) => showLayer(layers, layer));
  state.watch(["playing"], ({ playing }) => {
    byId("play").classList.toggle("playing", playing);
    byId("play").setAttribute("aria-label", playing ? "Pause" : "Play through the layers");
  });
  playWhenAsked(state, layers);
  keepAddress(state, layers);
}

function showLayer(layers, index) {
  const layer = layers[index];
  byId("slider").value = index;
  byId("slider").setAttribute("aria-valuetext", layer.name);
  byId("now-name").textContent = kindName(layer.kind);
  byId("now-id").textContent = layer.kind === "head" ? "the model’s own" : layer.id;
  byId("now-count").textContent = `${index + 1} / ${layers.length}`;
  byId("now-symbol").replaceChildren(drawing("svg", { viewBox: "-2 -2 4 4", width: 22, height: 22 }, symbol(layer.kind, 0, 0, 1.2)));
  byId("ticks").querySelectorAll("path").forEach((tick, i) => tick.classList.toggle("current", i === index));
}

// One symbol per layer, below the slider's thumb positions.
function ticks(layers) {
  const last = Math.max(1, layers.length - 1);
  const at = (index) => `${((100 * index) / last).toFixed(3)}%`;
  return drawing(
    "svg",
    { width: "100%", height: 14, "aria-hidden": "true" },
    layers.map((layer, index) => drawing("svg", { x: at(index), y: 7, overflow: "visible" }, symbol(layer.kind, 0, 0, layers.length > 50 ? 2 : 3.2))),
  );
}

function step(state, layers, by) {
  state.set({ layer: Math.min(layers.length - 1, Math.max(0, state.values.layer + by)), playing: false });
}

function togglePlay(state, layers) {
  const { playing, layer } = state.values;
  // At the end, play starts over.
  state.set(!playing && layer === layers.length - 1 ? { layer: 0, playing: true } : { playing: !playing });
}

function onKey(event, state, layers) {
  const { target } = event;
  const typing = target.matches?.("select, input:not(#slider):not([type=checkbox])");
  if (typing || event.altKey || event.ctrlKey || event.metaKey) return;
  const actions = {
    ArrowLeft: () => step(state, layers, -1),
    ArrowRight: () => step(state, layers, 1),
  };
  // Elsewhere these keys scroll, press a button, tick a box or expand details.
  if (target.matches?.("body, #slider, #stage canvas"))
    Object.assign(actions, {
      Home: () => step(state, layers, -layers.length),
      End: () => step(state, layers, layers.length),
      " ": () => togglePlay(state, layers),
    });
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function playWhenAsked(state, layers) {
  let timer = null;
  state.watch(["playing"], ({ playing }) => {
    clearInterval(timer);
    if (!playing) return;
    timer = setInterval(() => {
      const next = state.values.layer + 1;
      state.set(next < layers.length ? { layer: next } : { playing: false });
    }, MILLISECONDS_A_LAYER);
  });
}

// Delayed: browsers limit how often an address may change.
function keepAddress(state, layers) {
  let timer = null;
  let first = true;
  state.watch(["layer"], () => {
    clearTimeout(timer);
    if (!first) timer = setTimeout(() => history.replaceState(null, "", `#layer=${layers[state.values.layer].id}`), 400);
    first = false;
  });
}
