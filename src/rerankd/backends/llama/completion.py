"""(pure) Causal-LM scoring with llama.cpp's `/completion`: the log-odds of two labels after a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# The largest log-odds that float32 probabilities can express: exp(-87) is the smallest normal number.
_LARGEST_LOG_ODDS = 87.0


def body(prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> dict[str, Any]:
    """Return the request body for the probabilities of the two labels after each prompt.

    Both labels get the same large bias, so they are the two most likely tokens for any model. The bias
    cancels out in the softmax over the two.
    """
    return {
        "prompt": prompts,
        "n_predict": 1,
        "cache_prompt": True,
        "logit_bias": [[label, 100] for label in labels],
        "n_probs": 2,
        "post_sampling_probs": True,
        "samplers": ["top_k", "temperature"],
        "top_k": 2,
        "temperature": 1.0,
        # By default each response repeats the whole prompt and all settings.
        "response_fields": ["index", "completion_probabilities"],
    }


def rows(answer: Any) -> list[Any]:
    """Return one result per prompt. For a single prompt the response is not a list."""
    return answer if isinstance(answer, list) else [answer]


def log_odds(row: Mapping[str, Any], labels: tuple[int, int]) -> float:
    """Return logit(first label) - logit(second label). Raises KeyError if a label is not in the result."""
    top = row["completion_probabilities"][0]["top_probs"]
    probability = {entry["id"]: entry["prob"] for entry in top}
    relevant, irrelevant = (probability[label] for label in labels)
    if relevant <= 0 or irrelevant <= 0:
        return math.copysign(_LARGEST_LOG_ODDS, relevant - irrelevant)
    return math.log(relevant) - math.log(irrelevant)
