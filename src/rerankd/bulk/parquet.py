"""Files of pairs as Parquet. All other columns are kept as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rerankd.bulk.rows import Chunk, Columns, Pair, Scored, pair_of
from rerankd.bulk.table import CHUNK_ROWS, Part, check_columns
from rerankd.errors import BulkError, MissingExtra


class Parquet:
    """Parquet files. The payload of a chunk is a pyarrow.Table with its rows."""

    suffixes = (".parquet", ".pq")

    def check_installed(self) -> None:
        if find_spec("pyarrow") is None:
            raise MissingExtra(
                "Parquet files need pyarrow, which is not installed. To install it: "
                "pip install 'rerankd[parquet]'"
            )

    def chunks(self, path: Path, columns: Columns, skip: int) -> Iterator[Chunk]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                check_columns(path, columns, file.schema_arrow.names)
                total, at = file.metadata.num_rows, 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if at + rows <= skip:
                        at += rows
                        continue
                    for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group]):
                        late = min(max(skip - at, 0), batch.num_rows)
                        at += batch.num_rows
                        if table := pa.Table.from_batches([batch.slice(late)]):
                            yield Chunk(pairs_of(table, columns), table, table.nbytes, at / total)
        except (OSError, pa.ArrowException) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise BulkError(f"{path} can't be read as Parquet: {why}.") from None

    def write(self, path: Path, columns: Columns, part: Part) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables([chunk.payload for chunk, _ in part])
        outcomes = [outcome for _, outcomes in part for outcome in outcomes]
        pq.write_table(with_outcomes(table, columns, outcomes), path)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetFile(parts[0]) as first, pq.ParquetWriter(path, first.schema_arrow) as writer:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))


def pairs_of(table: Any, columns: Columns) -> list[Pair | str]:
    """Return the pairs of a pyarrow.Table, or the reasons why rows are none."""
    values = [_values(table.column(name)) for name in columns.read]
    return [pair_of(row, columns) for row in zip(*values, strict=True)]


def with_outcomes(table: Any, columns: Columns, outcomes: Sequence[Scored]) -> Any:
    """Return the table with a column more for the scores, and one for the errors."""
    import pyarrow as pa

    scores = pa.array([outcome.score for outcome in outcomes], pa.float64())
    errors = pa.array([outcome.error for outcome in outcomes], pa.string())
    return table.append_column(columns.score, scores).append_column(columns.error, errors)


def _values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Parquet does not check texts
        return [_value(one) for one in column]


def _value(one: Any) -> Any:
    try:
        return one.as_py()
    except UnicodeDecodeError:
        return "\udcff"  # which pair_of refuses, too
