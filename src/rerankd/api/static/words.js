// The language of the page, and its texts in this language.
//
// chinese.json has, by the English text: `page`, the page's own texts; `server`, sentences and clauses of the server
// with a placeholder for each part that varies; `errors`, by the error's code, what an error means in general.

const LANGUAGE = "rerankd-language";

const preferred = localStorage.getItem(LANGUAGE) ?? navigator.language;
export const language = /^zh\b/i.test(preferred) ? "zh" : "en";

const chinese = language === "zh" ? await (await fetch(new URL("chinese.json", import.meta.url))).json() : null;

/** The language that the switch in the footer offers. */
export const otherLanguage = {
  name: language === "zh" ? "English" : "中文",
  code: language === "zh" ? "en" : "zh",
  choose() {
    localStorage.setItem(LANGUAGE, otherLanguage.code);
    location.reload();
  },
};

/** Translate `english` and replace each `{name}` by its value. */
export function t(english, values = {}) {
  const text = chinese?.page[english] ?? english;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** A sentence of the server in the page's language. `code` is that of an error. */
export function shown(english, code = "") {
  return (chinese && english && (translated(english) ?? chinese.errors[code])) || english;
}

/** Translate a sentence as a whole, or clause by clause; null if a part is unknown. */
function translated(english) {
  for (const [pattern, text] of patterns()) {
    const found = pattern.exec(english);
    if (found) return text.replace(/\{(\w+)\}/g, (whole, name) => translated(found.groups[name]) ?? found.groups[name]);
  }
  const clauses = english.split(/; |(?<=\.) (?=[A-Z])/);
  const parts = clauses.length > 1 ? clauses.map(translated) : [null];
  return parts.includes(null) ? null : parts.join(/[.]$/.test(english) ? "" : "；");
}

let compiled = null;
const patterns = () => (compiled ??= Object.entries(chinese.server).map(([english, text]) => [pattern(english), text]));
const pattern = (english) => new RegExp(`^${english.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{(\w+)\}/g, "(?<$1>.+?)")}$`, "s");

/** Translate the marked texts of the page. */
export function translate(root) {
  if (language === "en") return;
  for (const one of root.querySelectorAll("[data-t]")) one.textContent = t(one.textContent);
  for (const one of root.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.dataset.tLabel));
  for (const one of root.querySelectorAll("[data-t-placeholder]")) one.placeholder = t(one.dataset.tPlaceholder);
}
