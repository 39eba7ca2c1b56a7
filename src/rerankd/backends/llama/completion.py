"""(pure) llama.cpp's `/completion`, asked for the log-odds of two label tokens after a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Beyond it float32 has no probability left: exp(-87) is the smallest one that is not denormal.
_LARGEST_LOG_ODDS = 87.0


def body(prompts: Sequence[Sequence[int]], labels: tuple[int, int]) -> dict[str, Any]:
    """The request that answers, for each prompt, the two labels' probabilities.

    Both labels get the same large bias, so that they are the two likeliest tokens whatever the model prefers,
    and the bias cancels out of the softmax over the two.
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
        # By default each answer repeats its whole prompt and every setting.
        "response_fields": ["index", "completion_probabilities"],
    }


def rows(answer: Any) -> list[Any]:
    """The answers, one for each prompt: of a single one there is no list."""
    return answer if isinstance(answer, list) else [answer]


def log_odds(row: Mapping[str, Any], labels: tuple[int, int]) -> float:
    """logit(first label) - logit(second label) from one answer. Raises KeyError where one is not in it."""
    top = row["completion_probabilities"][0]["top_probs"]
    probability = {entry["id"]: entry["prob"] for entry in top}
    relevant, irrelevant = (probability[label] for label in labels)
    if relevant <= 0 or irrelevant <= 0:
        return math.copysign(_LARGEST_LOG_ODDS, relevant - irrelevant)
    return math.log(relevant) - math.log(irrelevant)
