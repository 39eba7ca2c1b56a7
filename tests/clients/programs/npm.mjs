// Cohere's SDK, LangChain's compressor and Vercel's AI SDK, from the folder of packages that this runs in.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Packages are looked for beside the running file; these are in the working folder.
const { resolve } = createRequire(process.cwd() + "/");
const load = (name) => import(pathToFileURL(resolve(name)));
const { CohereClient, CohereClientV2 } = await load("cohere-ai");
const { CohereRerank } = await load("@langchain/cohere");
const { Document } = await load("@langchain/core/documents");
const { rerank } = await load("ai");
const { createCohere } = await load("@ai-sdk/cohere");

const { urls, key, query, documents } = JSON.parse(process.argv[2]);
const token = key || "none";
const question = { model: "m", query, documents };
const rows = (results) => results.map((row) => [row.index, row.relevanceScore]);

const v1 = new CohereClient({ token, environment: urls["cohere-ai v1"] });
const v2 = new CohereClientV2({ token, environment: urls["cohere-ai v2"] });
const client = new CohereClient({ token, environment: urls["@langchain/cohere"] });
const compressor = new CohereRerank({ client, model: "m", topN: documents.length });
const compressed = await compressor.compressDocuments(
  documents.map((pageContent, at) => new Document({ pageContent, metadata: { at } })),
  query,
);
const cohere = createCohere({ baseURL: urls.ai, apiKey: token });
const { ranking } = await rerank({
  model: cohere.reranking("m"), query, documents, topN: documents.length,
});
const answer = {
  "cohere-ai v1": rows((await v1.rerank(question)).results),
  "cohere-ai v2": rows((await v2.rerank(question)).results),
  "@langchain/cohere": compressed.map((document) => [document.metadata.at, document.metadata.relevanceScore]),
  ai: ranking.map((row) => [row.originalIndex, row.score]),
};
console.log(JSON.stringify(answer));
