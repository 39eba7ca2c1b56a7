"""Upstreams: other rerank servers that answer requests, chosen so that their caches hold.

`upstreams.py` owns all servers and models; `server.py` is one server, `model.py` the choice among those that
serve a model. `rerankd_wire.py`, `other_wire.py` and `refusals.py` are pure: requests, responses, errors.
"""

from rerankd.upstreams.upstreams import Upstreams

__all__ = ["Upstreams"]
