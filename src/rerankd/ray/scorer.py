"""`Scorer`: an engine as an actor of Ray Data, for `Dataset.map_batches`."""

from __future__ import annotations

from typing import Any

from rerankd import config
from rerankd.bulk.job import settings_for_pairs
from rerankd.bulk.parquet import pairs_of, with_outcomes
from rerankd.bulk.row_scorer import Counts, Kind
from rerankd.bulk.rows import Columns
from rerankd.bulk.table import check_columns
from rerankd.config import Settings
from rerankd.ray.actor_engine import ActorEngine


class Scorer:
    """Adds the columns of scores and errors to a batch of pairs.

        ds.map_batches(
            rerankd.ray.Scorer,
            fn_constructor_kwargs={"model": "qwen3-reranker-0.6b"},
            batch_format="pyarrow",
            batch_size=4096,
            concurrency=4,
            num_gpus=1,
        )

    Each actor loads the model once, with an engine of its own that ends with the actor. Pairs of a batch with
    the same query are scored together. A pair that can't be scored has no score, and the reason as its error.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        query_column: str = "query",
        document_column: str = "document",
        instruction_column: str = "",
        score_column: str = "score",
        error_column: str = "error",
        instruction: str | None = None,
        raw_scores: bool = False,
        settings: Settings | None = None,
        **overrides: Any,
    ) -> None:
        """Load the model, by default the first of `settings`, which by default are those of the node.
        `overrides` are settings by name.

        Raises ConfigError and BulkError for invalid arguments, and the errors of the model, its download and
        its engine.
        """
        given = {**overrides, **({"model": (model,)} if model else {})}
        settings = config.override(settings, given) if settings else config.from_machine(given)
        self._columns = Columns(query_column, document_column, instruction_column, score_column, error_column)
        self._engine = ActorEngine(settings_for_pairs(settings), Kind(raw_scores, instruction))

    def __call__(self, batch: Any) -> Any:
        """Score a pyarrow.Table. Raises BulkError if a column is missing, and the engine's error if it can't
        score at all."""
        check_columns("The batch", self._columns, batch.column_names)
        pairs = pairs_of(batch, self._columns)
        outcomes = self._engine.run(lambda rows: rows.score(pairs, Counts()))
        return with_outcomes(batch, self._columns, outcomes)
