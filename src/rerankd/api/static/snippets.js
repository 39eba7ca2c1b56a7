// Code that sends the request: curl, Python and JavaScript. Pure.

/** Return a shell command that sends `body`. */
export function curl(address, path, body, withKey) {
  const header = withKey ? ` \\\n  -H "Authorization: Bearer $RERANKD_API_KEY"` : "";
  return `curl ${address}${path}${header} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

/** Return a Python program that sends `body` and prints the results. */
export function python(address, path, body, withKey) {
  const header = withKey ? `\n    headers={"Authorization": "Bearer " + os.environ["RERANKD_API_KEY"]},` : "";
  return `${withKey ? "import os\n\n" : ""}import requests

answer = requests.post(
    ${JSON.stringify(address + path)},${header}
    json=${literal(body, "    ")},
)
answer.raise_for_status()
for row in answer.json()["results"]:
    print(row["index"], row["relevance_score"])`;
}

/** Return a JavaScript program that sends `body` and prints the results. */
export function javascript(address, path, body, withKey) {
  const header = withKey ? `, authorization: \`Bearer \${process.env.RERANKD_API_KEY}\`` : "";
  return `const response = await fetch(${JSON.stringify(address + path)}, {
  method: "POST",
  headers: { "content-type": "application/json"${header} },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error(await response.text());
for (const row of (await response.json()).results) console.log(row.index, row.relevance_score);`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function literal(value, indent) {
  const inner = `${indent}    `;
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[\n${value.map((item) => `${inner}${literal(item, inner)},\n`).join("")}${indent}]`;
  if (typeof value === "object")
    return `{\n${Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${literal(item, inner)},\n`).join("")}${indent}}`;
  return JSON.stringify(value);
}
