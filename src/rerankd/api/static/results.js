// The results of a request: ranked documents, filters, export, and the comparison of two models.
import { el, svg } from "./dom.js";
import { isImage, words } from "./documents.js";
import { ask, code, Refused } from "./server.js";
import { language, shown, t } from "./words.js";

const SHORT = 320;
const FEW = 6; // so few documents need no filter
const DRAWN = 60; // lines of a comparison

export function empty(place) {
  place.replaceChildren(el("div", { class: "card empty" }, el("p", {}, t("The results appear here: the documents, ranked by their scores from 0 to 1."))));
}

/** Show the answers to the same request of one model or two: `{value, response}` or `{error}` each. */
export function show(place, answers, asked) {
  const columns = answers.map((one, at) => (one.error ? refused(one.error, asked[at]) : column(one, asked[at], answers.length > 1 && at + 1)));
  const good = answers.map((one, at) => ({ ...one, asked: asked[at] })).filter((one) => one.value);
  const count = good[0]?.value.results.length ?? 0;
  const parts = [
    good.length > 1 ? comparison(good.map((one) => one.value), asked) : null,
    count > FEW ? filters(columns, good) : null,
    el("div", { class: answers.length > 1 ? "columns two" : "columns" }, columns),
  ];
  place.replaceChildren(...parts.filter(Boolean));
}

function refused(error, asked) {
  const { why, status, body, message } = error;
  const timeout = why === "TimeoutError" ? t("The server does not respond.") : t("The server does not respond. Is it running?");
  const restart = el("button", { type: "button" }, t("Restart the engine"));
  restart.addEventListener("click", async () => {
    restart.disabled = true;
    const path = `/v1/models/${encodeURIComponent(asked.model)}/reload`;
    const text = await ask(path, { method: "POST" }).then(() => t("A new engine is starting. Send the request again."), (wrong) => (wrong instanceof Refused ? wrong.message : Promise.reject(wrong)));
    restart.replaceWith(el("p", { class: "small" }, text));
  });
  const isEngine = /^engine_/.test(code(body));
  return el(
    "section",
    { class: "card bad", role: "alert" },
    el("h2", {}, asked.model || t("No response")),
    el("p", {}, status ? message : timeout),
    isEngine ? el("div", { class: "actions" }, restart, el("a", { href: "#status" }, t("Log of the engine"))) : null,
  );
}

/** `compared` is the number of the column, if there are two: both may be of one model. */
function column({ value, response }, asked, compared) {
  const ms = (name) => Number(response.headers.get(`x-rerankd-${name}-ms`) ?? 0);
  const cut = new Set(value.meta.cut ?? []);
  const unscored = new Set(value.meta.unscored ?? []);
  const stages = value.meta.stages ?? [];
  const last = stages.at(-1)?.scored ?? value.results.length;
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
    { class: "card result", "aria-label": (compared ? `${compared}. ` : "") + t("Results of {model}", { model }) },
    el("header", {}, el("h2", {}, model), el("p", { class: "small muted timing" }, el("strong", {}, time), ` · ${details.join(" · ")}`)),
    stages.length ? el("p", { class: "small muted stages" }, stages.map(stageText).join(" → ")) : null,
    value.meta.warnings?.length ? el("ul", { class: "notes" }, value.meta.warnings.map((text) => el("li", {}, warning(text, stages)))) : null,
    el("ol", { class: "rows" }, value.results.map((row, at) => line(row, at, asked, { cut, unscored, isEarlier: at >= last && last > 0, isCompared: Boolean(compared) }))),
  );
}

/** A stage of a cascade: its model, the documents that it scored, and its time. */
const stageText = ({ model, scored, skipped, ms }) => `${model}: ${t("{n} documents in {ms} ms", { n: scored, ms: round1(ms) })}${skipped ? `, ${t("{n} skipped", { n: skipped })}` : ""}`;

/** A cascade's warning begins with the model of the stage. */
function warning(text, stages) {
  const prefix = stages.map(({ model }) => `${model}: `).find((one) => text.startsWith(one)) ?? "";
  return prefix + shown(text.slice(prefix.length));
}

function line(row, at, asked, { cut, unscored, isEarlier, isCompared }) {
  const score = row.relevance_score;
  const isScored = !unscored.has(row.index);
  const tags = [
    cut.has(row.index) ? tag(t("truncated"), t("Too long: the model read only the beginning")) : null,
    isEarlier && isScored ? tag(t("earlier stage"), t("The last stage did not score it, so its score is limited by those above")) : null,
    isScored ? null : tag(t("not scored"), t("The time budget or the document limit of the request was reached first")),
  ];
  const bar = el("span", { class: "fill" });
  bar.style.width = `${Math.max(Math.min(score, 1), 0) * 100}%`;
  const document = asked.documents[row.index];
  const whole = words(document);
  const item = el(
    "li",
    { class: at === 0 ? "row best" : "row" },
    el("span", { class: "rank", "aria-hidden": "true" }, String(at + 1)),
    el("div", { class: "said" }, isImage(document) ? el("img", { src: document.image, alt: t("image {n}", { n: row.index + 1 }), class: "thumbnail" }) : null, text(whole), ...tags),
    el("span", { class: "score" }, isScored ? number(score) : "–"),
    moved(row.index - at, row.index),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
  );
  Object.assign(item, { score: isScored ? score : -1, whole: whole.toLowerCase() });
  item.dataset.index = row.index;
  for (const [event, on] of isCompared ? [["mouseenter", true], ["mouseleave", false]] : []) {
    item.addEventListener(event, () => together(item, on));
  }
  return item;
}

const tag = (name, title) => el("span", { class: "tag", title }, name);

/** Highlight the same document in both columns. */
function together(item, on) {
  for (const row of item.closest(".columns").querySelectorAll(`[data-index="${item.dataset.index}"]`)) row.classList.toggle("lit", on);
}

function moved(by, index) {
  const from = t("position {n} in the input", { n: index + 1 });
  if (!by) return el("span", { class: "moved", title: from }, el("span", { "aria-hidden": "true" }, "="), el("span", { class: "offscreen" }, from));
  const way = by > 0 ? t("up {n}", { n: by }) : t("down {n}", { n: -by });
  return el("span", { class: by > 0 ? "moved up" : "moved down", title: from }, el("span", { "aria-hidden": "true" }, `${by > 0 ? "▲" : "▼"}${Math.abs(by)}`), el("span", { class: "offscreen" }, `${way}, ${from}`));
}

function text(whole) {
  if (whole.length <= SHORT) return el("p", { class: "text" }, whole);
  const part = el("p", { class: "text" }, `${whole.slice(0, SHORT - 40).trimEnd()}… `);
  const more = el("button", { type: "button", class: "link" }, t("show all"));
  more.addEventListener("click", () => part.replaceChildren(whole));
  part.append(more);
  return part;
}

/** A filter by text and by score over all columns, and the export. */
function filters(columns, answers) {
  const find = el("input", { type: "text", placeholder: t("Filter"), "aria-label": t("Filter") });
  const least = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": t("Lowest score") });
  const said = el("span", { class: "small muted", role: "status" });
  const apply = () => {
    const lists = columns.map((one) => [...one.querySelectorAll(".row")]).filter((rows) => rows.length);
    const lowest = Number(least.value);
    for (const row of lists.flat()) row.hidden = (lowest > 0 && row.score < lowest) || !row.whole.includes(find.value.trim().toLowerCase());
    const left = lists[0].filter((row) => !row.hidden).length;
    said.textContent = t("{n} of {all} · score from {score}", { n: left, all: lists[0].length, score: lowest.toFixed(2) });
  };
  find.addEventListener("input", apply);
  least.addEventListener("input", apply);
  const save = (name, type, make) => {
    const button = el("button", { type: "button", class: "copy" }, name);
    button.addEventListener("click", () => {
      const link = el("a", { href: URL.createObjectURL(new Blob([make()], { type })), download: `rerankd.${name.toLowerCase()}` });
      link.click();
      URL.revokeObjectURL(link.href);
    });
    return button;
  };
  const records = () => answers.flatMap(({ value, asked }) => value.results.map((row, rank) => ({ model: asked.model || value.model, rank: rank + 1, index: row.index, score: row.relevance_score, text: words(asked.documents[row.index]) })));
  apply();
  return el(
    "div",
    { class: "card filters" },
    find,
    el("label", { class: "grow" }, least, said),
    el("span", { class: "small muted" }, t("Export")),
    save("CSV", "text/csv", () => csv(records())),
    save("JSON", "application/json", () => JSON.stringify(records(), null, 2)),
  );
}

function csv(records) {
  // A cell that begins like a formula would be computed by a spreadsheet.
  const cell = (value) => `"${String(value).replace(/^(?=[=+@\t])/, "'").replaceAll('"', '""')}"`;
  return [Object.keys(records[0]), ...records.map(Object.values)].map((row) => row.map(cell).join(",")).join("\r\n");
}

/** How much two models agree: the overlap of their best, the change of each rank, the largest changes. */
function comparison(values, asked) {
  const orders = values.map((value) => value.results.map((row) => row.index));
  const ranks = orders.map((order) => new Map(order.map((index, at) => [index, at])));
  const both = orders[0].filter((index) => ranks[1].has(index));
  const overlaps = [1, 3, 5, 10, 20].filter((k) => k < both.length).map((k) => {
    const first = new Set(orders[0].slice(0, k));
    return t("top {k}: {n} in common", { k, n: orders[1].slice(0, k).filter((index) => first.has(index)).length });
  });
  const change = (index) => ranks[0].get(index) - ranks[1].get(index);
  const movers = both.filter(change).sort((a, b) => Math.abs(change(b)) - Math.abs(change(a))).slice(0, 3);
  const rows = Math.min(Math.max(...orders.map((order) => order.length)), DRAWN);
  const drawn = both.filter((index) => Math.min(ranks[0].get(index), ranks[1].get(index)) < rows);
  const kind = (index) => (change(index) > 0 ? "line up" : change(index) < 0 ? "line down" : "line same");
  const y = (rank) => 5 + rank * 10;
  const lines = drawn.map((index) => svg("path", { class: kind(index), d: `M0 ${y(ranks[0].get(index))}L100 ${y(ranks[1].get(index))}` }));
  const label = t("Rank changes from {a} to {b}", { a: asked[0].model, b: asked[1].model });
  return el(
    "section",
    { class: "card compared" },
    el("h2", {}, t("Comparison")),
    el("p", { class: "small muted" }, overlaps.join(" · ")),
    svg("svg", { viewBox: `0 0 100 ${rows * 10}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...lines),
    movers.length ? el("ul", { class: "small" }, movers.map((index) => el("li", {}, `${change(index) > 0 ? "▲" : "▼"} ${ranks[0].get(index) + 1} → ${ranks[1].get(index) + 1}: ${words(asked[0].documents[index]).slice(0, 90)}`))) : el("p", { class: "small" }, t("Both rank the documents in the same order.")),
  );
}

const round1 = (ms) => new Intl.NumberFormat(language, { maximumFractionDigits: ms < 100 ? 1 : 0 }).format(ms);

const number = (score) => (score !== 0 && Math.abs(score) < 0.0001 ? score.toExponential(1) : score.toFixed(4));
