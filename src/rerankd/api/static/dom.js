// Create elements, copy text.
import { t } from "./words.js";

export const $ = (id) => document.getElementById(id);

/** Create an element. `what`: properties, "class", or attributes with a dash; children: nodes or text. */
export function el(tag, what = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(what)) {
    if (name === "class") made.className = value;
    else if (name.includes("-") || name === "role" || name === "lang") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Copy `text`, also over plain HTTP from another machine, where the browser offers no clipboard API. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, class: "offscreen" });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const said = button.textContent;
  if (button.dataset.busy) return;
  button.dataset.busy = "yes";
  button.textContent = t("Copied");
  setTimeout(() => {
    button.textContent = said;
    delete button.dataset.busy;
  }, 1200);
}

export function copyButton(text, of) {
  const button = el("button", { type: "button", class: "copy", "aria-label": t("Copy {what}", { what: of }) }, t("Copy"));
  button.addEventListener("click", () => copy(typeof text === "function" ? text() : text, button));
  return button;
}

/** Set the options of a select; keep the chosen one if it still exists. */
export function fill(select, values) {
  const chosen = select.value;
  if ([...select.options].map((option) => option.value).join("\n") === values.join("\n")) return;
  select.replaceChildren(...values.map((value) => el("option", { value }, value)));
  if (values.includes(chosen)) select.value = chosen;
}
