"""The model names: which models the settings define, in order, and the names under which each is requested.

A model is an entry from the start: a `PendingModel` until its file is read, then a `ServedModel`. A refused
model stays a `PendingModel` and never keeps the others from being served (see pending_model.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from rerankd import config
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.config.cascade import Cascade
from rerankd.errors import ConfigError, EngineUnavailable, InvalidRequest, RerankdError, UnknownModel
from rerankd.hub.model_ref import LATEST
from rerankd.serving import prepare_model as preparing
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.prepare_model import Model
from rerankd.serving.served_model import ServedModel

_log = logging.getLogger("rerankd")

Entry = ServedModel | PendingModel
Found = Entry | Model | RerankdError


class ModelNames:
    """The models and their names. A name that two models claim belongs to the first. `entries` are all
    models, in the order of the settings, then of the pulls."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entries: tuple[Entry, ...] = ()
        self._default = ""
        self._pulled: list[str] = []

    def _expect(self, wanted: Sequence[EffectiveModelSettings]) -> None:
        """Add the models of the settings, which are not read yet."""
        self._default = wanted[0].ref
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
        wanted = preparing.wanted(settings)
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

    @property
    def cascades(self) -> tuple[Cascade, ...]:
        """The cascades of the settings. Their stages are models like all others."""
        return self.settings.cascades

    def cascade(self, name: str | None) -> Cascade | None:
        """The cascade that the model name of a request selects, None if it selects a model. A single cascade
        is selected like a single model (see `entry`)."""
        cascades = self.cascades
        if not cascades or (name and first_of((name,), self.entries) is not None):
            return None
        is_only = len(self.settings.listed) == 1 and not self._pulled
        if not name or (is_only and not self.settings.strict_model_names and self.lookup(name) is None):
            return cascades[0] if cascades[0].is_first else None
        plain = plain_name(name)
        return next((one for one in cascades if plain in map(plain_name, one.names)), None)

    def entries_of(self, name: str | None) -> tuple[Entry, ...]:
        """The entries that a request with this model name needs: one model, or each stage of a cascade.
        Raises UnknownModel."""
        cascade = self.cascade(name)
        if cascade is None:
            return (self.entry(name),)
        return tuple(self._of_stage(cascade, self.settings.of(stage.model)) for stage in cascade.stages)

    def _of_stage(self, cascade: Cascade, wanted: EffectiveModelSettings) -> Entry:
        for entry in self.entries:
            if entry.wanted.ref == wanted.ref and set(wanted.names) <= {*entry.names}:
                return entry
        raise UnknownModel(
            f"{cascade.name} can't be served: the model {wanted.ref} of one of its stages is not served."
        )

    def answering(self, name: str | None) -> tuple[ServedModel, ...]:
        """The served models of `entries_of`. Raises the same errors as `find`."""
        return tuple(map(_at_hand, self.entries_of(name)))

    def why_not(self, cascade: Cascade) -> str:
        """Why the cascade can't answer requests until something changes; "" if it can."""
        try:
            entries = self.entries_of(cascade.name)
        except UnknownModel as error:
            return error.message
        refused = (one for one in entries if isinstance(one, PendingModel) and one.error is not None)
        return next((one.refusal().message for one in refused), "")

    def display_name(self, name: str | None) -> str:
        """The displayed name of the model or cascade that the name of a request selects. Raises
        UnknownModel."""
        cascade = self.cascade(name)
        return self.entry(name).name if cascade is None else cascade.name

    def entry(self, name: str | None) -> Entry:
        """The entry for the model name of a request.

        If the settings have one model, every name selects it unless strict_model_names is set: many apps send
        the name of the hosted model that they were written for. Raises UnknownModel, whose message lists the
        known names, and InvalidRequest for a cascade, which is not one model.
        """
        if not self.entries:
            raise EngineUnavailable("rerankd has not started to read its models.")
        if not name and (cascade := self.cascade(name)) is not None:
            raise self._is_cascade(cascade)
        if not name or (len(self.entries) == 1 and not self.settings.strict_model_names):
            return self.entries[0]
        return self.named(name)

    def find(self, name: str | None) -> ServedModel:
        """The served model for the model name of a request, found as by `entry`. Raises UnknownModel;
        ModelPending, ModelUnavailable or ModelRefused with the reason if the model is being prepared or was
        refused."""
        return _at_hand(self.entry(name))

    def named(self, name: str) -> Entry:
        """The entry with this name (see `lookup`). Raises UnknownModel, whose message lists the known names,
        and InvalidRequest for a cascade."""
        if (cascade := self.cascade(name)) is not None:
            raise self._is_cascade(cascade)
        found = self.lookup(name)
        if found is None:
            raise self.unknown(name)
        return found

    def _is_cascade(self, cascade: Cascade) -> InvalidRequest:
        names = ", ".join(entry.name for entry in self.entries_of(cascade.name))
        return InvalidRequest(
            f"{cascade.name} is a cascade ({cascade}), which ranks documents and is not one model. For "
            f"anything else, send the name of the model of a stage: {names}."
        )

    def lookup(self, name: str) -> Entry | None:
        """The entry with exactly this name, else the first one whose name is equal by `plain_name`; None if
        there is none."""
        if (exact := first_of((name,), self.entries)) is not None:
            return exact
        plain = plain_name(name)
        return next((one for one in self.entries if plain in map(plain_name, one.names)), None)

    def served(self, name: str) -> ServedModel:
        """The served model with this name. Raises the same errors as `find`."""
        return _at_hand(self.named(name))

    def unknown(self, name: str) -> UnknownModel:
        """The error for an unknown model name. It lists the known names."""
        known = ", ".join(known for one in (*self.cascades, *self.entries) for known in one.names)
        return UnknownModel(f"The model {name!r} does not exist. Known model names: {known}.")

    def before(self, pending: PendingModel) -> tuple[Entry, ...]:
        """The entries before this one, whose names have priority over its own."""
        return self.entries[: self.entries.index(pending)] if pending in self.entries else ()


def _read(settings: Settings, wanted: EffectiveModelSettings) -> Model | RerankdError:
    try:
        return preparing.prepare(settings, wanted)
    except RerankdError as error:
        return error


def plain_name(name: str) -> str:
    """A model name without regard to case, and without the tag that Ollama's clients append to a name that
    has none."""
    return name.strip().casefold().removesuffix(LATEST)


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


def _at_hand(entry: Entry) -> ServedModel:
    if isinstance(entry, PendingModel):
        raise entry.refusal()
    return entry
