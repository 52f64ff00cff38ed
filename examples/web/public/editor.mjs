// One loaded base, effects switched by swapping their tensors. No DOM in here.
import { parseSafetensors } from "./safetensors.mjs";

export const FORMAT_VERSION = 1;
const MIN_SIDE = 32;

export class Editor {
  /** Loads the base. `ort` is onnxruntime-web; `root` the URL of a pulled folder. */
  static async load(ort, root, options = {}) {
    const manifest = await fetchJson(`${root}base/manifest.json`);
    const session = await ort.InferenceSession.create(await fetchBytes(`${root}base/base-inputs.onnx`), {
      executionProviders: ["wasm"],
      graphOptimizationLevel: "all",
      ...options,
    });
    return new Editor(ort, root, session, manifest.meta);
  }

  constructor(ort, root, session, meta) {
    Object.assign(this, { ort, root, session, baseId: meta.base_id, side: meta.resolution });
    this.effects = new Map();
  }

  /** Loads an effect's tensors; a second call returns the same. */
  async effect(name) {
    if (!this.effects.has(name)) {
      const buffer = await fetchBytes(`${this.root}adapters/${name}/lora_inputs.safetensors`);
      const { metadata, tensors } = parseSafetensors(buffer);
      if (metadata["e2gan.base_id"] !== this.baseId)
        throw new Error(`${name} belongs to base ${metadata["e2gan.base_id"]}, this page has ${this.baseId}`);
      if (Number(metadata["e2gan.format"]) > FORMAT_VERSION) throw new Error(`${name} needs a newer page`);
      const feeds = {};
      for (const [key, { dims, data }] of Object.entries(tensors))
        feeds[key] = new this.ort.Tensor("float32", data, dims);
      const missing = this.session.inputNames.filter((key) => key !== "image" && !(key in feeds));
      if (missing.length) throw new Error(`${name} lacks ${missing[0]}`);
      this.effects.set(name, feeds);
    }
    return this.effects.get(name);
  }

  /** Edits RGBA pixels; returns {pixels: RGBA, ms}. */
  async edit(rgba, width, height, name) {
    const feeds = await this.effect(name);
    const begin = performance.now();
    const { data, rows, columns } = toPlanes(rgba, width, height, this.side);
    const image = new this.ort.Tensor("float32", data, [1, 3, rows, columns]);
    const { edited } = await this.session.run({ image, ...feeds });
    const pixels = fromPlanes(edited.data, rows, columns, width, height);
    return { pixels, ms: performance.now() - begin };
  }
}

/** RGBA bytes to planes in [-1, 1], padded by reflection to multiples of 16 (or to a fixed side). */
export function toPlanes(rgba, width, height, side = null) {
  const padded = (n) => side ?? Math.max(MIN_SIDE, Math.ceil(n / 16) * 16);
  const rows = padded(height);
  const columns = padded(width);
  const data = new Float32Array(3 * rows * columns);
  for (let y = 0; y < rows; y++) {
    const sourceRow = mirror(y, height) * width;
    for (let x = 0; x < columns; x++) {
      const from = 4 * (sourceRow + mirror(x, width));
      const to = y * columns + x;
      for (let c = 0; c < 3; c++) data[c * rows * columns + to] = rgba[from + c] / 127.5 - 1;
    }
  }
  return { data, rows, columns };
}

/** Planes in [-1, 1] to RGBA bytes, cropped. */
export function fromPlanes(data, rows, columns, width, height) {
  const pixels = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const to = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) pixels[to + c] = (data[c * rows * columns + y * columns + x] + 1) * 127.5;
      pixels[to + 3] = 255;
    }
  return pixels;
}

function mirror(i, length) {
  const period = i % (2 * length);
  return period < length ? period : 2 * length - 1 - period;
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.arrayBuffer();
}

async function fetchJson(url) {
  return JSON.parse(new TextDecoder().decode(await fetchBytes(url)));
}
