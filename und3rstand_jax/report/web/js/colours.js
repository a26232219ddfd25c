// Colour maps: 256 colours each, from the page's values as hexadecimal digits.

export function readColourMap(hex) {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

export const colourIndex = (share) => 3 * Math.round(255 * Math.min(1, Math.max(0, share)));

export function cssColour(map, share) {
  const at = colourIndex(share);
  return `rgb(${map[at]} ${map[at + 1]} ${map[at + 2]})`;
}

// Fractions of a scale (0 to 1, NaN where missing) as an image; missing values stay transparent.
export function paintShares(canvas, width, height, shares, map, opacity = () => 255) {
  const image = new ImageData(width, height);
  for (let i = 0; i < shares.length; i++) {
    if (Number.isNaN(shares[i])) continue;
    const at = colourIndex(shares[i]);
    image.data.set([map[at], map[at + 1], map[at + 2], opacity(shares[i])], 4 * i);
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export function paintBar(canvas, map) {
  paintShares(canvas, 256, 1, Float32Array.from({ length: 256 }, (_, i) => i / 255), map);
}
