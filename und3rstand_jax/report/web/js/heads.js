// Attention heads of the decoders: their names, and their numbers on this pair.

export const ATTENTIONS = { cross_attn: "cross-attention", self_attn: "self-attention" };
export const sameHead = (one, other) => ["attention", "view", "block", "head"].every((name) => one[name] === other[name]);
export const nameOf = ({ attention, view, block, head }) => `block ${block}, head ${head}, ${ATTENTIONS[attention]} of view ${view}`;
export const capital = (text) => text[0].toUpperCase() + text.slice(1);

export const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;

// Of a head: { mass, elsewhere, sink, cost }; cost of both views, and what is unknown is null.
export function createNumbers(use) {
  return ({ attention, view, block, head }) =>
    Object.fromEntries(Object.entries(use.numbers[attention]).map(([name, values]) => [name, values?.[view - 1][block][head] ?? null]));
}

// A head in a sentence, for labels and readings.
export function createWords(use, numbersOf) {
  return (head) => {
    const { mass, elsewhere, sink, cost } = numbersOf(head);
    const loss = cost.map((value) => (value === null ? "unknown" : use.measure === "error" ? signed(value, 4) : value.toFixed(4)));
    return [
      capital(nameOf(head)),
      use.measure === "error" ? `without it the error of view 1 changes by ${loss[0]}, of view 2 by ${loss[1]}` : `without it the points of view 1 move by ${loss[0]}, of view 2 by ${loss[1]}`,
      mass === null ? null : `${share(mass)} of its attention on the true place${elsewhere === null ? "" : `, ${share(elsewhere)} on other patches’ places`}`,
      `${share(sink)} on its strongest key`,
    ].filter(Boolean).join("; ");
  };
}
