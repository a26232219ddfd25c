// Layer ids in words: stack, block, kind of step, and a symbol for each kind, the same as in the figures (layer_plot.py).

import { drawing } from "report/dom";

const KINDS = {
  self_attn: { name: "self-attention", path: "M-1,0A1,1 0 1,1 1,0A1,1 0 1,1 -1,0Z" },
  cross_attn: { name: "cross-attention", path: "M-.9,-.9H.9V.9H-.9Z" },
  mlp: { name: "MLP", path: "M0,-1.1L1.1,.8H-1.1Z" },
  embed: { name: "embedding", path: "M0,-1.3L1.3,0L0,1.3L-1.3,0Z" },
  norm: { name: "norm", path: "M-.45,-1.1H.45V-.45H1.1V.45H.45V1.1H-.45V.45H-1.1V-.45H-.45Z" },
  head: { name: "head", path: "M0,-1.45L.43,-.45L1.45,-.45L.65,.2L.95,1.25L0,.62L-.95,1.25L-.65,.2L-1.45,-.45L-.43,-.45Z" },
};

// { id, stack, block, kind, name }; block is null outside of blocks.
export function readLayer(id) {
  if (id === "head") return { id, stack: "head", block: null, kind: "head", name: "the model’s own head" };
  const [stack, ...place] = id.split(".");
  const kind = place.at(-1);
  const block = place.length === 2 ? Number(place[0]) : null;
  const step = KINDS[kind]?.name ?? kind;
  return { id, stack, block, kind, name: block === null ? `${stack} ${step}` : `${stack} block ${block}, ${step}` };
}

export const kindName = (kind) => KINDS[kind]?.name ?? kind;
export const kindsOf = (layers) => Object.keys(KINDS).filter((kind) => layers.some((layer) => layer.kind === kind));

export function symbol(kind, x, y, radius, attributes = {}) {
  const path = (KINDS[kind] ?? KINDS.norm).path;
  return drawing("path", { d: path, transform: `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${radius})`, ...attributes });
}

// Neighbouring layers of one block: [{ label, first, last }]; encoder blocks are marked with an "e".
export function blockRuns(layers) {
  const runs = [];
  layers.forEach((layer, index) => {
    const key = layer.block === null ? null : `${layer.stack}.${layer.block}`;
    if (key === null) return;
    const last = runs.at(-1);
    if (last?.key === key) last.last = index;
    else runs.push({ key, first: index, last: index, label: layer.stack === "encoder" ? `e${layer.block}` : `${layer.block}` });
  });
  return runs;
}
