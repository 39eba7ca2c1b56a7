"""(pure) The default memory limit of an engine, used if `max_engine_memory` is not set.

An engine's RSS peaks at its largest call: from 524 to 640 MiB with the built-in model, from 88 to 112 MiB
with a tiny model. Some engines also map pages of the model file as they read them. An RSS above twice the RSS
after loading plus a gigabyte can't come from the buffers of a call.
"""

from __future__ import annotations

HEADROOM_BYTES = 2**30
"""Added to twice the RSS after loading."""
LEAK_AFTER_S = 600.0
"""An engine that reaches its limit sooner after its start does not leak: it needs a higher limit."""


def limit_bytes(loaded_bytes: int, weights_bytes: int, raised: int) -> int:
    """Return the limit of an engine whose RSS was `loaded_bytes` right after it loaded weights of
    `weights_bytes`. `raised` counts how often the limit was raised for engines that needed more; each time
    doubles it."""
    return (2 * loaded_bytes + max(weights_bytes - loaded_bytes, 0) + HEADROOM_BYTES) << min(raised, 10)
