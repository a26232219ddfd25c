// Layer ids in words: stack, block, kind of step, and a symbol for each kind, the same as in the figures (layer_plot.py).

import { drawing } from "report/dom";

const KINDS = {
  self_attn: { name: "self-attention", path: "M-1,0A1,1 0 1,1 1,0A1,1 0 1,1 -1,0Z" },
  cross_attn: { name: "cross-attention", path: "M-.9,-.9H.9V.9H-.9Z" },
  mlp: { name: "MLP", path: "M0,-1.1L1.1,.8H-1.1Z" },
  "frame.self_attn": { name: "frame attention", path: "M-1,0A1,1 0 1,1 1,0A1,1 0 1,1 -1,0Z" },
  "frame.mlp": { name: "frame MLP", path: "M0,1.1L1.1,-.8H-1.1Z" },
  "global.self_attn": { name: "global attention", path: "M-.9,-.9H.9V.9H-.9Z" },
  "global.mlp": { name: "global MLP", path: "M0,-1.1L1.1,.8H-1.1Z" },
  embed: { name: "embedding", path: "M0,-1.3L1.3,0L0,1.3L-1.3,0Z" },
  norm: { name: "norm", path: "M-.45,-1.1H.45V-.45H1.1V.45H.45V1.1H-.45V.45H-1.1V-.45H-.45Z" },
  head: { name: "head", path: "M0,-1.45L.43,-.45L1.45,-.45L.65,.2L.95,1.25L0,.62L-.95,1.25L-.65,.2L-1.45,-.45L-.43,-.45Z" },
};

// { id, stack, block, kind, name }; block is null outside of blocks.
export function readLayer(id) {
  if (id === "head") return { id, stack: "head", block: null, kind: "head", name: "the model’s own head" };
  const [stack, ...place] = id.split(".");
  const last = place.at(-1);
  // Of blocks of two stacks that take turns, the steps of each are kinds of their own.
  const kind = KINDS[`${stack}.${last}`] ? `${stack}.${last}` : last;
  const block = place.length === 2 ? Number(place[0]) : null;
  const step = KINDS[last]?.name ?? last;
  return { id, stack, block, kind, name: block === null ? `${stack} ${step}` : `${stack} block ${block}, ${step}` };
}

export const kindName = (kind) => KINDS[kind]?.name ?? kind;
export const kindsOf = (layers) => Object.keys(KINDS).filter((kind) => layers.some((layer) => layer.kind === kind));

export function symbol(kind, x, y, radius, attributes = {}) {
  const path = (KINDS[kind] ?? KINDS.norm).path;
  return drawing("path", { d: path, transform: `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${radius})`, ...attributes });
}

// Neighbouring layers of one block, or of a pair with one number: [{ label, first, last }]; encoder blocks are marked with an "e".
export function blockRuns(layers) {
  const runs = [];
  layers.forEach((layer, index) => {
    if (layer.block === null) return;
    const label = layer.stack === "encoder" ? `e${layer.block}` : `${layer.block}`;
    const last = runs.at(-1);
    if (last?.label === label) last.last = index;
    else runs.push({ first: index, last: index, label });
  });
  return runs;
}
