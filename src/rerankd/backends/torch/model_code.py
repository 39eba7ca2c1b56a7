"""(pure) Whether the files of a model contain code that loading them would run.

The libraries check this too. It is checked here as well, because older releases of sentence-transformers ran
the code in a local folder without asking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_OWN = "sentence_transformers."
# sentence-transformers has a class of its own for this one.
_REPLACED = ("pylate.models.Dense.Dense",)
_PICKLED = ("pytorch_model.bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def custom(config: Mapping[str, Any], modules: Any) -> str:
    """Name the first class of a model's own code: `config` is config.json, `modules` is modules.json, None if
    there is none. Returns "" if there is no such class."""
    named = config.get("auto_map")
    if isinstance(named, Mapping) and named:
        return str(min(map(str, named.values())))
    for one in modules if isinstance(modules, list) else []:
        kind = str(one.get("type", "")) if isinstance(one, Mapping) else ""
        if not kind.startswith(_OWN) and kind not in _REPLACED:
            return kind or "a module without a type"
    return ""


def pickled(names: Iterable[str]) -> str:
    """Name the first file with pickled weights, among the paths in a model's folder, that no file of
    safetensors in the same folder replaces; "" if there is none."""
    there = [*names]
    safe = {name.rpartition("/")[0] for name in there if name.endswith(".safetensors")}
    odd = (name for name in sorted(there) if name.endswith(_PICKLED))
    return next((name for name in odd if name.rpartition("/")[0] not in safe), "")
