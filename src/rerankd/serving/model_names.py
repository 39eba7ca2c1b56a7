"""The model names: which model, local or remote, or which cascade a request selects by its model name."""

from __future__ import annotations

from rerankd.config import EffectiveModelSettings
from rerankd.config.cascade import Cascade
from rerankd.errors import Conflict, EngineUnavailable, InvalidRequest, UnknownModel
from rerankd.hub.model_ref import LATEST
from rerankd.remote_models import RemoteModel
from rerankd.serving.model_list import Entry, ModelList, first_of
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.served_model import ServedModel

AnyModel = Entry | RemoteModel


class ModelNames(ModelList):
    """The models by name. A name that two models claim belongs to the first."""

    @property
    def all(self) -> tuple[AnyModel, ...]:
        """All models: those of this machine, then the remote ones."""
        return (*self.entries, *self.remote_models)

    @property
    def remote_models(self) -> tuple[RemoteModel, ...]:
        """The models that are served elsewhere, without those whose displayed name a model of this machine
        has."""
        if not (remote := self.remote.models):  # as for most requests
            return ()
        taken = {name for entry in self.entries for name in entry.names}
        return tuple(one for one in remote if one.name not in taken)

    @property
    def cascades(self) -> tuple[Cascade, ...]:
        """The cascades of the settings. Their stages are models of this machine."""
        return () if self.remote.replaces_local(self.settings) else self.settings.cascades

    @property
    def listed(self) -> tuple[AnyModel | Cascade, ...]:
        """All models and cascades, the one first that answers requests without a model name: clients, and
        servers that pass requests on to this one, may take the first for the default."""
        cascades = self.cascades
        is_first = bool(cascades) and cascades[0].is_first
        return (*cascades, *self.all) if is_first else (*self.all, *cascades)

    def remote_model(self, name: str | None) -> RemoteModel | None:
        """The remote model that the model name of a request selects; None if it selects a model of this
        machine or a cascade. Raises UnknownModel."""
        if not self.remote.models or self.cascade(name) is not None:
            return None
        found = self.entry(name)
        return None if isinstance(found, ServedModel | PendingModel) else found

    def cascade(self, name: str | None) -> Cascade | None:
        """The cascade that the model name of a request selects, None if it selects a model. A single cascade
        is selected like a single model (see `entry`)."""
        cascades = self.cascades
        if not cascades or (name and first_of((name,), self.entries) is not None):
            return None
        is_only = len(self.settings.listed) == 1 and not self._pulled and not self.remote.models
        if not name or (is_only and not self.settings.strict_model_names and self.lookup(name) is None):
            return cascades[0] if cascades[0].is_first else None
        plain = plain_name(name)
        return next((one for one in cascades if plain in map(plain_name, one.names)), None)

    def entries_of(self, name: str | None) -> tuple[AnyModel, ...]:
        """The models that a request with this model name needs: one, or each stage of a cascade. Raises
        UnknownModel."""
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
        return tuple(map(at_hand, self.entries_of(name)))

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

    def entry(self, name: str | None) -> AnyModel:
        """The model for the model name of a request.

        If the settings have one model, every name selects it unless strict_model_names is set: many apps send
        the name of the hosted model that they were written for. Raises UnknownModel, whose message lists the
        known names, and InvalidRequest for a cascade, which is not one model.
        """
        models = self.all
        if not models:
            raise EngineUnavailable("No model is known yet. Retry later.", retry_after_s=1)
        if not name and (cascade := self.cascade(name)) is not None:
            raise self._is_cascade(cascade)
        is_only = len(models) == 1 and self.remote.is_complete
        if not name or (is_only and not self.settings.strict_model_names):
            return models[0]
        return self.named(name)

    def embedder_name(self, name: str | None) -> str | None:
        """The model name for a request for vectors: without one, that of the first model that computes them,
        or may do so because it is not read yet; None if no model does. Another model's vectors must not stand
        in for those of a model that was refused, so such a model is selected, too."""
        return name or next((one.name for one in self.all if _may_embed(one)), None)

    def find(self, name: str | None) -> ServedModel:
        """The served model for the model name of a request, found as by `entry`. Raises UnknownModel;
        ModelPending, ModelUnavailable or ModelRefused with the reason if the model is being prepared or was
        refused."""
        return at_hand(self.entry(name))

    def named(self, name: str) -> AnyModel:
        """The model with this name (see `lookup`). Raises UnknownModel, whose message lists the known names,
        and InvalidRequest for a cascade."""
        if (cascade := self.cascade(name)) is not None:
            raise self._is_cascade(cascade)
        found = self.lookup(name)
        if found is None:
            if unlisted := self.remote.unlisted:
                places = ", ".join(place.name for place in unlisted)
                raise EngineUnavailable(
                    f"The model {name!r} is not known, and these servers have not listed their models yet: "
                    f"{places}. Retry later.",
                    retry_after_s=1,
                )
            raise self.unknown(name)
        return found

    def may_be_found(self, name: str | None) -> bool:
        """Whether a remote model may still be found that this name selects."""
        if self.remote.is_complete or self.cascade(name) is not None:
            return False
        return self.lookup(name) is None if name else not self.all

    def _is_cascade(self, cascade: Cascade) -> InvalidRequest:
        names = ", ".join(entry.name for entry in self.entries_of(cascade.name))
        return InvalidRequest(
            f"{cascade.name} is a cascade ({cascade}), which ranks documents and is not one model. For "
            f"anything else, send the name of the model of a stage: {names}."
        )

    def lookup(self, name: str) -> AnyModel | None:
        """The model with exactly this name, else the first one whose name is equal by `plain_name`; None if
        there is none."""
        models = self.all
        if (exact := next((one for one in models if name in one.names), None)) is not None:
            return exact
        plain = plain_name(name)
        return next((one for one in models if plain in map(plain_name, one.names)), None)

    def served(self, name: str) -> ServedModel:
        """The served model with this name. Raises the same errors as `find`."""
        return at_hand(self.named(name))

    def unknown(self, name: str) -> UnknownModel:
        """The error for an unknown model name. It lists the known names."""
        known = ", ".join(known for one in (*self.cascades, *self.all) for known in one.names)
        return UnknownModel(f"The model {name!r} does not exist. Known model names: {known}.")

    def before(self, pending: PendingModel) -> tuple[Entry, ...]:
        """The entries before this one, whose names have priority over its own."""
        return self.entries[: self.entries.index(pending)] if pending in self.entries else ()


def _may_embed(entry: AnyModel) -> bool:
    if isinstance(entry, ServedModel):
        return entry.model.recipe.method == "embedding"
    return isinstance(entry, PendingModel) or entry.is_embedder


def plain_name(name: str) -> str:
    """A model name without regard to case, and without the tag that Ollama's clients append to a name that
    has none."""
    return name.strip().casefold().removesuffix(LATEST)


def at_hand(entry: AnyModel) -> ServedModel:
    """The served model of this machine. Raises Conflict for a remote model; ModelPending, ModelUnavailable or
    ModelRefused with the reason for one that is being prepared or was refused."""
    if isinstance(entry, PendingModel):
        raise entry.refusal()
    if not isinstance(entry, ServedModel):
        raise Conflict(
            f"{entry.name} is served elsewhere ({entry.where}), so it can't be changed or read here."
        )
    return entry
