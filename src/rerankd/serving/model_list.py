"""The models that the settings define, in order: what a change of the settings adds, keeps and removes.

A model of this machine is an entry from the start: a `PendingModel` until its file is read, then a
`ServedModel`. A refused model stays a `PendingModel` and never keeps the others from being served (see
pending_model.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from rerankd import config
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.errors import ConfigError, RerankdError
from rerankd.remote_models import RemoteModels
from rerankd.serving import prepare_model as preparing
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel

_log = logging.getLogger("rerankd")

Entry = ServedModel | PendingModel
Found = Entry | Model | RerankdError


class ModelList:
    """`entries` are the models of this machine, in the order of the settings, then of the pulls; `remote` are
    those that are served elsewhere."""

    def __init__(self, settings: Settings, remote: RemoteModels) -> None:
        self.settings = settings
        self.remote = remote
        self.entries: tuple[Entry, ...] = ()
        self._default = ""
        self._pulled: list[str] = []

    def _expect(self, wanted: Sequence[EffectiveModelSettings]) -> None:
        """Add the models of the settings, which are not read yet."""
        self._default = wanted[0].ref if wanted else ""
        self.entries = tuple(PendingModel(one, preparing.names_of(one)) for one in wanted)

    def _append_pulled(self, served: ServedModel) -> None:
        """Add a model that was pulled. It stays when the settings are reloaded."""
        self._pulled.append(served.wanted.ref)
        self.entries += (served,)

    def _replace(self, old: Entry, new: ServedModel) -> None:
        """Put a model in the position of another."""
        self.entries = tuple(new if entry is old else entry for entry in self.entries)

    def _remove(self, served: ServedModel) -> None:
        """Remove a model."""
        ref = served.wanted.ref
        self.entries = tuple(entry for entry in self.entries if entry is not served)
        self._pulled = [pulled for pulled in self._pulled if pulled != ref]
        if ref == self._default:
            self._default = ""

    def _wanted(self, settings: Settings) -> list[EffectiveModelSettings]:
        """The models of the settings, and the models pulled since the start that the settings do not include.
        Reads the disk."""
        wanted = () if self.remote.replaces_local(settings) else preparing.wanted(settings)
        if not settings.model and not settings.models and self._default and wanted[0].ref in self._pulled:
            # It was pulled in addition to the default model, and did not replace it.
            wanted = settings.wanted(self._default)
        named = {one.ref for one in wanted}
        return [*wanted, *(settings.of(ref) for ref in self._pulled if ref not in named)]

    def _found(self, settings: Settings) -> dict[EffectiveModelSettings, Found]:
        """For each wanted model: its present entry if neither its settings nor its file have changed, else
        the newly prepared model, or the error. Reads the disk."""
        kept: dict[EffectiveModelSettings, Entry] = {}
        if not config.engines_differ(self.settings, settings):
            kept = {
                entry.wanted.of_engines: entry
                for entry in self.entries
                if isinstance(entry, PendingModel) or not entry.is_changed()
            }
        wanted = self._wanted(settings)
        return {one: kept.get(one.of_engines) or _read(settings, one) for one in wanted}

    def _plan(
        self,
        found: Mapping[EffectiveModelSettings, Found],
        add: Callable[[Model, Sequence[Entry]], ServedModel],
    ) -> tuple[Entry, ...]:
        """Replace the entries. `add` starts to serve a model next to others, or raises RerankdError."""
        entries: tuple[Entry, ...] = ()
        for wanted, one in found.items():
            if isinstance(one, Model):
                try:
                    one = add(one, entries)
                except RerankdError as error:
                    one = error
            elif not isinstance(one, RerankdError):
                one.wanted = wanted
            entries += (self._instead(wanted, one, entries) if isinstance(one, RerankdError) else one,)
        self.entries = entries
        return entries

    def _instead(self, wanted: EffectiveModelSettings, error: RerankdError, before: Sequence[Entry]) -> Entry:
        """The entry for a model that can't be served with the new settings: the model as it was, else a
        refused one."""
        name = preparing.names_of(wanted)[0]
        was = next((old for old in self.models if old.name == name and old not in before), None)
        if was is not None and first_of(was.names, before) is None:
            _log.error("%s keeps its previous settings: %s", was.name, error.message)
            return was
        pending = PendingModel(wanted, own_names(wanted, before), error)
        _log.error("%s is not served: %s", pending.name, error.message)
        return pending

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The served models, in the order of the settings."""
        return tuple(entry for entry in self.entries if isinstance(entry, ServedModel))

    @property
    def pending(self) -> tuple[PendingModel, ...]:
        """The models that are not served, in the order of the settings: being prepared, or refused."""
        return tuple(entry for entry in self.entries if isinstance(entry, PendingModel))


def _read(settings: Settings, wanted: EffectiveModelSettings) -> Model | RerankdError:
    try:
        return preparing.prepare(settings, wanted)
    except RerankdError as error:
        return error


def first_of(wanted: Sequence[str], entries: Iterable[Entry]) -> Entry | None:
    """The first of `entries` that has one of these names."""
    return next((entry for entry in entries if not set(wanted).isdisjoint(entry.names)), None)


def check_names(wanted: Sequence[str], entries: Iterable[Entry]) -> None:
    """Raise ConfigError if one of `entries` has one of these names."""
    if (first := first_of(wanted, entries)) is not None:
        name = next(name for name in wanted if name in first.names)
        raise ConfigError(
            f"Two models have the name {name!r}; {first.wanted.ref} is the first. Give one of them "
            "another name, as a [models.NAME] section or with aliases."
        )


def own_names(wanted: EffectiveModelSettings, entries: Iterable[Entry]) -> tuple[str, ...]:
    """The names of a model that none of `entries` has; if all are taken, its reference in the settings."""
    taken = {name for entry in entries for name in entry.names}
    free = tuple(name for name in preparing.names_of(wanted) if name not in taken)
    return free or (wanted.ref,)
