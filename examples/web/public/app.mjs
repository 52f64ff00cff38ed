import * as ort from "/ort/ort.wasm.min.mjs";
import { Editor } from "./editor.mjs";

ort.env.wasm.wasmPaths = "/ort/";
ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
ort.env.logLevel = "error";

const $ = (id) => document.getElementById(id);
const state = { editor: null, bitmap: null, effect: null, busy: false, again: false };

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", bad);
}

/** Draws the photo at the chosen size and returns its pixels. */
function drawPhoto() {
  const longest = Number($("size").value);
  const scale = longest / Math.max(state.bitmap.width, state.bitmap.height);
  const canvas = $("before");
  canvas.width = Math.max(1, Math.round(state.bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(state.bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(state.bitmap, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Runs the chosen effect; a change during a run is caught up with afterwards. */
async function render() {
  if (!state.bitmap || !state.effect) return;
  if (state.busy) {
    state.again = true;
    return;
  }
  state.busy = true;
  try {
    do {
      state.again = false;
      const name = state.effect;
      const photo = drawPhoto();
      say(`${name}…`);
      const begin = performance.now();
      await state.editor.effect(name);
      const switched = performance.now() - begin;
      const { pixels, ms } = await state.editor.edit(photo.data, photo.width, photo.height, name);
      const canvas = $("after");
      canvas.width = photo.width;
      canvas.height = photo.height;
      canvas.getContext("2d").putImageData(new ImageData(pixels, photo.width, photo.height), 0, 0);
      $("caption").textContent = `${name}: ${ms.toFixed(0)} ms (switching ${switched.toFixed(0)} ms)`;
      say(`${photo.width} × ${photo.height}, ${ort.env.wasm.numThreads} threads`);
    } while (state.again);
  } catch (error) {
    say(error.message, true);
  } finally {
    state.busy = false;
  }
}

function choose(name) {
  state.effect = name;
  for (const button of $("effects").children) button.setAttribute("aria-pressed", String(button.textContent === name));
  return render();
}

async function usePhoto(blob) {
  try {
    state.bitmap = await createImageBitmap(blob);
  } catch {
    say("That file is not a picture this browser can read.", true);
    return;
  }
  drawPhoto();
  await render();
}

async function start() {
  const names = await (await fetch("effects.json")).json();
  const begin = performance.now();
  state.editor = await Editor.load(ort, "/effects/");
  for (const name of names) {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => choose(name));
    $("effects").append(button);
  }
  $("photo").addEventListener("change", (event) => event.target.files[0] && usePhoto(event.target.files[0]));
  $("size").addEventListener("change", render);
  say(`Base ready in ${(performance.now() - begin).toFixed(0)} ms. Choose a photo, then an effect.`);
  if (names.length) await choose(names[0]);
}

// For the tests.
window.app = { state, choose, usePhoto };
start().catch((error) => say(error.message, true));
