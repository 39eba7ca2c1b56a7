// Status: figures, plots, models with their engines.
import { $, el } from "./dom.js";
import { bars, format, lines } from "./plot.js";
import { t } from "./words.js";

const shown = new Map();

export function update(status) {
  const { models, queue, recent } = status;
  const ready = models.filter((model) => model.state === "ready").length;
  $("summary").textContent =
    ready === models.length ? t("Everything is ready. Up for {time}.", { time: duration(status.uptime_s) }) : t("{n} of {all} models are ready. Up for {time}.", { n: ready, all: models.length, time: duration(status.uptime_s) });
  $("figures").replaceChildren(
    figure(t("Requests under way"), format(queue.requests)),
    figure(t("Documents waiting"), format(queue.documents)),
    figure(t("Documents a second"), format(queue.documents_per_second), t("while it works")),
    figure(t("Engines lost"), format(models.reduce((sum, model) => sum + model.engine.lost, 0)), t("since the start")),
  );
  $("plots").replaceChildren(
    bars(t("Requests"), "", recent.requests, recent.failed, recent.step_s),
    lines(t("Time to answer"), "ms", { median: recent.median_ms, p95: recent.p95_ms }, recent.step_s),
    bars(t("Documents"), "", recent.documents, [], recent.step_s),
  );
  for (const id of shown.keys()) if (!models.some((model) => model.id === id)) shown.delete(id);
  for (const model of models) {
    if (!shown.has(model.id)) shown.set(model.id, card(model.id));
    shown.get(model.id).show(model);
  }
  const cards = models.map((model) => shown.get(model.id).element);
  if ([...$("models").children].some((child, at) => child !== cards[at]) || cards.length !== $("models").children.length) $("models").replaceChildren(...cards);
}

export function lost() {
  $("summary").textContent = t("The server does not answer. What is below is what it said last.");
}

function figure(name, value, note = "") {
  return el("div", { class: "card figure" }, el("span", { class: "muted small" }, name), el("strong", {}, value), el("span", { class: "muted small" }, note));
}

/** A model's card; `show` brings it up to date and leaves open what a person has opened. */
function card(id) {
  const pill = el("span", { class: "pill" });
  const names = el("p", { class: "small muted" });
  const why = el("p", { class: "why" });
  const notes = el("ul", { class: "notes" });
  const wrong = el("p", { class: "wrong" });
  const facts = el("dl", { class: "facts" });
  const log = el("pre", { class: "log", tabIndex: 0, "aria-label": t("Last lines of the engine") });
  const where = el("p", { class: "small muted" });
  const element = el("article", { class: "card model", "aria-label": id }, el("header", {}, el("h3", {}, id), pill), names, why, notes, wrong, facts, el("details", {}, el("summary", {}, t("Last lines of the engine")), where, log));

  function show(model) {
    const { engine } = model;
    pill.className = `pill ${model.state}`;
    pill.textContent = t(model.state);
    names.textContent = model.aliases.length ? t("also {names}", { names: model.aliases.join(", ") }) : "";
    why.textContent = model.explain;
    notes.replaceChildren(...model.notes.map((note) => el("li", {}, note)));
    wrong.textContent = engine.error ?? "";
    facts.replaceChildren(
      ...fact(t("Scored as"), `${t(model.way)} → ${model.transform}`),
      ...fact(t("Window"), t("{n} tokens", { n: format(model.window) })),
      ...fact(t("Engine"), engine.pid ? `${engine.program}, pid ${engine.pid}` : engine.program),
      ...fact(t("Memory"), engine.memory_bytes ? size(engine.memory_bytes) : "–"),
      ...fact(t("Restarts"), engine.lost ? t("{n}, of which {lost} unasked", { n: Math.max(engine.starts - 1, 0), lost: engine.lost }) : String(Math.max(engine.starts - 1, 0))),
      ...fact(t("File"), [model.path, size(model.size_bytes), model.quantisation].filter(Boolean).join(", ")),
      ...(model.licence ? fact(t("Licence"), model.licence) : []),
      ...(model.languages.length ? fact(t("Languages"), model.languages.join(" ")) : []),
    );
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

const fact = (name, value) => [el("dt", {}, name), el("dd", {}, value)];

export function size(bytes) {
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
