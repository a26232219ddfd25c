// Unpacks the arrays in the page: base64, gzip, byte planes, differences. The inverse of page_arrays.py.

const TYPES = { uint8: Uint8Array, int16: Int16Array, float32: Float32Array };

async function gunzip(base64) {
  const compressed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function joinPlanes(planes, size) {
  if (size === 1) return planes;
  const count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) for (let i = 0; i < count; i++) bytes[i * size + plane] = planes[plane * count + i];
  return bytes;
}

// Typed arrays wrap around as the differences did.
function sumAlongRows(values, length) {
  for (let i = 0; i < values.length; i++) if (i % length) values[i] += values[i - 1];
}

async function unpack(script) {
  const spec = JSON.parse(script.dataset.array);
  const Type = TYPES[spec.dtype];
  const bytes = joinPlanes(await gunzip(script.textContent), Type.BYTES_PER_ELEMENT);
  const values = new Type(bytes.buffer, bytes.byteOffset, bytes.byteLength / Type.BYTES_PER_ELEMENT);
  if (spec.differences) sumAlongRows(values, spec.shape.at(-1));
  script.remove();
  return [spec.name, { shape: spec.shape, values }];
}

// name -> { shape, values }
export async function unpackArrays() {
  const scripts = [...document.querySelectorAll("script[data-array]")];
  return Object.fromEntries(await Promise.all(scripts.map(unpack)));
}
