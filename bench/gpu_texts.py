"""The token ids of pairs, as the reference implementation of a model makes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from rerankd.config import Settings
from rerankd.formats.metadata import ModelMetadata
from rerankd.scoring import prompt
from rerankd.serving.prepare_model import prepare


@dataclass(frozen=True)
class Reader:
    """A model's tokenizer, and the prompt of a causal one. `labels`: the ids of its two labels."""

    folder: Path
    metadata: ModelMetadata
    tokenizer: Tokenizer
    inputs: tuple[str, ...]
    template: str = ""
    instruction: str = ""
    labels: tuple[int, ...] = ()

    @classmethod
    def of(cls, folder: Path, home: Path) -> Reader:
        """Read the folder. The prompt is that which rerankd's catalog has for the model."""
        model = prepare(Settings(model=str(folder), home=home, engine="torch"))
        recipe = model.recipe
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        names = json.loads((folder / "tokenizer_config.json").read_text()).get("model_input_names", ())
        if recipe.method != "causal_lm":
            return cls(folder, model.metadata, tokenizer, tuple(names))
        template = prompt.choose(recipe.template, instructed=bool(recipe.instruction))
        labels = tuple(tokenizer.token_to_id(one) for one in recipe.labels)
        return cls(folder, model.metadata, tokenizer, (), template, recipe.instruction, labels)

    @property
    def is_causal(self) -> bool:
        return bool(self.template)

    def prompt(self, query: str, document: str) -> str:
        """The whole prompt of a causal model."""
        return prompt.fill(self.template, instruction=self.instruction, query=query, document=document)

    def read(self, query: str, document: str) -> dict[str, list[int]]:
        """The inputs of transformers' class, by name."""
        if self.is_causal:
            parts = self.prompt(query, document).split(prompt.PART_MARK)
            return {"input_ids": [one for part in parts for one in self.tokenizer.encode(part).ids]}
        found = self.tokenizer.encode(query, document)
        types = {"token_type_ids": found.type_ids} if "token_type_ids" in self.inputs else {}
        return {"input_ids": found.ids, **types}

    def shared(self, query: str) -> int:
        """How many tokens the prompts of a query share; 0 unless it is a causal model."""
        before = self.template.partition(prompt.DOCUMENT)[0] if self.is_causal else ""
        return len(self.tokenizer.encode(self._filled(before, query)).ids) if before else 0

    def _filled(self, template: str, query: str) -> str:
        return prompt.fill(template, instruction=self.instruction, query=query, document="")
