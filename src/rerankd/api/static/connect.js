// Connect: the settings for each program, and a test with the program's request.
import { $, copyButton, el, fill } from "./dom.js";
import { address, ask, asksForKey, key, Refused, send } from "./server.js";
import { t } from "./words.js";

const LOCAL = /^https?:\/\/(localhost|127\.|\[::1\])/;
const HIDDEN_KEY = "••••••";
let clients = [];
let chosen = "";

export async function start() {
  $("address").value = address;
  for (const field of ["address", "model-c"]) $(field).addEventListener("input", show);
  clients = await (await fetch("static/clients.json")).json();
  $("client-list").replaceChildren(...clients.map(({ id, name }) => el("a", { href: `#connect/${id}` }, name)));
  opened();
}

export function opened() {
  const [part, id] = location.hash.slice(1).split("/");
  if (part === "connect" || !chosen) chosen = clients.some((client) => client.id === id) ? id : clients[0]?.id;
  show();
}

export function update({ models, remote }) {
  const before = $("model-c").value;
  fill($("model-c"), [...models, ...remote].flatMap((model) => [model.id, ...model.aliases]));
  if ($("model-c").value !== before) show();
}

function show() {
  const client = clients.find(({ id }) => id === chosen);
  $("local").hidden = !LOCAL.test($("address").value);
  if (!client) return;
  for (const link of $("client-list").children) {
    if (link.hash === `#connect/${chosen}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const result = el("div", { class: "tested", role: "status" });
  // Until the models are known, the first update draws all this again, and a response would be lost.
  const test = el("button", { type: "button", class: "primary", disabled: !$("model-c").value }, t("Test"));
  test.addEventListener("click", () => run(client, test, result));
  const code = client.code ? filled(client.code, false) : "";
  $("client").replaceChildren(
    el("h2", {}, client.name),
    client.where ? el("p", { class: "muted" }, t(client.where)) : "",
    el("dl", { class: "values" }, client.fields.flatMap(([name, value]) => field(name, value))),
    client.note ? el("p", { class: "small muted" }, t(client.note)) : "",
    code ? el("div", { class: "code" }, el("pre", { tabIndex: 0, "aria-label": t("Code") }, el("code", {}, code)), copyButton(() => filled(client.code, true), t("Code"))) : "",
    el("div", { class: "test" }, test, el("p", { class: "small muted" }, t("Sends the request of this program from this page, and checks the response."))),
    result,
  );
}

function field(name, value) {
  const real = filled(value, true);
  const row = [el("dt", {}, name)];
  if (!real) return [...row, el("dd", { class: "muted" }, t("leave empty"))];
  return [...row, el("dd", {}, el("code", {}, filled(value, false)), copyButton(real, name))];
}

/** Fill this server's values into a text of the table; the API key is shown as dots. */
function filled(text, plainKey) {
  const secret = key() && !plainKey ? HIDDEN_KEY : key();
  const base = $("address").value.trim().replace(/\/+$/, "");
  return text
    .replaceAll("{address}", base)
    .replaceAll("{model}", $("model-c").value)
    .replaceAll("{any_key}", secret || (asksForKey ? "" : "none"))
    .replaceAll("{key}", secret);
}

async function run(client, button, result) {
  button.disabled = true;
  const { path, body } = client.request;
  const sent = JSON.parse(JSON.stringify(body).replaceAll('"{model}"', JSON.stringify($("model-c").value)));
  const started = performance.now();
  try {
    const response = await send(path, { method: "POST", body: sent });
    const answer = await response.json().catch(() => null);
    const wrong = response.ok ? flaw(answer, sent) : answer?.message ?? `HTTP ${response.status}`;
    result.replaceChildren(...told(wrong, `POST ${path}`, response.status, performance.now() - started, sent, answer));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    result.replaceChildren(el("p", { class: "wrong" }, t("The server does not respond. Is it running?")));
  }
  button.disabled = false;
}

function told(wrong, line, status, ms, sent, answer) {
  const verdict = wrong ? el("p", { class: "wrong" }, `${t("It does not work:")} ${wrong}`) : el("p", { class: "right" }, t("It works: the response has all fields that this program needs."));
  const block = (title, value, open) => el("details", { open }, el("summary", {}, title), el("pre", { tabIndex: 0 }, el("code", {}, JSON.stringify(value, null, 2))));
  return [verdict, el("p", { class: "small muted" }, `${line} → ${status}, ${ms.toFixed(0)} ms`), block(t("Request"), sent, false), block(t("Response"), answer, true)];
}

/** The error in a response, by the fields that all these programs read; empty if it is valid. */
function flaw(answer, sent) {
  const rows = answer?.results;
  if (!Array.isArray(rows) || !rows.length) return t("the response has no results");
  const scores = rows.map((row) => row.relevance_score);
  if (!rows.every((row) => Number.isInteger(row.index) && row.index in sent.documents)) return t("an index is out of range");
  if (!scores.every((score) => typeof score === "number" && score >= 0 && score <= 1)) return t("a score is not between 0 and 1");
  return scores.every((score, at) => !at || score <= scores[at - 1]) ? "" : t("the results are not sorted by score");
}
