"""The models of the settings in their order, and the names that each answers to.

A model is an entry from the start on: `PendingModel` until its file is read, then `Served`. One that is
refused stays `PendingModel` and never keeps the others from being served (see pending_model.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from rerankd import config
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.errors import ConfigError, EngineUnavailable, RerankdError, UnknownModel
from rerankd.serving import prepare_model as preparing
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel

_log = logging.getLogger("rerankd")

Entry = ServedModel | PendingModel
Found = Entry | Model | RerankdError


class ModelNames:
    """Which models there are, and by which names they are asked for. What comes first has its names first.
    `entries` are all models, in the order of the settings and then of the pulls."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entries: tuple[Entry, ...] = ()
        self._default = ""
        self._pulled: list[str] = []

    def _expect(self, wanted: Sequence[EffectiveModelSettings]) -> None:
        """The models of the settings, which are to be read."""
        self._default = wanted[0].ref
        self.entries = tuple(PendingModel(one, preparing.names_of(one)) for one in wanted)

    def _append_pulled(self, served: ServedModel) -> None:
        """One more model, which new settings leave here, too."""
        self._pulled.append(served.wanted.ref)
        self.entries += (served,)

    def _replace(self, old: Entry, new: ServedModel) -> None:
        """A model in another's place."""
        self.entries = tuple(new if entry is old else entry for entry in self.entries)

    def _remove(self, served: ServedModel) -> None:
        """A model is served no more."""
        ref = served.wanted.ref
        self.entries = tuple(entry for entry in self.entries if entry is not served)
        self._pulled = [pulled for pulled in self._pulled if pulled != ref]
        if ref == self._default:
            self._default = ""

    def _wanted(self, settings: Settings) -> list[EffectiveModelSettings]:
        """The models of the settings, and those that were pulled since the start and are not among them.
        Reads the disk."""
        wanted = preparing.wanted(settings)
        if not settings.model and not settings.models and self._default and wanted[0].ref in self._pulled:
            # It was pulled beside the model that is served by default, and did not replace it.
            wanted = settings.wanted(self._default)
        named = {one.ref for one in wanted}
        return [*wanted, *(settings.of(ref) for ref in self._pulled if ref not in named)]

    def _found(self, settings: Settings) -> dict[EffectiveModelSettings, Found]:
        """What there is for each wanted model: the entry that new settings and its file leave as it is, else
        the model that was read, or why it can't be served. Reads the disk."""
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
        """The entries from now on. `add` has a model served beside others, or raises RerankdError."""
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
        """What there is in place of a model that can't be served as new settings have it."""
        name = preparing.names_of(wanted)[0]
        was = next((old for old in self.models if old.name == name and old not in before), None)
        if was is not None and first_of(was.names, before) is None:
            _log.error("%s goes on as it was: %s", was.name, error.message)
            return was
        pending = PendingModel(wanted, own_names(wanted, before), error)
        _log.error("%s is not served: %s", pending.name, error.message)
        return pending

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that can be asked, in the order of the settings."""
        return tuple(entry for entry in self.entries if isinstance(entry, ServedModel))

    @property
    def pending(self) -> tuple[PendingModel, ...]:
        """The models that can't be asked, in the order of the settings: being read, or refused."""
        return tuple(entry for entry in self.entries if isinstance(entry, PendingModel))

    def entry(self, asked: str | None) -> Entry:
        """What there is under the name `asked`.

        Where the settings name one model any name is it, unless strict_model_names is set: people's apps send
        the name of the hosted model that they were made for. Raises UnknownModel, which lists the known
        names.
        """
        if not self.entries:
            raise EngineUnavailable("rerankd has not begun to read its models.")
        if not asked or (len(self.entries) == 1 and not self.settings.strict_model_names):
            return self.entries[0]
        return self.named(asked)

    def find(self, asked: str | None) -> ServedModel:
        """The model under the name `asked`, as `entry` has it. Raises UnknownModel, and for one that is being
        read or was refused ModelPending, ModelUnavailable or ModelRefused with the reason."""
        return _at_hand(self.entry(asked))

    def named(self, name: str) -> Entry:
        """The model of exactly this name. Raises UnknownModel, which lists the known names."""
        found = first_of((name,), self.entries)
        if found is None:
            raise self.unknown(name)
        return found

    def served(self, name: str) -> ServedModel:
        """The model of exactly this name, where it can be asked. Raises what `find` does."""
        return _at_hand(self.named(name))

    def unknown(self, name: str) -> UnknownModel:
        """The error of who asks for a model of this name; it lists the known ones."""
        known = ", ".join(known for entry in self.entries for known in entry.names)
        return UnknownModel(f"There is no model {name!r} here. Served under these names: {known}.")

    def before(self, pending: PendingModel) -> tuple[Entry, ...]:
        """The entries that come before this one, and so have their names first."""
        return self.entries[: self.entries.index(pending)] if pending in self.entries else ()


def _read(settings: Settings, wanted: EffectiveModelSettings) -> Model | RerankdError:
    try:
        return preparing.prepare(settings, wanted)
    except RerankdError as error:
        return error


def first_of(wanted: Sequence[str], entries: Iterable[Entry]) -> Entry | None:
    """The first of `entries` that answers to one of these names."""
    return next((entry for entry in entries if not set(wanted).isdisjoint(entry.names)), None)


def check_names(wanted: Sequence[str], entries: Iterable[Entry]) -> None:
    """Raises ConfigError where one of `entries` has one of these names."""
    if (first := first_of(wanted, entries)) is not None:
        name = next(name for name in wanted if name in first.names)
        raise ConfigError(
            f"Two models would answer to {name!r}; {first.wanted.ref} is the first. Give one of them "
            "another name, as a [models.NAME] section or with aliases."
        )


def own_names(wanted: EffectiveModelSettings, entries: Iterable[Entry]) -> tuple[str, ...]:
    """The names of a model that none of `entries` has; where they have all, what the settings call it."""
    taken = {name for entry in entries for name in entry.names}
    free = tuple(name for name in preparing.names_of(wanted) if name not in taken)
    return free or (wanted.ref,)


def _at_hand(entry: Entry) -> ServedModel:
    if isinstance(entry, PendingModel):
        raise entry.refusal()
    return entry
