// Try it: the form, and its requests to one model or two.
import { $, copy, el, fill } from "./dom.js";
import { readings } from "./documents.js";
import * as results from "./results.js";
import { address, ask, asksForKey, key, Refused } from "./server.js";
import { curl, javascript, python } from "./snippets.js";
import { language, t } from "./words.js";

const SEEN = "rerankd-seen";
const SAMPLE = {
  en: {
    query: "What do pandas eat?",
    documents: [
      "Bread is baked from flour, water, salt and yeast.",
      "The giant panda is a bear that lives in the mountains of China.",
      "Bamboo is almost the whole diet of a giant panda: up to 38 kg a day.",
      "The red panda is a relative of raccoons and weasels.",
      "Koalas sleep up to 20 hours a day and eat eucalyptus leaves.",
    ],
  },
  zh: {
    query: "熊猫吃什么？",
    documents: [
      "面包由面粉、水、盐和酵母烤制而成。",
      "大熊猫是一种生活在中国山区的熊科动物。",
      "竹子几乎是大熊猫的全部食物，它一天最多能吃 38 公斤。",
      "小熊猫与浣熊和鼬有亲缘关系。",
      "考拉每天睡眠可达 20 小时，以桉树叶为食。",
    ],
  },
}[language];
const PATH = "/v1/rerank";
const FORMS = { lines: "one per line", paragraphs: "separated by empty lines", json: "a JSON array", jsonl: "JSON Lines", csv: "CSV, column {column}", request: "a request" };
const CODE = { curl, python, javascript };

let body = null;
let answers = [];
let kind = "curl";
let ways = readings(""); // how the documents' text can be read
let chosen = 0; // which of them is taken
let ongoing = null;
let images = []; // documents that are images: {image: "data:…"}

export function start() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run({ isShown: true });
  });
  $("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
  });
  $("documents").addEventListener("input", () => read($("documents").value));
  $("reading").addEventListener("change", () => {
    chosen = Number($("reading").value);
    count();
  });
  $("sample").addEventListener("click", () => {
    show(SAMPLE);
    run({ isShown: true });
  });
  $("clear").addEventListener("click", () => {
    show({ query: "", documents: [] });
    $("query").focus();
  });
  $("compare").addEventListener("change", () => {
    $("second").hidden = !$("compare").checked;
    chooseOther();
  });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => open($("file").files[0]));
  $("kinds").addEventListener("click", (event) => {
    if (event.target.dataset.kind) choose(event.target.dataset.kind);
  });
  $("copy-code").addEventListener("click", (event) => copy(code(), event.currentTarget));
  $("cancel").addEventListener("click", () => ongoing?.abort());
  if (/Mac|iPhone|iPad/.test(navigator.platform)) $("ask").querySelector("kbd").textContent = "⌘ ↵";
  dropping($("drop"));
  results.empty($("answers"));
  read("");
}

function chooseOther() {
  const other = [...$("model-b").options].find((option) => option.value !== $("model").value);
  if (other && $("model-b").value === $("model").value) $("model-b").value = other.value;
}

export function update({ models, cascades, remote }) {
  const names = [...cascades.filter((one) => !one.error), ...models, ...remote].map((one) => one.id);
  fill($("model"), names);
  const isFirst = !$("model-b").value;
  fill($("model-b"), names);
  if (isFirst) chooseOther();
  $("lonely").hidden = names.length > 1;
  // The first visit shows a ranked example. It must not load a model, and not replace what was typed meanwhile.
  const needed = cascades.length ? models : [...models, ...remote].slice(0, 1);
  if (needed.length && needed.every((model) => model.state === "ready") && !localStorage.getItem(SEEN) && !$("query").value && !$("documents").value) {
    localStorage.setItem(SEEN, "yes");
    show(SAMPLE);
    run({ isShown: false });
  }
}

function show({ query, documents }) {
  images = [];
  thumbnails();
  $("query").value = query;
  $("documents").value = documents.join("\n");
  read($("documents").value);
}

/** Read the text of the documents field in the most likely way. */
function read(text, isTable = false) {
  chosen = 0;
  ways = readings(text, isTable);
  const [{ query }] = ways;
  if (query && !$("query").value) $("query").value = query;
  count();
}

/** Say how the text is read; the select offers the other ways. */
function count() {
  const { form, column, documents } = ways[chosen];
  const counted = t(documents.length === 1 ? "1 document" : "{n} documents", { n: documents.length });
  const way = ways.length > 1 ? "" : t(FORMS[form], { column });
  $("counted").textContent = documents.length ? `${counted}, ${way}` : t("One per line, CSV, JSON, or drop a file here");
  const options = ways.map((way, at) => el("option", { value: at, selected: at === chosen }, t(FORMS[way.form], { column: way.column })));
  $("reading").replaceChildren(...options);
  $("reading").hidden = ways.length < 2;
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
    open(file);
  });
}

async function open(file) {
  if (!file) return;
  if (file.type.startsWith("image/")) {
    images.push({ image: await dataUri(file) });
    $("file").value = "";
    return thumbnails();
  }
  const text = (await file.text()).replace(/^\uFEFF/, "").trim();
  $("documents").value = text;
  $("file").value = "";
  read(text, /\.(csv|tsv)$/i.test(file.name));
}

function dataUri(file) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.readAsDataURL(file);
  });
}

/** Show the images as buttons that remove them. */
function thumbnails() {
  const label = t("Remove this image");
  const buttons = images.map((one) => {
    const button = el("button", { type: "button", "aria-label": label, title: label }, el("img", { src: one.image, alt: "", class: "thumbnail" }));
    button.addEventListener("click", () => {
      images = images.filter((other) => other !== one);
      thumbnails();
    });
    return button;
  });
  $("images").replaceChildren(...buttons);
  $("documents").required = !images.length;
}

function request(model) {
  const asked = { model, query: $("query").value.trim(), documents: [...ways[chosen].documents, ...images] };
  const top = Number($("top").value);
  if (top > 0) asked.top_n = top;
  const instruction = $("instruction").value.trim();
  if (instruction) asked.instruction = instruction;
  return asked;
}

/** Send the form. With `isShown`, the results come into view: on a phone, they are below the form. */
async function run({ isShown }) {
  ongoing?.abort();
  const mine = (ongoing = new AbortController());
  const models = [$("model").value, ...($("compare").checked ? [$("model-b").value] : [])];
  const asked = models.map(request);
  const stop = waiting();
  const got = await Promise.all(asked.map((one) => answer(one, mine.signal)));
  if (mine !== ongoing) return;
  ongoing = null;
  stop();
  if (mine.signal.aborted) return;
  body = asked[0];
  answers = got;
  results.show($("answers"), got, asked);
  $("copies").hidden = false;
  choose(kind);
  if (isShown && $("answers").getBoundingClientRect().top > innerHeight * 0.6) $("answers").scrollIntoView({ block: "start" });
}

async function answer(asked, signal) {
  try {
    return await ask(PATH, { body: asked, signal });
  } catch (error) {
    if (error instanceof Refused) return { error };
    throw error;
  }
}

/** Show the elapsed time, and dim the old results; return what ends it. Soon done is not shown at all. */
function waiting() {
  const begun = performance.now();
  const tick = () => {
    const seconds = (performance.now() - begun) / 1000;
    if (seconds < 0.15) return;
    $("answers").classList.add("waiting");
    $("progress").hidden = false;
    $("elapsed").textContent = t("{n} s", { n: seconds.toFixed(1) });
  };
  $("answers").setAttribute("aria-busy", "true");
  const timer = setInterval(tick, 100);
  return () => {
    clearInterval(timer);
    $("progress").hidden = true;
    $("answers").classList.remove("waiting");
    $("answers").removeAttribute("aria-busy");
  };
}

function code() {
  if (kind === "json") return JSON.stringify(body, null, 2);
  if (kind === "answer") return JSON.stringify(answers.length > 1 ? answers.map(sent) : sent(answers[0]), null, 2);
  return CODE[kind](address, PATH, body, asksForKey || Boolean(key()));
}

const sent = ({ value, error }) => value ?? error.body;

function choose(wanted) {
  kind = wanted;
  for (const button of $("kinds").children) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  const whole = code();
  $("code").textContent = whole.length > 4000 ? `${whole.slice(0, 4000)}\n…` : whole;
  $("key-hint").hidden = !(asksForKey || key()) || !(kind in CODE);
}
