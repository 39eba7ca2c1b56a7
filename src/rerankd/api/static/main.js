// The page: sections, API key, language. Each section is a module.
import { $, el } from "./dom.js";
import { ask, asksForKey, key, Refused, setKey } from "./server.js";
import { language, otherLanguage, t, translate } from "./words.js";
import * as api from "./reference.js";
import * as connect from "./connect.js";
import * as status from "./status_page.js";
import * as trial from "./try.js";

const PARTS = { try: trial, status, connect, api };
const POLL_MS = 2000;
const ANSWER_MS = 5000;
let shown = null;
let last = null;

/** Show the section that the URL fragment names. */
function show() {
  const wanted = location.hash.slice(1).split("/")[0];
  shown = wanted in PARTS ? wanted : "try";
  for (const name of Object.keys(PARTS)) $(`part-${name}`).hidden = name !== shown;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${$(`${shown}-title`).textContent} · rerankd`;
  PARTS[shown].opened?.();
  if (last) PARTS[shown].update?.(last);
}

/** Get the status periodically and pass it to the visible section. */
async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}

/** A tab that was hidden shows an old state until it gets a new one. */
async function awake() {
  $("served").classList.toggle("old", document.hidden);
  if (!document.hidden && shown) await refresh();
}

export async function refresh() {
  try {
    last = (await ask("/v1/status", { signal: AbortSignal.timeout(ANSWER_MS) })).value;
    served(last);
    $("served").classList.remove("old");
    $("version").textContent = `rerankd ${last.version}`;
    PARTS[shown].update?.(last);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) return askForKey(true);
    const silent = error.why === "TimeoutError";
    $("served").replaceChildren(el("span", { class: "dot failed" }), silent ? t("No answer for {n} s", { n: ANSWER_MS / 1000 }) : t("No response"));
    PARTS[shown].lost?.(error);
  }
}

function served({ models, unavailable, remote }) {
  const all = [...models, ...unavailable, ...remote];
  if (!all.length) return;
  const worst = all.find((model) => !["ready", "unloaded"].includes(model.state)) ?? all.find((model) => model.state === "ready") ?? all[0];
  const name = all.length === 1 ? all[0].id : t("{n} models", { n: all.length });
  $("served").replaceChildren(el("span", { class: `dot ${worst.state}` }), el("span", { class: "name" }, name), " ", el("span", { class: "muted" }, t(worst.state)));
}

/** Show the key dialog until the server accepts the key. */
function askForKey(wrong) {
  const dialog = $("key-dialog");
  $("key-wrong").textContent = wrong && key() ? t("The API key is wrong. Check the settings of the server.") : "";
  setKey("");
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    $("key-form").onsubmit = async (event) => {
      event.preventDefault();
      setKey($("key").value.trim());
      try {
        last = (await ask("/v1/status")).value;
      } catch (error) {
        if (error.status === 401) {
          $("key-wrong").textContent = t("The API key is wrong. Check the settings of the server.");
          setKey("");
          $("key").select();
          return;
        }
      }
      $("key").value = "";
      $("forget").hidden = false;
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

async function start() {
  document.documentElement.lang = language;
  translate(document.body);
  $("language").textContent = otherLanguage.name;
  $("language").lang = otherLanguage.code;
  $("language").addEventListener("click", otherLanguage.choose);
  $("forget").addEventListener("click", () => {
    setKey("");
    location.reload();
  });
  $("forget").hidden = !key();
  for (const part of Object.values(PARTS)) part.start?.({ refresh });
  addEventListener("hashchange", show);
  document.addEventListener("visibilitychange", awake);
  show();
  if (asksForKey && !key()) await askForKey(false);
  await poll();
}

start();
