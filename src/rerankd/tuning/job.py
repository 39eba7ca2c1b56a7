"""What the trainer is told, and the folder in which it works: OUTPUT.tuning, beside the output.

job.json           the base model and the options; the digest of the data
examples.jsonl     the pairs to learn: {"query", "document", "label"}
validation.jsonl   {"query", "documents", "grades"}: the queries that choose the best checkpoint
checkpoints/       the best one and the last one
trainer.log        the output of the trainer's libraries
check.json         the trainer's own values for some pairs
done.json          the trainer's last message
result/OUTPUT/     the tuned model, written last: complete if it exists
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rerankd import files
from rerankd.errors import ConfigError

Loss = Literal["mse", "bce"]
_SUFFIX = ".tuning"
# The weights in float32, and two moments of each in the optimizer's state: in the best checkpoint, the last
# one and the one being written. Then the result.
_BYTES_A_PARAMETER = 4 * (3 * 3 + 1)


@dataclass(frozen=True, slots=True)
class Job:
    """All that the result depends on. `base` is the folder of the base model, `base_fingerprint` identifies
    its files, `data` is the digest of the examples and of the validation queries.

    `loss`: "mse" for logits of a teacher, "bce" for judgements. `patience`: stop after this many validations
    in a row without a better one.
    """

    base: str
    base_fingerprint: str
    data: str
    loss: Loss
    epochs: int
    batch_size: int
    max_length: int
    learning_rate: float
    patience: int
    seed: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the job of a work folder. Raises ConfigError if it is damaged."""
        try:
            return cls(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{folder} has no job that can be resumed ({error}). Delete the folder."
            ) from None

    def differences(self, other: Job) -> list[str]:
        """The names of the values in which two jobs differ, in words."""
        mine, others = asdict(self), asdict(other)
        return [name.replace("_", " ") for name in mine if mine[name] != others[name]]


class WorkFolder:
    """The paths of a work folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.examples = path / "examples.jsonl"
        self.validation = path / "validation.jsonl"
        self.checkpoints = path / "checkpoints"
        self.log = path / "trainer.log"
        self.model = path / "result" / path.name.removesuffix(_SUFFIX)
        self.check = path / "check.json"
        self.done = path / "done.json"

    @classmethod
    def beside(cls, output: Path) -> WorkFolder:
        """The work folder of an output folder. It is on the same disk, so that the result can be renamed."""
        return cls(output.with_name(f"{output.name}{_SUFFIX}"))

    @property
    def exists(self) -> bool:
        return (self.path / "job.json").exists()

    def read_done(self) -> dict[str, Any]:
        """The trainer's last message, if `model` exists."""
        found: dict[str, Any] = json.loads(self.done.read_text(encoding="utf-8"))
        return found

    def begin(self, job: Job, examples: bytes, validation: bytes) -> None:
        """Write the files of a job; job.json, which makes it one, last. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.examples, examples)
        files.write_whole(self.validation, validation)
        files.write_whole(self.path / "job.json", json.dumps(asdict(job), indent=2).encode())


def lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    """Values as JSON Lines."""
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON Lines."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def digest(parts: Sequence[bytes]) -> str:
    """A digest of the data of a job."""
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def needed_bytes(parameters: int) -> int:
    """The disk space that a job may take, for a model of this size."""
    return parameters * _BYTES_A_PARAMETER
