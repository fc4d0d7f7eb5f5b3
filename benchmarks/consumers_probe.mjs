// Run exported programs in ONNX Runtime for Node or for the web: node consumers_probe.mjs FOLDER PACKAGE
// FOLDER holds node_modules with the package, the programs with their weights, and for each NAME.json its inputs
// {name: {type, dims}} with raw values in NAME.INPUT.bin.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, name] = process.argv.slice(2);
const require = createRequire(join(folder, "package.json"));
const ort = require(name);
const { version } = JSON.parse(readFileSync(join(folder, "node_modules", name, "package.json")));
const rows = [];
for (const file of readdirSync(folder).filter((entry) => entry.endsWith(".onnx.json"))) {
  const program = file.slice(0, -".json".length);
  const row = { program, consumer: name, version };
  try {
    const data = join(folder, `${program}.data`);
    const options = { executionProviders: [name === "onnxruntime-web" ? "wasm" : "cpu"] };
    if (existsSync(data)) options.externalData = [{ path: `${program}.data`, data: new Uint8Array(readFileSync(data)) }];
    const isWeb = name === "onnxruntime-web";
    const model = isWeb ? new Uint8Array(readFileSync(join(folder, program))) : join(folder, program);
    const session = await ort.InferenceSession.create(model, isWeb ? options : {});
    const inputs = {};
    for (const [input, { type, dims }] of Object.entries(JSON.parse(readFileSync(join(folder, file))))) {
      const raw = readFileSync(join(folder, `${program}.${input}.bin`));
      const bytes = raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength);
      const values = type === "int64" ? new BigInt64Array(bytes) : new Float32Array(bytes);
      inputs[input] = new ort.Tensor(type, values, dims);
    }
    const { expected, ...given } = inputs;
    const found = Object.values(await session.run(given))[0].data;
    row.difference = expected.data.reduce((most, value, index) => Math.max(most, Math.abs(value - found[index])), 0);
  } catch (error) {
    row.failed = String(error.message ?? error).slice(0, 160);
  }
  rows.push(row);
}
console.log(JSON.stringify(rows));
