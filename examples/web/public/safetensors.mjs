// Reads safetensors files: 8 bytes header length, JSON header, raw little-endian data.
const BYTES = { F32: 4, F16: 2 };

/** Parses a file into {metadata, tensors: {name: {dims, data: Float32Array}}}; throws on anything malformed. */
export function parseSafetensors(buffer) {
  if (buffer.byteLength < 8) throw new Error("safetensors: the file is cut");
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > buffer.byteLength - 8 || length > 100_000_000) throw new Error("safetensors: the header is cut");
  const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
  const start = 8 + length;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of entries(header)) {
    const count = shape.reduce((a, b) => a * b, 1);
    if (!(dtype in BYTES)) throw new Error(`safetensors: ${name} is ${dtype}, not F32 or F16`);
    if (begin < 0 || end - begin !== count * BYTES[dtype] || start + end > buffer.byteLength)
      throw new Error(`safetensors: ${name} lies outside the file`);
    const bytes = buffer.slice(start + begin, start + end); // a copy is aligned
    const data = dtype === "F32" ? new Float32Array(bytes) : halfToFloat(new Uint16Array(bytes));
    tensors[name] = { dims: shape, data };
  }
  return { metadata: header.__metadata__ ?? {}, tensors };
}

function entries(header) {
  return Object.entries(header).filter(([name]) => name !== "__metadata__");
}

function halfToFloat(halves) {
  return Float32Array.from(halves, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}
