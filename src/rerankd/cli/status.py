"""`rerankd status`."""

from __future__ import annotations

from typing import Any

import typer

from rerankd import config
from rerankd.cli import running_server
from rerankd.cli.output import Config, Json, print_json, print_rows, say
from rerankd.progress import size_words

_TIMEOUT_S = 10


def status(as_json: Json = False, config_file: Config = None) -> None:
    """Tell what the server on this machine does: its models and engines, what waits, and how fast it is.

    It is looked for at the host and port of the settings (RERANKD_PORT for another port). Exit code 0 when
    every model can answer, 1 when one can't, or when there is no server.
    """
    settings = config.from_machine({}, config_file)
    path = "/v1/status"
    told = running_server.ask(
        settings, "GET", path, status=200, has="models", knows=path, timeout_s=_TIMEOUT_S
    )
    if as_json:
        print_json(told)
    else:
        print_rows(rows(told["models"], told.get("unavailable", [])))
        for line in (*notes(told), f"the same as a page: {settings.local_url}"):
            say(line)
    everything = [*told["models"], *told.get("unavailable", [])]
    if any(model["state"] not in ("ready", "unloaded") for model in everything):
        raise typer.Exit(1)


def rows(models: list[dict[str, Any]], unavailable: list[dict[str, Any]]) -> list[list[str]]:
    """The models as a table, the head first; those that can't be asked come last."""
    words = "name state method max_length memory starts lost waiting tokens tokens/s engine"
    head = [words.split()]
    asked = [
        [
            model["id"],
            model["state"],
            model["method"],
            str(model["max_length"]),
            size_words(model["engine"]["memory_bytes"]) if model["engine"]["memory_bytes"] else "-",
            str(model["engine"]["starts"]),
            str(model["engine"]["lost"]),
            str(model["queue"]["documents"]),
            str(model["queue"]["tokens"]),
            f"{model['queue']['tokens_per_second']:.0f}",
            model["engine"]["program"],
        ]
        for model in models
    ]
    return head + asked + [[one["id"], one["state"], *["-"] * (len(head[0]) - 2)] for one in unavailable]


def notes(told: dict[str, Any]) -> list[str]:
    """What a table has no room for, in sentences."""
    recent = told["recent"]
    minutes = recent["step_s"] * len(recent["requests"]) / 60
    asked, failed = sum(recent["requests"]), sum(recent["failed"])
    lines = [
        f"{model['id']}: {model['engine']['error']}" for model in told["models"] if "error" in model["engine"]
    ]
    lines += [f"{model['id']}: it {said}" for model in told["models"] if (said := model.get("self_test"))]
    lines += [
        f"{one['id']}: {one['error'] or one['doing'] or 'it is being read'}"
        for one in told.get("unavailable", [])
    ]
    text = f"{asked} requests in the last {minutes:g} minutes"
    slowest = max((ms for ms in recent["p95_ms"] if ms is not None), default=None)
    if failed:
        text += f", {failed} of them without scores"
    if slowest is not None:
        text += (
            f"; 95 of 100 took less than {slowest:.0f} ms even in the slowest {recent['step_s']:g} seconds"
        )
    return [*lines, text]
