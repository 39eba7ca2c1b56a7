"""Ollama's Python client: list, show, loaded models, keep_alive."""

import json
import sys

import ollama

task = json.loads(sys.argv[1])
headers = {"Authorization": f"Bearer {task['key']}"} if task["key"] else {}
client = ollama.Client(host=task["urls"]["all"], headers=headers, trust_env=False)


def loaded():
    return [[row.name, row.context_length, row.expires_at.year] for row in client.ps().models]


(name,) = [row.model for row in client.list().models]
shown = client.show(name)
loads = client.generate(name, keep_alive="5m")
while_loaded = loaded()
client.generate(name, keep_alive=-1)
for_good = loaded()
unloads = client.generate(name, keep_alive=0)
after = loaded()
client.generate(name)
try:
    client.generate(name, "Why is the sky blue?")
    refused = None
except ollama.ResponseError as error:
    refused = [error.status_code, error.error]
answer = {
    "name": name,
    "shown": [shown.capabilities, shown.details.family, shown.modelinfo["general.architecture"]],
    "reasons": [loads.done_reason, unloads.done_reason],
    "loaded": [while_loaded, for_good, after],
    "refused": refused,
}
print(json.dumps(answer))
