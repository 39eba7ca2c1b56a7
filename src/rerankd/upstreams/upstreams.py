"""The owner of all upstream servers and of the models that they serve."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from rerankd.config import Settings
from rerankd.process.tasks import Background
from rerankd.remote_models import Place, RemoteModel, RemoteModels
from rerankd.upstreams.model import UpstreamModel
from rerankd.upstreams.server import Server


class Upstreams(RemoteModels):
    """The servers in the sections [upstreams.NAME]. A server whose section has changed is replaced by a new
    one; the old one answers the requests that it has."""

    def __init__(self, settings: Settings) -> None:
        self.on_change: Callable[[], None] = lambda: None
        # Identifies this server in requests and lists, so that circles of servers are noticed.
        self.identity = secrets.token_hex(8)
        self._settings = settings
        self._servers: dict[str, Server] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._models: dict[str, UpstreamModel] = {}
        self._retiring = Background()
        self._is_open = False

    @property
    def models(self) -> tuple[RemoteModel, ...]:
        return tuple(self._models.values())

    @property
    def unlisted(self) -> Sequence[Place]:
        return [
            Place(server.name, server.phase, error=server.error.message if server.error is not None else "")
            for server in self._servers.values()
            if not server.has_listed
        ]

    def replaces_local(self, settings: Settings) -> bool:
        return bool(settings.upstreams) and not settings.listed

    @property
    def behind(self) -> tuple[str, ...]:
        """The identities of this server and of those that it passes requests on to; () without any."""
        if not self._servers:
            return ()
        found = (identity for server in self._servers.values() for identity in server.behind)
        return tuple(dict.fromkeys((self.identity, *found)))

    async def start(self) -> None:
        self._is_open = True
        self.apply(self._settings)
        await asyncio.gather(*(server.looked.wait() for server in self._servers.values()))

    def apply(self, settings: Settings) -> None:
        self._settings = settings
        if not self._is_open:
            return
        before, self._servers = self._servers, {}
        for name, wanted in settings.upstreams.items():
            server = before.get(name)
            if server is None or server.settings.url != wanted.url:
                server = Server(name, wanted, settings, self.identity, self._changed)
                if name in before and not wanted.models:
                    server.takes_over(before[name])
            elif (unused := server.apply(wanted, settings)) is not None:
                self._retiring.begin(unused.retire(), f"retire a connection to {name}")
            self._servers[name] = server
        for name, server in before.items():
            if self._servers.get(name) is not server:
                self._watching.pop(name).cancel()
                self._retiring.begin(server.close(at_once=False), f"retire upstream {name}")
        for name, server in self._servers.items():
            if name not in self._watching:
                self._watching[name] = asyncio.create_task(server.watch(), name=f"upstream {name}")
        self._changed()

    def _changed(self) -> None:
        """Form the models of what the servers have. A model is known by the name that its first server
        displays; its other names belong to it unless an earlier model has them."""
        servers = tuple(self._servers.values())
        unlisted = tuple(server for server in servers if not server.has_listed)
        found: dict[str, UpstreamModel] = {}
        taken: set[str] = set()
        for name in _displayed(servers):
            model = self._models.get(name) or UpstreamModel(name, self.identity)
            having = tuple(server for server in servers if server.serves(name) is not None)
            model.update(having, unlisted, self._settings)
            model.names = (name, *(one for one in model.names[1:] if one not in taken))
            taken.update(model.names)
            found[name] = model
        self._models = found
        self.on_change()

    async def close(self) -> None:
        self._is_open = False
        watching = [*self._watching.values(), *self._retiring]
        self._watching.clear()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers.values()))


def _displayed(servers: Sequence[Server]) -> list[str]:
    """The displayed names of all models, each once: a name that is another one's alias is none."""
    aliases: set[str] = set()
    found: list[str] = []
    for server in servers:
        for served in server.models:
            name = served.names[0]
            if name in aliases or name in found:
                continue
            found.append(name)
            aliases.update(served.names)
    return found
