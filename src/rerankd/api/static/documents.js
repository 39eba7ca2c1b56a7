// Parse typed text and dropped files into documents. Pure.

/** Parse a text to `{documents, form}`: a JSON array, JSON Lines, or one document per line. */
export function parse(text) {
  const trimmed = text.trim();
  if (!trimmed) return { documents: [], form: "lines" };
  if (trimmed.startsWith("[")) {
    const list = json(trimmed);
    if (Array.isArray(list) && list.every(isDocument)) return { documents: list, form: "json" };
  }
  const lines = trimmed.split(/\r?\n/).filter((line) => line.trim());
  if (/^["{]/.test(trimmed)) {
    const values = lines.map(json);
    if (values.every(isDocument)) return { documents: values, form: "jsonl" };
  }
  return { documents: lines.map((line) => line.trim()), form: "lines" };
}

/** The text of a document. */
export function words(document) {
  if (typeof document === "string") return document;
  if (typeof document.text === "string") return document.text;
  return Object.entries(document)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join("\n");
}

/** Convert a dropped file to the text of the documents field. */
export function fromFile(name, text) {
  if (!/\.csv$/i.test(name)) return text.replace(/^\uFEFF/, "").trim();
  const [head, ...rows] = parseCsv(text.replace(/^\uFEFF/, ""));
  const column = textColumn(head ?? [], rows);
  const named = /^(text|document|content|passage|body|内容|文本|正文)$/i.test(head?.[column]?.trim() ?? "");
  const cells = (named ? rows : [head ?? [], ...rows]).map((row) => row[column] ?? "").filter((cell) => cell.trim());
  return cells.some((cell) => /[\r\n]/.test(cell)) ? cells.map((cell) => JSON.stringify(cell)).join("\n") : cells.join("\n");
}

/** Parse CSV to rows of cells, with quotes and line breaks as in RFC 4180. */
export function parseCsv(text) {
  const rows = [[]];
  const cell = /("(?:[^"]|"")*"|[^,\r\n]*)(,|\r?\n|$)/gy;
  for (let found; cell.lastIndex <= text.length && (found = cell.exec(text)); ) {
    const [whole, value, end] = found;
    rows.at(-1).push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
    if (!whole || cell.lastIndex >= text.length) break;
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.some((value) => value.trim()));
}

function textColumn(head, rows) {
  const named = head.findIndex((name) => /^(text|document|content|passage|body|内容|文本|正文)$/i.test(name.trim()));
  if (named >= 0) return named;
  const lengths = head.map((_, at) => rows.reduce((sum, row) => sum + (row[at]?.length ?? 0), 0));
  return lengths.indexOf(Math.max(...lengths, 0));
}

const isDocument = (value) => typeof value === "string" || (value !== null && typeof value === "object" && !Array.isArray(value));

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
