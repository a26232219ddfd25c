// What was run: nested values as definition lists; deeper levels can be expanded.

import { byId, element } from "report/dom";

const isNested = (value) => value !== null && typeof value === "object" && (!Array.isArray(value) || value.some((entry) => entry !== null && typeof entry === "object"));

function plain(value) {
  if (value === null) return "none";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(plain).join(", ") || "none";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(7))) : String(value);
}

function list(facts) {
  const entries = Object.entries(facts);
  const simple = entries.filter(([, value]) => !isNested(value)).flatMap(([name, value]) => [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, plain(value))]);
  const nested = entries.filter(([, value]) => isNested(value)).map(([name, value]) => element("details", {}, element("summary", {}, name.replaceAll("_", " ")), list(value)));
  return element("div", { class: "facts" }, simple.length ? element("dl", {}, simple) : null, nested);
}

export function createFacts(facts) {
  byId("facts-body").append(list(facts));
}
