"""Check that every metric and every label of a PromQL expression is on a /metrics page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

# Prometheus adds these to every series, the Prometheus operator the last three, and `up` to every target.
TARGET = {"job", "instance", "namespace", "pod", "service"}
# Grafana replaces these before it asks Prometheus.
_VARIABLES = {r"\$__rate_interval": "5m", r"\$\w+": ".*"}

Labels = dict[str, set[str]]


def labels_of(page: str) -> Labels:
    """The names of the labels of each series on a /metrics page, without those of the target."""
    found: Labels = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def faults(expression: str, known: Labels) -> list[str]:
    """What of an expression does not exist. Raises ValueError for a syntax error."""
    for variable, value in _VARIABLES.items():
        expression = re.sub(variable, value, expression)
    return list(_faults(promql.parse(expression), known))


def _faults(at: promql.Expr, known: Labels) -> Iterator[str]:
    for selector in _selectors(at):
        if selector.name not in known:
            yield f"there is no metric {selector.name}"
        elif used := {one.name for one in selector.matchers.matchers} - known[selector.name] - TARGET:
            yield f"{selector.name} has no label {used}"
    for node in _nodes(at):
        modifier = node.modifier if isinstance(node, promql.AggregateExpr | promql.BinaryExpr) else None
        matching = modifier.matching if isinstance(modifier, promql.BinModifier) else modifier
        if matching is None:
            continue
        for selector in _selectors(node):
            if missing := set(matching.labels) - known.get(selector.name or "", set()) - TARGET:
                yield f"{selector.name} has no label {missing}"


def _nodes(at: promql.Expr) -> Iterator[promql.Expr]:
    """The expression and all expressions in it."""
    yield at
    for name in ("lhs", "rhs", "expr"):
        if (inner := getattr(at, name, None)) is not None:
            yield from _nodes(inner)
    for inner in getattr(at, "args", ()):
        yield from _nodes(inner)


def _selectors(at: promql.Expr) -> Iterator[promql.VectorSelector]:
    for node in _nodes(at):
        if isinstance(node, promql.MatrixSelector):
            yield node.vector_selector
        elif isinstance(node, promql.VectorSelector):
            yield node
