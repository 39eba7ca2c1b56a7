"""`rerankd status`: show models, engines, queues and latency of the running server."""

from __future__ import annotations

import itertools
from typing import Any

import typer

from rerankd import config
from rerankd.cli import running_server
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.tables import print_rows
from rerankd.progress import size_words

_TIMEOUT_S = 10


def status(as_json: Json = False, config_file: Config = None) -> None:
    """Show the server's models: state, memory, queue, throughput.

    The server is expected at the configured host and port (RERANKD_PORT sets another port). Exit code 0 if
    every model is ready or unloaded; 1 if a model is not, or no server answers.
    """
    settings = config.from_machine({}, config_file)
    answer = running_server.request(
        settings, "GET", "/v1/status", status=200, has="models", timeout_s=_TIMEOUT_S
    )
    if as_json:
        print_json(answer)
    else:
        if answer["models"] or answer.get("unavailable"):
            print_rows(rows(answer["models"], answer.get("unavailable", [])))
        for one in answer.get("cascades", []):
            say(cascade_line(one))
        for one in answer.get("remote", []):
            for line in remote_lines(one):
                say(line)
        for one in answer.get("unlisted", []):
            say(unlisted_line(one))
        for line in (*notes(answer), f"status page: {settings.local_url}"):
            say(line)
    others = (answer.get(name, []) for name in ("unavailable", "remote", "unlisted"))
    everything = [*answer["models"], *itertools.chain.from_iterable(others)]
    if any(model["state"] not in ("ready", "unloaded") for model in everything):
        raise typer.Exit(1)


def cascade_line(cascade: dict[str, Any]) -> str:
    """Return a cascade in one line: its name, and its stages or why it can't answer."""
    first, *others = cascade["stages"]
    words = [f"{stage['model']} (best {stage['keep']})" for stage in others]
    stages = " → ".join((first["model"], *words))
    error = f"; can't answer: {cascade['error']}" if cascade["error"] else ""
    return f"{cascade['id']}: cascade {stages}{error}"


def unlisted_line(place: dict[str, Any]) -> str:
    """Return a server whose models are not known, in one line."""
    return f"{place['name']}: {place['state']}, its models are not known yet; {place['error']}".removesuffix(
        "; "
    )


def remote_lines(remote: dict[str, Any]) -> list[str]:
    """Return a model that is served elsewhere: its name and who serves it, then each server in a line."""
    error = f": {remote['error']}" if remote["error"] else ""
    lines = [f"{remote['id']}: {remote['state']}, served by {remote['where']}{error}"]
    for one in remote["places"]:
        problem = f"; {one['error']}" if one["error"] else ""
        lines.append(
            f"  {one['name']}: {one['state']}, {one['requests']} requests under way, "
            f"{one['answered']} answered, {one['failed']} failed{problem}"
        )
    return lines


def rows(models: list[dict[str, Any]], unavailable: list[dict[str, Any]]) -> list[list[str]]:
    """Return a table of the models, header first, with those that can't be served at the end."""
    words = "name state method max_length memory starts lost waiting tokens tokens/s engine"
    head = [words.split()]
    served = [
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
    return head + served + [[one["id"], one["state"], *["-"] * (len(head[0]) - 2)] for one in unavailable]


def notes(status: dict[str, Any]) -> list[str]:
    """Return the errors, self-test results and request statistics, one line each."""
    models, recent = status["models"], status["recent"]
    lines = [f"{model['id']}: {model['engine']['error']}" for model in models if "error" in model["engine"]]
    for model in models:
        if vectors := model["engine"].get("document_vectors"):
            lines.append(
                f"{model['id']}: keeps the vectors of {vectors['documents']} documents "
                f"({size_words(vectors['size_bytes'])}); {vectors['hits']} documents were known, "
                f"{vectors['misses']} were read"
            )
        if (cache := model.get("cache")) and (
            looked := cache["misses"] + cache["memory_hits"] + cache["disk_hits"]
        ):
            lines.append(
                f"{model['id']}: of {looked} scores, {cache['memory_hits']} were in memory and "
                f"{cache['disk_hits']} on disk"
            )
    for name, file in status.get("disk_cache", {}).items():
        lines.append(
            f"{name} on disk: {size_words(file['size_bytes'])} of {size_words(file['most_bytes'])} in "
            f"{file['path']}" + (f"; not used: {file['problem']}" if file["problem"] else "")
        )
    lines += [
        f"{model['id']}: calibrated by {one['method']} on {one['collection']}, {one['fitted']}: "
        f"{one['relevant'] + one['irrelevant']} pairs of {one['queries']} queries, {one['relevant']} relevant"
        for model in models
        if (one := model.get("calibration"))
    ]
    lines += [f"{model['id']}: self-test {result}" for model in models if (result := model.get("self_test"))]
    lines += [
        f"{one['id']}: {one['error'] or one['doing'] or 'reading the model file'}"
        for one in status.get("unavailable", [])
    ]
    minutes = recent["step_s"] * len(recent["requests"]) / 60
    text = f"requests in the last {minutes:g} minutes: {sum(recent['requests'])}"
    if failed := sum(recent["failed"]):
        text += f" ({failed} without scores)"
    slowest = max((ms for ms in recent["p95_ms"] if ms is not None), default=None)
    if slowest is not None:
        text += f"; p95 latency {slowest:.0f} ms (worst {recent['step_s']:g} s interval)"
    return [*lines, text]
