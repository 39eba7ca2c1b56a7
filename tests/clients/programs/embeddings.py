"""OpenAI's and Ollama's Python clients: the vectors of texts."""

import json
import sys

import ollama
import openai

task = json.loads(sys.argv[1])
model, texts, key = task["model"], task["documents"], task["key"]
headers = {"Authorization": f"Bearer {key}"} if key else {}
client = openai.OpenAI(base_url=task["urls"]["openai"], api_key=key or "none", max_retries=0)


def openai_rows(sent, **options):
    answer = client.embeddings.create(model=model, input=sent, **options)
    assert answer.usage.total_tokens > 0
    return [row.embedding for row in answer.data]


ollama_client = ollama.Client(host=task["urls"]["ollama"], headers=headers, trust_env=False)
try:
    openai_rows([" "])
    refused = None
except openai.BadRequestError as error:
    refused = error.message
try:
    openai_rows([15339, 1917])
    other_ids = None
except openai.BadRequestError as error:
    other_ids = error.message
answer = {
    "openai": openai_rows(texts),
    "openai, floats": openai_rows(texts, encoding_format="float"),
    "openai, one": openai_rows(texts[0]),
    "openai, short": openai_rows(texts, dimensions=4),
    "openai, ids": openai_rows(task["ids"]),
    "models": [row.id for row in client.models.list().data],
    "ollama": [list(row) for row in ollama_client.embed(model, texts).embeddings],
    "ollama, one": [list(ollama_client.embeddings(model, texts[0]).embedding)],
    "refused": refused,
    "other ids": other_ids,
}
print(json.dumps(answer))
