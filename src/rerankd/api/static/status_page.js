// Status page: figures, plots, models with their engines, and the models that can be pulled.
import { $, el } from "./dom.js";
import { ask, code, Refused, send } from "./server.js";
import { bars, format, lines, reliability } from "./plot.js";
import { shown as inWords, t } from "./words.js";

const shown = new Map();

let refresh = async () => {};

export function start(page) {
  refresh = page.refresh;
  $("pull").addEventListener("submit", (event) => {
    event.preventDefault();
    pull($("pull-name").value.trim());
  });
  $("more").addEventListener("toggle", () => $("more").open && catalog());
}

let isAdmin = false;

export function update(status) {
  const { models, cascades, unavailable, remote, unlisted, recent } = status;
  const all = models.length + unavailable.length + remote.length;
  const total = (value) => models.reduce((sum, model) => sum + value(model), 0);
  const elsewhere = (count) => remote.reduce((sum, model) => sum + model[count], 0);
  const well = [...models, ...remote].filter((model) => ["ready", "unloaded"].includes(model.state)).length;
  const time = duration(status.uptime_s);
  $("summary").textContent = well === all ? t("All models are available. Uptime: {time}.", { time }) : t("{n} of {all} models are unavailable. Uptime: {time}.", { n: all - well, all, time });
  const budget = status.memory_budget_bytes;
  const memory = total((model) => model.engine.memory_bytes ?? 0);
  isAdmin = status.admin;
  $("figures").replaceChildren(
    figure(t("Requests in progress"), format(total((model) => model.queue.requests) + elsewhere("requests"))),
    figure(t("Documents in the queue"), format(total((model) => model.queue.documents) + elsewhere("documents")), t("{n} tokens", { n: format(total((model) => model.queue.tokens)) })),
    figure(t("Engine memory"), memory ? size(memory) : "–", budget ? t("budget: {size}", { size: size(budget) }) : ""),
    figure(t("Unexpected engine exits"), format(total((model) => model.engine.lost)), t("since the server started")),
  );
  $("pull").hidden = !status.admin;
  $("plots").replaceChildren(
    bars(t("Requests"), "", recent.requests, recent.failed, recent.step_s),
    lines(t("Latency"), "ms", { median: recent.median_ms, p95: recent.p95_ms }, recent.step_s),
    bars(t("Documents"), "", recent.documents, [], recent.step_s),
    lines(t("Documents in the queue"), "", { now: recent.waiting }, recent.step_s),
    lines(t("Engine memory"), "MiB", { now: recent.memory_bytes.map((bytes) => bytes === null ? null : bytes / 2 ** 20) }, recent.step_s),
    bars(t("Unexpected engine exits"), "", recent.lost, recent.lost, recent.step_s),
  );
  for (const id of shown.keys()) if (!models.some((model) => model.id === id)) shown.delete(id);
  for (const model of models) {
    if (!shown.has(model.id)) shown.set(model.id, card(model.id));
    shown.get(model.id).show(model, status.admin);
  }
  $("unavailable").replaceChildren(...unavailable.map(pending), ...cascades.map(cascade), ...remote.map(elsewhereCard), ...unlisted.map(unlistedCard));
  const cards = models.map((model) => shown.get(model.id).element);
  if ([...$("models").children].some((child, at) => child !== cards[at]) || cards.length !== $("models").children.length) $("models").replaceChildren(...cards);
}

export function lost() {
  $("summary").textContent = t("The server does not respond. Below is its last known status.");
}

function figure(name, value, note = "") {
  return el("div", { class: "card figure" }, el("span", { class: "muted small" }, name), el("strong", {}, value), el("span", { class: "muted small" }, note));
}

/** The card of a model that can't be used: it is being read, or was refused. */
function pending(model) {
  const again = model.retry_after_s === null ? "" : t("Retry in {n} s.", { n: model.retry_after_s });
  return el(
    "article",
    { class: "card model", "aria-label": model.id },
    el("header", {}, el("h3", {}, model.id), el("span", { class: `pill ${model.state}` }, t(model.state))),
    model.error ? el("p", { class: "wrong" }, inWords(model.error, "model_refused")) : el("p", { class: "muted" }, inWords(model.doing) || t("Please wait …")),
    model.state === "refused" ? el("p", { class: "small muted" }, again || t("Reload rerankd to retry.")) : "",
  );
}

/** The card of a cascade: its stages, or why it can't answer. */
function cascade({ id, aliases, stages, error }) {
  const words = stages.map(({ model, keep }) => (keep ? t("{model} for the best {n}", { model, n: keep }) : t("{model} for all documents", { model })));
  return el(
    "article",
    { class: "card model", "aria-label": id },
    el("header", {}, el("h3", {}, id), el("span", { class: "pill" }, t("cascade"))),
    aliases.length ? el("p", { class: "small muted" }, t("aliases: {names}", { names: aliases.join(", ") })) : "",
    el("p", { class: "why" }, words.join(" → ")),
    error ? el("p", { class: "wrong" }, inWords(error, "model_refused")) : "",
  );
}

/** The card of a server that has not listed its models. */
function unlistedCard({ name, state, error }) {
  return el(
    "article",
    { class: "card model", "aria-label": name },
    el("header", {}, el("h3", {}, name), el("span", { class: `pill ${state}` }, t(state))),
    el("p", { class: "why" }, t("The models of this server are not known yet.")),
    error ? el("p", { class: "wrong" }, inWords(error, "remote_error")) : "",
  );
}

/** The card of a model that is served elsewhere: the servers or replicas that answer for it. */
function elsewhereCard({ id, aliases, state, error, places }) {
  const lines = places.map((place) => {
    const counts = t("{n} answered, {failed} failed, {now} in progress", { n: format(place.answered), failed: format(place.failed), now: format(place.requests) });
    const line = el("p", { class: "small" }, el("span", { class: `pill ${place.state}` }, t(place.state)), ` ${place.name}: ${counts}`);
    return place.error ? [line, el("p", { class: "wrong" }, inWords(place.error, "remote_error"))] : [line];
  });
  return el(
    "article",
    { class: "card model", "aria-label": id },
    el("header", {}, el("h3", {}, id), el("span", { class: `pill ${state}` }, t(state))),
    aliases.length ? el("p", { class: "small muted" }, t("aliases: {names}", { names: aliases.join(", ") })) : "",
    el("p", { class: "why" }, t("This model is served elsewhere.")),
    error ? el("p", { class: "wrong" }, inWords(error, "remote_error")) : "",
    ...lines.flat(),
  );
}

/** The card of a model. `show` updates it and keeps opened details open. */
function card(id) {
  const pill = el("span", { class: "pill" });
  const names = el("p", { class: "small muted" });
  const why = el("p", { class: "why" });
  const notes = el("ul", { class: "notes" });
  const wrong = el("p", { class: "wrong" });
  const facts = el("dl", { class: "facts" });
  const calibrated = el("div");
  const log = el("pre", { class: "log", tabIndex: 0, "aria-label": t("Last lines of the engine's log") });
  const where = el("p", { class: "small muted" });
  const actions = buttons(id);
  const element = el("article", { class: "card model", "aria-label": id }, el("header", {}, el("h3", {}, id), pill), names, why, notes, wrong, facts, calibrated, el("details", {}, el("summary", {}, t("Last lines of the engine's log")), where, log), actions.element);

  function show(model, admin) {
    const { engine } = model;
    actions.show(model.state, admin);
    pill.className = `pill ${model.state}`;
    pill.textContent = t(model.state);
    names.textContent = model.aliases.length ? t("aliases: {names}", { names: model.aliases.join(", ") }) : "";
    why.textContent = inWords(model.explain);
    const plain = model.notes.filter((note) => !model.warnings.includes(note));
    notes.replaceChildren(...plain.map((note) => el("li", { class: "plain" }, inWords(note))), ...model.warnings.map((note) => el("li", {}, inWords(note))));
    wrong.textContent = inWords(engine.error ?? "", "engine_unavailable");
    facts.replaceChildren(
      ...fact(t("Method"), `${t(model.method)} → ${model.normalization}`),
      ...fact(t("Maximum length"), t("{n} tokens", { n: format(model.max_length) })),
      ...fact(t("Engine"), [inWords(engine.program), engine.pids.length ? `pid ${engine.pids.join(", ")}` : ""].filter(Boolean).join(", ")),
      ...fact(t("Engine choice"), inWords(engine.why)),
      ...(model.self_test ? fact(t("Self-test"), inWords(model.self_test)) : []),
      ...fact(t("Memory"), Object.entries(engine.memory).map(([device, bytes]) => `${size(bytes)} (${device === "memory" ? t("main memory") : device})`).join(", ") || "–"),
      ...fact(t("Starts"), engine.lost ? t("{n}, unexpected exits: {lost}", { n: engine.starts, lost: engine.lost }) : String(engine.starts)),
      ...(model.queue.tokens_per_second ? fact(t("Throughput"), t("{n} documents/s, {tokens} tokens/s while busy", { n: format(model.queue.documents_per_second), tokens: format(model.queue.tokens_per_second) })) : []),
      ...fact(t("File"), [model.path, size(model.size_bytes), model.quantisation].filter(Boolean).join(", ")),
      ...(model.licence ? fact(t("Licence"), model.licence) : []),
      ...(model.languages.length ? fact(t("Languages"), model.languages.join(" ")) : []),
      ...(Object.keys(model.settings).length ? fact(t("Settings"), Object.entries(model.settings).map(([name, value]) => `${name} = ${JSON.stringify(value)}`).join(", ")) : []),
    );
    calibrated.replaceChildren(...(model.calibration?.reliability.length ? [reliability(model.calibration)] : []));
    where.textContent = engine.log;
    const lines = engine.last_lines.join("\n");
    if (log.textContent !== lines) {
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.textContent = lines;
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
  }
  return { element, show };
}

/** The buttons of a model: load, unload, restart, delete. */
function buttons(id) {
  const said = el("p", { class: "small", role: "status" });
  const act = (method, action, done) => async (button) => {
    button.disabled = true;
    said.className = "small muted";
    said.textContent = t("Please wait …");
    try {
      await ask(`/v1/models/${encodeURIComponent(id)}${action}`, { method });
      said.textContent = t(done);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      said.className = "small wrong";
      said.textContent = error.message || t("The server does not respond. Is it running?");
    }
    button.disabled = false;
    await refresh();
  };
  const make = (name, handle) => {
    const button = el("button", { type: "button" }, t(name));
    button.addEventListener("click", () => handle(button));
    return button;
  };
  const load = make("Load", act("POST", "/load", "The model is loaded."));
  const unload = make("Unload", act("POST", "/unload", "The model is unloaded when its requests are done."));
  const reload = make("Restart", act("POST", "/reload", "A new engine takes over; no request is interrupted."));
  const remove = make("Delete", (button) => {
    if (button.dataset.sure) return act("DELETE", "", "The model is deleted.")(button);
    button.dataset.sure = "yes";
    button.textContent = t("Delete the files?");
    setTimeout(() => {
      delete button.dataset.sure;
      button.textContent = t("Delete");
    }, 4000);
  });
  const element = el("div", { class: "actions" }, load, unload, reload, remove, said);
  function show(state, admin) {
    // A restart does not change the model, so it does not need admin_api.
    load.hidden = !admin || !["unloaded", "failed"].includes(state);
    unload.hidden = !admin || state === "unloaded";
    remove.hidden = !admin;
    reload.hidden = state === "unloaded";
  }
  return { element, show };
}

/** Pull a model on the server and show the progress; the next pull of it resumes where this one was cancelled. */
async function pull(model) {
  const control = new AbortController();
  const bar = el("progress", { max: 1 });
  const said = el("p", { class: "small" }, t("Please wait …"));
  const cancel = el("button", { type: "button", class: "copy" }, t("Cancel"));
  cancel.addEventListener("click", () => control.abort());
  $("pull-progress").replaceChildren(said, bar, cancel);
  const wrong = (message) => $("pull-progress").replaceChildren(el("p", { class: "wrong" }, message));
  let begun = null;
  try {
    const response = await send("/v1/models/pull", { method: "POST", body: { model }, signal: control.signal });
    if (!response.ok) {
      const value = await response.json();
      return wrong(inWords(value.message, code(value)));
    }
    for await (const event of events(response)) {
      if (event.status === "error") return wrong(inWords(event.message, event.code));
      if (event.status === "success") {
        $("pull-progress").replaceChildren(el("p", { class: "right" }, t("{model} is downloaded and served.", { model: event.model })));
        $("pull-name").value = "";
        break;
      }
      // Only downloads count bytes; other steps count small numbers of items.
      const isBytes = event.total > 1000;
      if (!isBytes || begun?.status !== event.status) begun = { status: event.status, at: performance.now(), done: event.completed };
      const speed = isBytes ? ((event.completed - begun.done) / (performance.now() - begun.at)) * 1000 : 0;
      const left = speed > 0 ? [`${size(speed)}/s`, t("{time} left", { time: duration((event.total - event.completed) / speed) })] : [];
      said.textContent = [inWords(event.status), ...(isBytes ? [`${size(event.completed)} / ${size(event.total)}`] : []), ...left].join(" · ");
      if (event.total) bar.value = event.completed / event.total;
      else bar.removeAttribute("value");
    }
  } catch (error) {
    if (control.signal.aborted) wrong(t("Cancelled. What was downloaded is kept; pull it again to resume."));
    else wrong(error.message || t("The server does not respond. Is it running?"));
  }
  await refresh();
}

/** Show the catalog as cards, those that suit this machine first. */
async function catalog() {
  let found;
  try {
    found = (await ask("/v1/catalog")).value;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return $("catalog").replaceChildren(el("p", { class: "wrong" }, error.message || t("The server does not respond. Is it running?")));
  }
  $("quality").textContent = t("Quality is {source}.", { source: t(found.quality_source) });
  const order = (model) => (model.best_for ? 0 : model.fits ? 1 : 2);
  const models = found.models.toSorted((a, b) => order(a) - order(b));
  $("catalog").replaceChildren(
    ...models.map((model) => {
      const button = el("button", { type: "button" }, t("Pull"));
      button.addEventListener("click", () => {
        $("pull").scrollIntoView({ block: "center" });
        pull(model.name);
      });
      const fits = model.fits ? t("fits this machine ({device})", { device: model.fits }) : model.size_mb ? t("too large for this machine") : "";
      const facts = [model.size_mb ? size(model.size_mb * 1e6) : t("size unknown"), model.languages.join(" "), model.licence, model.ndcg10 ? `nDCG@10 ${model.ndcg10.toFixed(3)}` : "", fits];
      return el(
        "article",
        { class: "card", "aria-label": model.name },
        el("header", {}, el("h3", {}, model.name), model.best_for ? el("span", { class: "pill ready" }, t(`best for ${model.best_for}`)) : null),
        el("p", { class: "small muted" }, facts.filter(Boolean).join(" · ")),
        model.pulled ? el("p", { class: "small" }, t("On this machine")) : isAdmin ? button : el("code", { class: "small" }, `rerankd pull ${model.name}`),
      );
    }),
  );
}

/** The events of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line.replace(/^data: /, ""));
  }
}

const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];

export function size(bytes) {
  if (bytes < 1) return "0 B";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at++) bytes /= 1024;
  return `${bytes >= 100 ? bytes.toFixed(0) : bytes.toPrecision(3)} ${units[at]}`;
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return t("{n} s", { n: Math.floor(seconds) });
  if (minutes < 120) return t("{n} min", { n: minutes });
  return minutes < 2880 ? t("{n} h", { n: Math.floor(minutes / 60) }) : t("{n} days", { n: Math.floor(minutes / 1440) });
}
