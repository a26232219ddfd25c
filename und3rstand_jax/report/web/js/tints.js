// Colours of the points: by the image, by the view they come from, or by their distance to the reference.

import { colourIndex } from "report/colours";

// The image's colours on the geometry's pixel grid, 0 to 1.
export function imageColours(photo, [height, width], size, stride) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  // The page may carry a smaller photo than the views were.
  context.drawImage(photo, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const first = Math.floor(stride / 2);
  const colours = new Float32Array(3 * size.count);
  for (let i = 0; i < size.count; i++) {
    const [row, column] = [Math.floor(i / size.width), i % size.width];
    const at = 4 * ((first + row * stride) * width + first + column * stride);
    for (let channel = 0; channel < 3; channel++) colours[3 * i + channel] = data[at + channel] / 255;
  }
  return colours;
}

// The view's colour with the image's lightness, so that shapes stay recognisable.
export function viewColours(ofImage, [red, green, blue]) {
  const colours = new Float32Array(ofImage.length);
  for (let i = 0; i < colours.length; i += 3) {
    const light = 0.45 + 0.75 * (0.3 * ofImage[i] + 0.59 * ofImage[i + 1] + 0.11 * ofImage[i + 2]);
    colours.set([red * light, green * light, blue * light], i);
  }
  return colours;
}

export function errorColours(errors, range, map) {
  const colours = new Float32Array(3 * errors.length).fill(0.5);
  errors.forEach((error, i) => {
    if (Number.isNaN(error)) return;
    const at = colourIndex(error / range);
    for (let channel = 0; channel < 3; channel++) colours[3 * i + channel] = map[at + channel] / 255;
  });
  return colours;
}

// "#1f6fb2" -> [r, g, b], 0 to 1.
export const readHex = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
