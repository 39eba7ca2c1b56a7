"""`rerankd completion`: print the script that completes commands, options and names in a shell.

The scripts of typer itself complete no name with a colon in bash (builtin:e5, hf:ORG/REPO), since bash breaks
words there, so these are our own. They ask the program in the way of typer's script for fish, and print one
value a line, with its help after a tab. Where nothing fits, the shell completes file names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import typer

from rerankd.errors import RerankdError

# typer wraps the help to the width of the terminal, but here it must be one line.
_ASK = (
    "COLUMNS=99999 _RERANKD_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args _TYPER_COMPLETE_ARGS"
)

_BASH = f"""\
_rerankd_completion() {{
    local line=${{COMP_LINE:0:COMP_POINT}} value help
    # bash breaks words at : and =, so what stands before the last of them is not part of the reply.
    local word=${{line##*[[:space:]]}}
    local before=${{word%"${{word##*[:=]}}"}}
    [[ $before == --*= ]] && before=
    COMPREPLY=()
    while IFS=$'\\t' read -r value help; do
        [[ -n $value ]] && COMPREPLY+=("${{value#"$before"}}")
    done < <({_ASK}="$line" "$1" 2>/dev/null)
}}
complete -o default -F _rerankd_completion rerankd
"""

_ZSH = f"""\
#compdef rerankd
_rerankd() {{
    local -a values
    local value help
    while IFS=$'\\t' read -r value help; do
        [[ -n $value ]] && values+=("${{value//:/\\\\:}}${{help:+:$help}}")
    done < <({_ASK}="${{words[1,CURRENT]}}" "${{words[1]}}" 2>/dev/null)
    [[ $PREFIX == --*=* ]] && compset -P '*='
    if (( $#values )); then
        _describe -V rerankd values
    else
        _files
    fi
}}
if [[ $funcstack[1] == _rerankd ]]; then
    _rerankd "$@"
else
    compdef _rerankd rerankd
fi
"""

_FISH = f"""\
function __rerankd_complete
    set --local line (commandline --current-process --cut-at-cursor | string collect)
    set --local program (commandline --tokenize --current-process --cut-at-cursor)[1]
    set --local values (env {_ASK}=$line $program 2>/dev/null | string match --regex '.+')
    if test (count $values) -gt 0
        set --local before (string match --regex '^--[^=]*=' -- (commandline --current-token --cut-at-cursor))
        printf '%s\\n' "$before"$values
    else
        __fish_complete_path (commandline --current-token --cut-at-cursor)
    end
end
complete --command rerankd --no-files --arguments '(__rerankd_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")],
) -> None:
    """Print the script that completes commands, options and model names in a shell.

    bash: add eval "$(rerankd completion bash)" to ~/.bashrc

    zsh: add eval "$(rerankd completion zsh)" to ~/.zshrc, after compinit

    fish: rerankd completion fish > ~/.config/fish/completions/rerankd.fish
    """
    typer.echo(_SCRIPTS[shell], nl=False)


def prepare() -> None:
    """Make the program answer the scripts, if it was started by one of them."""
    if "_RERANKD_COMPLETE" in os.environ:
        import typer.completion

        typer.completion.completion_init()  # type: ignore[attr-defined]


def names(find: Callable[[Any], Iterator[tuple[str, str]]]) -> Callable[..., Iterator[tuple[str, str]]]:
    """Make a completer of a function that yields all names and their help, given the settings."""

    def complete(incomplete: str) -> Iterator[tuple[str, str]]:
        from rerankd import config

        try:
            settings = config.from_machine()
            found = [(name, text) for name, text in find(settings) if name.startswith(incomplete)]
        except RerankdError:  # invalid settings: the command itself will say so
            return
        yield from found

    return complete


def _here(settings: Any) -> Iterator[tuple[str, str]]:
    from rerankd.hub import builtin, store

    yield from ((name, "[models] in the settings") for name in settings.models)
    records = store.Store(settings.home).records()
    yield from ((record.name, "on this machine") for record in records)
    yield builtin.NAME, "built in"


def _pulled(settings: Any) -> Iterator[tuple[str, str]]:
    from rerankd.hub import store

    yield from ((record.name, "on this machine") for record in store.Store(settings.home).records())


def _pullable(_: Any) -> Iterator[tuple[str, str]]:
    from rerankd.hub import listing

    for row in listing.pullable():
        size = f"{row['size_mb']} MB, " if row["size_mb"] else ""
        yield row["name"], f"{size}{row['licence']}"


def _all(settings: Any) -> Iterator[tuple[str, str]]:
    yield from dict([*_pullable(settings), *_here(settings)]).items()


models_here = names(_here)
models_pulled = names(_pulled)
models_to_pull = names(_pullable)
models_known = names(_all)

OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Start an engine with this model instead of using a running server.",
        autocompletion=models_here,
    ),
]
"""The option of commands that ask a running server unless it is given."""
