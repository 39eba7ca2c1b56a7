// OpenAI's and Ollama's packages for JavaScript: the vectors of texts.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Packages are looked for beside the running file; these are in the working folder.
const { resolve } = createRequire(process.cwd() + "/");
const load = (name) => import(pathToFileURL(resolve(name)));
const { default: OpenAI } = await load("openai");
const { Ollama } = await load("ollama");

const { urls, key, model, documents } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: urls["openai (npm)"], apiKey: key || "none", maxRetries: 0 });
const headers = key ? { Authorization: `Bearer ${key}` } : {};
const ollama = new Ollama({ host: urls["ollama (npm)"], headers });
const rows = async (options) => (await client.embeddings.create({ model, ...options })).data.map((row) => row.embedding);
const answer = {
  "openai (npm)": await rows({ input: documents }),
  "openai, floats": await rows({ input: documents, encoding_format: "float" }),
  "openai, one": await rows({ input: documents[0] }),
  "openai, short": await rows({ input: documents, dimensions: 4 }),
  "ollama (npm)": (await ollama.embed({ model, input: documents })).embeddings,
  "ollama, one": [(await ollama.embeddings({ model, prompt: documents[0] })).embedding],
};
console.log(JSON.stringify(answer));
