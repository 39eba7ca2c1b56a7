// Requests to the server. URLs are relative to the page, so that it works behind any prefix.
import { shown } from "./words.js";

const KEY = "rerankd-key";
const base = new URL(".", location.href.split("#")[0]);

export const address = base.href.replace(/\/$/, "");
export const asksForKey = document.documentElement.dataset.key === "yes";

export const key = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** An error response; `status` is 0 if the server did not respond, and `why` tells how: AbortError, TimeoutError … */
export class Refused extends Error {
  constructor(message, status, body, why = "") {
    super(message);
    Object.assign(this, { status, body, why });
  }
}

/** Send a request; return the JSON and the Response. Throws Refused. */
export async function ask(path, { body, headers = {}, method = body === undefined ? "GET" : "POST", signal } = {}) {
  const response = await send(path, { body, headers, method, signal });
  const value = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(shown(message(value) ?? `HTTP ${response.status}`, code(value)), response.status, value);
  return { value, response };
}

/** Send a request; return the Response of any status. Throws Refused if the server does not respond. */
export async function send(path, { body, headers = {}, method, signal }) {
  const sent = { ...headers };
  if (key()) sent.authorization = `Bearer ${key()}`;
  if (body !== undefined) sent["content-type"] ??= "application/json";
  try {
    return await fetch(new URL(path.replace(/^\/+/, ""), base), {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw new Refused("", 0, null, error.name);
  }
}

/** The message in an error of any dialect. */
function message(value) {
  if (!value) return null;
  if (typeof value.message === "string") return value.message;
  if (typeof value.error === "string") return value.error;
  return value.error?.message ?? (typeof value.detail === "string" ? value.detail : null);
}

export const code = (value) => value?.error?.type ?? value?.type ?? value?.code ?? "";
