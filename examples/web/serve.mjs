// A static server: this folder's page, onnxruntime-web from node_modules, and a folder written by `e2gan pull`.
// The two cross-origin headers let the page use WebAssembly threads.
//
//   node serve.mjs --effects ../../build/web [--port 8080]
import { createServer } from "node:http";
import { readFile, readdir, stat } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".wasm": "application/wasm",
  ".png": "image/png",
  ".jpg": "image/jpeg",
};

/** The file behind a URL path, or null if it lies outside the folders that are served. */
export function locate(urlPath, effects) {
  const clean = path.posix.normalize(decodeURIComponent(urlPath));
  const [root, rest] = clean.startsWith("/effects/")
    ? [effects, clean.slice("/effects/".length)]
    : clean.startsWith("/ort/")
      ? [path.join(HERE, "node_modules/onnxruntime-web/dist"), clean.slice("/ort/".length)]
      : [path.join(HERE, "public"), clean === "/" ? "index.html" : clean.slice(1)];
  const file = path.resolve(root, rest);
  return file.startsWith(path.resolve(root) + path.sep) ? file : null;
}

/** Names of the pulled effects that a page can run. */
export async function listEffects(effects) {
  const names = await readdir(path.join(effects, "adapters")).catch(() => []);
  const usable = await Promise.all(
    names.map((name) =>
      stat(path.join(effects, "adapters", name, "lora_inputs.safetensors")).then(
        () => name,
        () => null,
      ),
    ),
  );
  return usable.filter(Boolean).sort();
}

/** Starts the server; port 0 takes a free one. Resolves to {server, port}. */
export function serve(effects, port = 8080, host = "127.0.0.1") {
  const server = createServer(async (request, response) => {
    response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
    response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    response.setHeader("Cache-Control", "no-cache");
    try {
      const { pathname } = new URL(request.url, "http://localhost");
      if (pathname === "/effects.json") {
        response.setHeader("Content-Type", TYPES[".json"]);
        response.end(JSON.stringify(await listEffects(effects)));
        return;
      }
      const file = locate(pathname, effects);
      const body = file && (await readFile(file));
      if (!body) throw new Error("outside");
      response.setHeader("Content-Type", TYPES[path.extname(file)] ?? "application/octet-stream");
      response.end(body);
    } catch {
      response.statusCode = 404;
      response.end("not found");
    }
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, () => resolve({ server, port: server.address().port }));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const option = (name, fallback) => {
    const at = process.argv.indexOf(name);
    return at > 0 ? process.argv[at + 1] : fallback;
  };
  const effects = path.resolve(option("--effects", path.join(HERE, "../../build/web")));
  const names = await listEffects(effects);
  if (!names.length) {
    console.error(`${effects} holds no effect for the web.\n  fix: e2gan pull --registry URL --out ${effects} --format required-inputs`);
    process.exit(2);
  }
  const { port } = await serve(effects, Number(option("--port", "8080")));
  console.log(`${names.length} effects at http://127.0.0.1:${port}/`);
}
