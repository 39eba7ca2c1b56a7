"""The models of the settings in their order, and the names that each answers to.

A model is an entry from the start on: `Pending` until its file is read, then `Served`. One that is refused
stays `Pending` and never keeps the others from being served (see pending.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rerankd.config import EffectiveModelSettings, Settings
from rerankd.errors import ConfigError, EngineUnavailable, UnknownModel
from rerankd.serving import prepare as preparing
from rerankd.serving.pending import Pending
from rerankd.serving.served_model import ServedModel

Entry = ServedModel | Pending


class Roster:
    """Which models there are, and by which names they are asked for. What comes first has its names first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._entries: list[Entry] = []

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models of the settings, in their order."""
        return tuple(self._entries)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that can be asked, in the order of the settings."""
        return tuple(entry for entry in self._entries if isinstance(entry, ServedModel))

    @property
    def pending(self) -> tuple[Pending, ...]:
        """The models that can't be asked, in the order of the settings: being read, or refused."""
        return tuple(entry for entry in self._entries if isinstance(entry, Pending))

    def entry(self, asked: str | None) -> Entry:
        """What there is under the name `asked`.

        Where the settings name one model any name is it, unless strict_model_names is set: people's apps send
        the name of the hosted model that they were made for. Raises UnknownModel, which lists the known
        names.
        """
        if not self._entries:
            raise EngineUnavailable("rerankd has not begun to read its models.")
        if not asked or (len(self._entries) == 1 and not self.settings.strict_model_names):
            return self._entries[0]
        for entry in self._entries:
            if asked in names(entry):
                return entry
        raise self.unknown(asked)

    def find(self, asked: str | None) -> ServedModel:
        """The model under the name `asked`, as `entry` has it. Raises UnknownModel, and for one that is being
        read or was refused ModelPending, ModelUnavailable or ModelRefused with the reason."""
        return _at_hand(self.entry(asked))

    def named(self, name: str) -> Entry:
        """The model of exactly this name. Raises UnknownModel, which lists the known names."""
        for entry in self._entries:
            if name in names(entry):
                return entry
        raise self.unknown(name)

    def served(self, name: str) -> ServedModel:
        """The model of exactly this name, where it can be asked. Raises what `find` does."""
        return _at_hand(self.named(name))

    def unknown(self, name: str) -> UnknownModel:
        """The error of who asks for a model of this name; it lists the known ones."""
        known = ", ".join(known for entry in self._entries for known in names(entry))
        return UnknownModel(f"There is no model {name!r} here. Served under these names: {known}.")

    def _before(self, pending: Pending) -> list[Entry]:
        """The entries that come before this one, and so have their names first."""
        return self._entries[: self._entries.index(pending)] if pending in self._entries else []

    def _clash(self, wanted: Sequence[str], entries: Iterable[Entry]) -> ConfigError | None:
        """Why these names can't be given away beside `entries`; None where they can."""
        for entry in entries:
            for name in wanted:
                if name in names(entry):
                    return ConfigError(
                        f"Two models would answer to {name!r}; {wanted_of(entry).ref} is the first. Give one "
                        "of them another name, as a [models.NAME] section or with aliases."
                    )
        return None

    def _own_names(self, wanted: EffectiveModelSettings, entries: Iterable[Entry]) -> tuple[str, ...]:
        """The names of a model that none of `entries` has; where they have all, what the settings call it."""
        taken = {name for entry in entries for name in names(entry)}
        free = tuple(name for name in preparing.names_of(wanted) if name not in taken)
        return free or (wanted.ref,)


def names(entry: Entry) -> tuple[str, ...]:
    """All names that a model answers to, the shown one first."""
    return entry.names if isinstance(entry, Pending) else entry.model.names


def _at_hand(entry: Entry) -> ServedModel:
    if isinstance(entry, Pending):
        raise entry.refusal()
    return entry


def wanted_of(entry: Entry) -> EffectiveModelSettings:
    """What the settings say of a model."""
    return entry.wanted if isinstance(entry, Pending) else entry.model.wanted
