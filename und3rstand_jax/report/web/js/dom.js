// Elements from names, attributes and children; text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const drawing = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const themeColour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`).trim();

// Calls back at once, and whenever the element's width or the colour scheme changes.
export function whenLookChanges(node, draw) {
  let width = -1;
  new ResizeObserver(() => {
    if (node.clientWidth !== width) draw((width = node.clientWidth));
  }).observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(node.clientWidth));
  draw((width = node.clientWidth));
}

// As wide as possible, but at most `tallest` pixels high: a tall view would take the whole page.
export function fitImage(node, width, height, tallest) {
  node.style.aspectRatio = `${width} / ${height}`;
  node.style.width = `min(100%, ${Math.round((tallest * width) / height)}px)`;
}

// A row of buttons of which one is pressed. options: [value, label]; returns the row and a function that shows a choice.
export function choice(label, options, onChoose) {
  const buttons = options.map(([value, text]) => element("button", { type: "button", click: () => onChoose(value) }, text));
  const show = (chosen) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", options[i][0] === chosen));
  return { row: element("div", { class: "choice", role: "group", "aria-label": label }, element("span", {}, label), element("div", {}, buttons)), show };
}
