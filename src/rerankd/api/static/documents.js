// Read typed, pasted and dropped text as documents. Pure.

const TEXT_COLUMN = /^(text|document|content|passage|body|内容|文本|正文|文档)$/i;
const LISTS = ["documents", "texts", "passages", "inputs"];

/**
 * Return the ways to read a text, the most likely one first: `{form, column, documents, query}`. `column` is the
 * name of a CSV
 * column, and `query` that of a pasted request. There is always one, possibly without documents. `isTable`: the
 * text is a file whose name says that it is CSV.
 */
export function readings(text, isTable = false) {
  const trimmed = text.replace(/^\uFEFF/, "").trim();
  const whole = /^[[{]/.test(trimmed) ? json(trimmed) : undefined;
  const list = Array.isArray(whole) ? whole : whole && LISTS.map((name) => whole[name]).find(Array.isArray);
  const found = [];
  if (list?.length && list.every(isDocument)) {
    const query = [whole.query, whole.query?.text].find((value) => typeof value === "string");
    found.push(whole === list ? { form: "json", documents: list } : { form: "request", documents: list, query });
  }
  const lines = trimmed.split(/\r?\n/).filter((line) => line.trim());
  if (!found.length && /^["{]/.test(trimmed)) {
    const values = lines.map(json);
    if (values.every(isDocument)) found.push({ form: "jsonl", documents: values });
  }
  const table = found.length ? [] : columns(trimmed);
  const paragraphs = trimmed.split(/\r?\n[ \t]*(?:\r?\n[ \t]*)+/).map((part) => part.trim()).filter(Boolean);
  const plain = [{ form: "lines", documents: lines.map((line) => line.trim()) }];
  if (paragraphs.length > 1) plain.push({ form: "paragraphs", documents: paragraphs });
  if (paragraphs.length > 1 && paragraphs.some((part) => part.includes("\n"))) plain.reverse();
  return [...found, ...(table.isSure || isTable ? [...table, ...plain] : [...plain, ...table])];
}

/** The text of a document. */
export function words(document) {
  if (typeof document === "string") return document;
  if (isImage(document)) return document.text ?? "";
  if (typeof document.text === "string") return document.text;
  return Object.entries(document)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join("\n");
}

/** Whether a document is an image. */
export const isImage = (document) => typeof document.image === "string";

/** The columns of a table as readings, the one of texts first. `isSure`: it is hardly anything else. */
function columns(text) {
  const separator = [",", "\t", ";"].find((mark) => text.split("\n", 1)[0].includes(mark));
  const rows = separator ? parseCsv(text, separator) : [];
  const [head] = rows;
  if (rows.length < 2 || head.length < 2 || rows.some((row) => row.length !== head.length)) return [];
  const named = head.findIndex((name) => TEXT_COLUMN.test(name.trim()));
  const lengths = head.map((_, at) => rows.reduce((sum, row) => sum + row[at].length, 0));
  const best = named < 0 ? lengths.indexOf(Math.max(...lengths)) : named;
  // Without a name of a text column, the first row counts as a document, and the columns have numbers.
  const found = head.map((name, at) => ({
    form: "csv",
    column: named < 0 ? String(at + 1) : name.trim(),
    documents: (named < 0 ? rows : rows.slice(1)).map((row) => row[at]).filter((cell) => cell.trim()),
  }));
  const ordered = [found[best], ...found.filter((_, at) => at !== best)];
  return Object.assign(ordered, { isSure: named >= 0 || rows.some((row) => row.quoted) });
}

/** Parse CSV to rows of cells, with quotes and line breaks as in RFC 4180. */
export function parseCsv(text, separator = ",") {
  const rows = [[]];
  const cell = new RegExp(`("(?:[^"]|"")*"|[^${separator}\\r\\n]*)(${separator}|\\r?\\n|$)`, "gy");
  for (let found; cell.lastIndex <= text.length && (found = cell.exec(text)); ) {
    const [whole, value, end] = found;
    const isQuoted = value.startsWith('"');
    rows.at(-1).quoted ||= isQuoted;
    rows.at(-1).push(isQuoted ? value.slice(1, -1).replaceAll('""', '"') : value);
    if (!whole || cell.lastIndex >= text.length) break;
    if (end !== separator) rows.push([]);
  }
  return rows.filter((row) => row.some((value) => value.trim()));
}

const isDocument = (value) => typeof value === "string" || (value !== null && typeof value === "object" && !Array.isArray(value));

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
