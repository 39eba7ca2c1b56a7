"""Dify's own code behind the provider OpenAI-API-compatible, model type Rerank.

A process of its own, since the SDK patches the standard library (gevent) at import. A new object for each
call: one that has failed can't be used again.
"""

import json
import sys

from dify_plugin.interfaces.model.openai_compatible.rerank import OAICompatRerankModel

task = json.loads(sys.argv[1])
credentials = {"endpoint_url": task["urls"]["all"]}
if task["key"]:
    credentials["api_key"] = task["key"]
if task.get("endpoint_model_name"):
    credentials["endpoint_model_name"] = task["endpoint_model_name"]

answer = {}
try:
    OAICompatRerankModel([]).validate_credentials("my-model", credentials)
    answer["validated"] = True
    for name, options in {
        "all": {},
        "top 2": {"top_n": 2},
        "threshold": {"score_threshold": 0.5},
    }.items():
        result = OAICompatRerankModel([]).invoke(
            model="my-model",
            credentials=credentials,
            query=task["query"],
            docs=task["documents"],
            **{"score_threshold": None, "top_n": None, **options},
        )
        answer[name] = [[row.index, row.score, row.text] for row in result.docs]
except Exception as error:  # what a user of Dify would see
    answer["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(answer))
