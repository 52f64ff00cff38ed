// Drives the page in headless Chromium and compares its pixels with torch's.
//
//   .venv/bin/python examples/web/make_fixture.py build/web-test
//   cd examples/web && npm install && npm test            (CHROMIUM=/path/to/chromium, SCREENSHOT=file.png)
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { parseSafetensors } from "./public/safetensors.mjs";
import { listEffects, locate, serve } from "./serve.mjs";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const FIXTURE = path.resolve(process.env.FIXTURE ?? path.join(HERE, "../../build/web-test"));
const CANDIDATES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

function testParser() {
  const file = (header, bytes) => {
    const text = new TextEncoder().encode(JSON.stringify(header));
    const all = new Uint8Array(8 + text.length + bytes.length);
    new DataView(all.buffer).setBigUint64(0, BigInt(text.length), true);
    all.set(text, 8);
    all.set(bytes, 8 + text.length);
    return all.buffer;
  };
  const floats = new Uint8Array(Float32Array.of(1.5, -2).buffer);
  const whole = file({ __metadata__: { k: "v" }, a: { dtype: "F32", shape: [1, 2], data_offsets: [0, 8] } }, floats);
  const parsed = parseSafetensors(whole);
  assert.deepEqual([...parsed.tensors.a.data], [1.5, -2]);
  assert.deepEqual(parsed.metadata, { k: "v" });
  const halves = new Uint8Array(Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x7c00).buffer);
  const half = parseSafetensors(file({ a: { dtype: "F16", shape: [4], data_offsets: [0, 8] } }, halves));
  assert.deepEqual([...half.tensors.a.data], [1, -2, Math.fround(2 ** -24), Infinity]);
  for (const bad of [
    new ArrayBuffer(3),
    whole.slice(0, whole.byteLength - 4),
    file({ a: { dtype: "F32", shape: [3], data_offsets: [0, 8] } }, floats),
    file({ a: { dtype: "I64", shape: [1], data_offsets: [0, 8] } }, floats),
  ])
    assert.throws(() => parseSafetensors(bad));
}

function testServerStaysInside() {
  for (const bad of ["/../package.json", "/effects/../../secret", "/%2e%2e/serve.mjs", "/ort/../../x"]) {
    const file = locate(bad, FIXTURE);
    const roots = [path.join(HERE, "public"), FIXTURE, path.join(HERE, "node_modules/onnxruntime-web/dist")];
    assert.ok(file === null || roots.some((root) => file.startsWith(root + path.sep)), `${bad} -> ${file}`);
  }
}

/** Largest and mean difference between the page's edit and a picture, in 8-bit levels. */
function compareInPage(page, effect) {
  return page.evaluate(async (name) => {
    const pixels = async (url) => {
      const bitmap = await createImageBitmap(await (await fetch(url)).blob(), { colorSpaceConversion: "none" });
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      return context.getImageData(0, 0, bitmap.width, bitmap.height);
    };
    const photo = await pixels("/effects/photo.png");
    const expected = await pixels(`/effects/expected-${name}.png`);
    const { pixels: edited, ms } = await window.app.state.editor.edit(photo.data, photo.width, photo.height, name);
    let max = 0;
    let sum = 0;
    for (let i = 0; i < edited.length; i++) {
      const difference = Math.abs(edited[i] - expected.data[i]);
      max = Math.max(max, difference);
      sum += difference;
    }
    return { max, mean: sum / edited.length, ms, width: photo.width, height: photo.height };
  }, effect);
}

async function testPage(page, port, effects) {
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  await page.goto(`http://127.0.0.1:${port}/`);
  await page.waitForSelector("#effects button");
  assert.deepEqual(await page.locator("#effects button").allTextContents(), effects);
  assert.equal(await page.evaluate(() => crossOriginIsolated), true);
  for (const name of [...effects, effects[0]]) {
    const found = await compareInPage(page, name);
    console.log(`${name}: max difference ${found.max} levels, mean ${found.mean.toFixed(4)}, ${found.ms.toFixed(0)} ms at ${found.width} x ${found.height}`);
    assert.ok(found.max <= 1, `${name} differs from torch by ${found.max} levels`);
  }
  await page.setInputFiles("#photo", path.join(FIXTURE, "photo.png"));
  for (const name of effects) {
    await page.click(`#effects button:text-is("${name}")`);
    await page.waitForFunction((n) => new RegExp(`^${n}: \\d+ ms`).test(document.getElementById("caption").textContent), name);
    assert.equal(await page.getAttribute(`#effects button:text-is("${name}")`, "aria-pressed"), "true");
  }
  console.log(await page.textContent("#caption"));
  await page.setInputFiles("#photo", { name: "x.png", mimeType: "image/png", buffer: Buffer.from("no picture") });
  await page.waitForSelector("#status.error");
  await page.setInputFiles("#photo", path.join(FIXTURE, "photo.png"));
  await page.waitForSelector("#status:not(.error)");
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
  assert.deepEqual(errors, []);
}

testParser();
testServerStaysInside();
assert.ok(existsSync(FIXTURE), `${FIXTURE} is missing: run make_fixture.py first`);
const executablePath = process.env.CHROMIUM ?? CANDIDATES.find(existsSync);
assert.ok(executablePath, "no Chromium found: install it, or set CHROMIUM");
const { server, port } = await serve(FIXTURE, 0);
const profile = mkdtempSync(path.join(tmpdir(), "e2gan-web-"));
const context = await chromium.launchPersistentContext(profile, { executablePath, args: FLAGS, headless: true });
try {
  await testPage(await context.newPage(), port, await listEffects(FIXTURE));
  console.log("web example: ok");
} finally {
  await context.close();
  server.close();
  server.closeAllConnections();
  rmSync(profile, { recursive: true, force: true });
}
