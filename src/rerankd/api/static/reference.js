// The API reference, from openapi.json.
import { $, copyButton, el } from "./dom.js";
import { ask } from "./server.js";
import { t } from "./words.js";

let asked = false;

export async function opened() {
  if (asked) return;
  asked = true;
  const { value } = await ask("/openapi.json");
  const entries = Object.entries(value.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, what]) => ({ path, method, what })));
  const order = { post: 0, get: 1, delete: 2 };
  entries.sort((a, b) => Number(!a.path.endsWith("rerank")) - Number(!b.path.endsWith("rerank")) || (order[a.method] ?? 3) - (order[b.method] ?? 3));
  $("paths").replaceChildren(...entries.map((entry) => operation(entry, value)));
}

function operation({ path, method, what }, whole) {
  const body = what.requestBody?.content["application/json"]?.schema;
  const bodies = body ? (body.anyOf ?? [body]).map((schema) => resolved(schema, whole)) : [];
  const parts = el(
    "details",
    { class: "card operation" },
    el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), el("code", {}, path), el("span", { class: "muted" }, what.summary ?? "")),
    bodies.map((schema) => fields(schema, whole, bodies.length > 1)),
    el("h2", {}, t("Responses")),
    el("table", {}, el("tbody", {}, Object.entries(what.responses).map(([status, answer]) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, status)), el("td", {}, answer.description))))),
  );
  return parts;
}

function fields(schema, whole, named) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) =>
    el("tr", {}, el("th", { scope: "row" }, el("code", {}, name), schema.required?.includes(name) ? el("span", { class: "tag" }, t("required")) : null), el("td", { class: "muted" }, kind(resolved(field, whole), whole)), el("td", {}, field.description ?? "")),
  );
  const example = schema.example ? JSON.stringify(schema.example, null, 2) : "";
  return [
    el("h2", {}, named ? t("Body: {name}", { name: schema.title }) : t("Body")),
    el("div", { class: "scroll", tabIndex: 0, role: "group", "aria-label": schema.title ?? t("Body") }, el("table", {}, el("tbody", {}, rows))),
    example ? el("div", { class: "code" }, el("pre", { tabIndex: 0 }, el("code", {}, example)), copyButton(example, t("Example"))) : null,
  ];
}

function resolved(schema, whole) {
  return schema?.$ref ? whole.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

function kind(schema, whole) {
  if (!schema) return "";
  if (schema.anyOf) return [...new Set(schema.anyOf.map((one) => kind(resolved(one, whole), whole)))].filter((name) => name !== "null").join(" | ");
  if (schema.type === "array") return `[${kind(resolved(schema.items, whole), whole)}]`;
  return schema.type ?? "";
}
