// Try it: rerank with one model, or compare two.
import { $, copy, el, fill } from "./dom.js";
import { fromFile, parse, words } from "./documents.js";
import { address, ask, asksForKey, key, Refused } from "./server.js";
import { curl, python } from "./snippets.js";
import { language, t } from "./words.js";

const SAMPLE = {
  query: "什么是熊猫？",
  documents: ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"],
};
const SHORT = 320;
const PATH = "/v1/rerank";
const FORMS = { lines: "one per line", json: "a JSON array", jsonl: "JSON Lines" };

let body = null;
let answers = [];
let kind = "curl";
let round = 0;

export function start() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
  });
  $("documents").addEventListener("input", count);
  $("sample").addEventListener("click", loadSample);
  $("compare").addEventListener("change", () => ($("second").hidden = !$("compare").checked));
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => read($("file").files[0]));
  $("kinds").addEventListener("click", (event) => {
    if (event.target.dataset.kind) choose(event.target.dataset.kind);
  });
  $("copy-code").addEventListener("click", (event) => copy(code(), event.currentTarget));
  if (/Mac|iPhone|iPad/.test(navigator.platform)) $("ask").querySelector("kbd").textContent = "⌘ ↵";
  dropping($("drop"));
  empty();
  count();
}

export function update({ models }) {
  const names = models.map((model) => model.id);
  fill($("model"), names);
  const chosen = $("model-b").value;
  fill($("model-b"), names);
  if (!chosen && names.length > 1) $("model-b").value = names[1];
  $("lonely").hidden = names.length > 1;
}

function loadSample() {
  $("query").value = SAMPLE.query;
  $("documents").value = SAMPLE.documents.join("\n");
  count();
  run();
}

function count() {
  const { documents, form } = parse($("documents").value);
  $("counted").textContent = documents.length
    ? `${t(documents.length === 1 ? "1 document" : "{n} documents", { n: documents.length })}, ${t(FORMS[form])}`
    : t("One per line, a JSON array, or drop a file here");
}

function dropping(area) {
  let depth = 0;
  const over = (step) => (event) => {
    event.preventDefault();
    depth = Math.max(depth + step, 0);
    area.classList.toggle("over", depth > 0);
  };
  area.addEventListener("dragenter", over(1));
  area.addEventListener("dragleave", over(-1));
  area.addEventListener("dragover", (event) => event.preventDefault());
  area.addEventListener("drop", (event) => {
    depth = 0;
    area.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    read(file);
  });
}

async function read(file) {
  if (!file) return;
  $("documents").value = fromFile(file.name, await file.text());
  $("file").value = "";
  count();
}

function request(model) {
  const asked = { model, query: $("query").value.trim(), documents: parse($("documents").value).documents };
  const top = Number($("top").value);
  if (top > 0) asked.top_n = top;
  const instruction = $("instruction").value.trim();
  if (instruction) asked.instruction = instruction;
  return asked;
}

async function run() {
  const models = [$("model").value, ...($("compare").checked ? [$("model-b").value] : [])];
  const asked = models.map(request);
  const mine = ++round;
  body = asked[0];
  $("answers").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => $("answers").classList.add("waiting"), 150);
  const got = await Promise.all(asked.map(answer));
  clearTimeout(slow);
  if (mine !== round) return;
  $("answers").classList.remove("waiting");
  $("answers").removeAttribute("aria-busy");
  answers = got;
  $("answers").classList.toggle("two", got.length > 1);
  $("answers").replaceChildren(...got.map((one, at) => column(one, asked[at])));
  $("copies").hidden = false;
  choose(kind);
}

async function answer(asked) {
  try {
    return await ask(PATH, { body: asked });
  } catch (error) {
    if (error instanceof Refused) return { error };
    throw error;
  }
}

function empty() {
  const button = el("button", { type: "button", class: "quiet" }, t("Load the example"));
  button.addEventListener("click", loadSample);
  $("answers").replaceChildren(
    el("div", { class: "card empty" }, el("p", {}, t("The results appear here: the documents, ranked by their scores from 0 to 1.")), button),
  );
}

function column({ error, value, response }, asked) {
  if (error) {
    return el(
      "section",
      { class: "card bad", role: "alert" },
      el("h2", {}, asked.model || t("No response")),
      el("p", {}, error.status ? error.message : t("The server does not respond. Is it running?")),
    );
  }
  const ms = (name) => Number(response.headers.get(`x-rerankd-${name}-ms`) ?? 0);
  const cut = new Set(value.meta.cut ?? []);
  const unscored = new Set(value.meta.unscored ?? []);
  const model = asked.model || value.model; // the request was sent before the list of models arrived
  const time = t("{n} documents in {ms} ms", { n: asked.documents.length, ms: round1(ms("total")) });
  const details = [
    t("engine {ms} ms", { ms: round1(ms("engine")) }),
    ms("queue") >= 1 ? t("queue {ms} ms", { ms: round1(ms("queue")) }) : "",
    t("{n} tokens", { n: value.usage.total_tokens }),
    value.meta.cached ? t("{n} from the cache", { n: value.meta.cached }) : "",
  ].filter(Boolean);
  return el(
    "section",
    { class: "card result", "aria-label": t("Results of {model}", { model }) },
    el("header", {}, el("h2", {}, model), el("p", { class: "small muted timing" }, el("strong", {}, time), ` · ${details.join(" · ")}`)),
    value.meta.warnings?.length ? el("ul", { class: "notes" }, value.meta.warnings.map((text) => el("li", {}, text))) : null,
    el("ol", { class: "rows" }, value.results.map((row, at) => line(row, at, asked, { cut, unscored }))),
  );
}

function line(row, at, asked, { cut, unscored }) {
  const score = row.relevance_score;
  const isScored = !unscored.has(row.index);
  const tags = [
    cut.has(row.index) ? tag(t("truncated"), t("Too long: the model read only the beginning")) : null,
    isScored ? null : tag(t("not scored"), t("The time budget or the document limit of the request was reached first")),
  ];
  const bar = el("span", { class: "fill" });
  bar.style.width = `${Math.max(Math.min(score, 1), 0) * 100}%`;
  const item = el(
    "li",
    { class: at === 0 ? "row best" : "row" },
    el("span", { class: "rank", "aria-hidden": "true" }, String(at + 1)),
    el("div", { class: "said" }, text(words(asked.documents[row.index])), ...tags),
    el("span", { class: "score" }, isScored ? number(score) : "–"),
    moved(row.index - at, row.index),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
  );
  item.dataset.index = row.index;
  item.addEventListener("mouseenter", () => together(row.index, true));
  item.addEventListener("mouseleave", () => together(row.index, false));
  return item;
}

function tag(name, title) {
  return el("span", { class: "tag", title }, name);
}

/** Highlight the same document in both columns. */
function together(index, on) {
  if (answers.length < 2) return;
  for (const row of $("answers").querySelectorAll(`[data-index="${index}"]`)) row.classList.toggle("lit", on);
}

function moved(by, index) {
  const from = t("position {n} in the input", { n: index + 1 });
  if (!by) return el("span", { class: "moved", title: from }, el("span", { "aria-hidden": "true" }, "="), el("span", { class: "offscreen" }, from));
  const way = by > 0 ? t("up {n}", { n: by }) : t("down {n}", { n: -by });
  return el("span", { class: by > 0 ? "moved up" : "moved down", title: from }, el("span", { "aria-hidden": "true" }, `${by > 0 ? "▲" : "▼"}${Math.abs(by)}`), el("span", { class: "offscreen" }, `${way}, ${from}`));
}

function text(whole) {
  if (whole.length <= SHORT) return el("p", { class: "text" }, whole);
  const shown = el("p", { class: "text" }, `${whole.slice(0, SHORT - 40).trimEnd()}… `);
  const more = el("button", { type: "button", class: "link" }, t("show all"));
  more.addEventListener("click", () => shown.replaceChildren(whole));
  shown.append(more);
  return shown;
}

const round1 = (ms) => new Intl.NumberFormat(language, { maximumFractionDigits: ms < 100 ? 1 : 0 }).format(ms);

function number(score) {
  return score !== 0 && Math.abs(score) < 0.0001 ? score.toExponential(1) : score.toFixed(4);
}

function code() {
  if (kind === "json") return JSON.stringify(body, null, 2);
  if (kind === "answer") return JSON.stringify(answers.length > 1 ? answers.map(said) : said(answers[0]), null, 2);
  return (kind === "curl" ? curl : python)(address, PATH, body, asksForKey || Boolean(key()));
}

const said = ({ value, error }) => value ?? error.body;

function choose(wanted) {
  kind = wanted;
  for (const button of $("kinds").children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  const whole = code();
  $("code").textContent = whole.length > 4000 ? `${whole.slice(0, 4000)}\n…` : whole;
  $("key-hint").hidden = !(asksForKey || key()) || !["curl", "python"].includes(kind);
}
