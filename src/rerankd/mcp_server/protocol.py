"""The tools as the protocol has them: their schemas, the check of arguments, results and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from mcp.server import Server, ServerRequestContext
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ValidationError

from rerankd import __version__
from rerankd.api.dialects import type_errors
from rerankd.errors import RerankdError
from rerankd.mcp_server import folder
from rerankd.mcp_server.scorer import Scorer
from rerankd.mcp_server.tools import (
    Report,
    RerankAnswer,
    RerankArguments,
    SearchAnswer,
    SearchArguments,
    Tools,
)


class Offered(NamedTuple):
    """A tool: its method, and the types of its arguments and answer, from which its schemas are made."""

    call: Callable[[Any, Report], Awaitable[BaseModel]]
    arguments: type[BaseModel]
    answer: type[BaseModel]
    example: dict[str, object]


def server(scorer: Scorer, root: Path | None) -> Server:
    """Return an MCP server with the tools; without a folder to search it has only rerank."""
    tools = Tools(scorer, root)
    offered = {
        "rerank": Offered(
            tools.rerank, RerankArguments, RerankAnswer, {"query": "…", "documents": ["…", "…"]}
        )
    }
    about = "Orders texts by their relevance to a query."
    if root is not None:
        offered["search"] = Offered(tools.search, SearchArguments, SearchAnswer, {"query": "…"})
        about += f" Searches the text files in {folder.shown_path(str(root))}."

    async def list_tools(ctx: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_tool(name, one) for name, one in offered.items()])

    async def call_tool(ctx: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        one = offered.get(params.name)
        if one is None:
            return _error(
                f"The tool {params.name[:100]!r} does not exist. The tools are {', '.join(offered)}."
            )
        try:
            arguments = one.arguments.model_validate(params.arguments or {})
            answer = await one.call(arguments, _Progress(ctx))
        except ValidationError as error:
            return _error(type_errors.sentence(error, example=one.example))
        except RerankdError as error:
            return _error(error.message)
        # The specification asks for the same value as text, for clients that do not read structured content.
        text = answer.model_dump_json()
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=answer.model_dump(mode="json")
        )

    return Server(
        "rerankd",
        title="rerankd",
        version=__version__,
        website_url="https://rerankd.github.io/rerankd/",
        instructions=about,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


class _Progress:
    """Progress notifications of one call. The protocol wants a number that grows."""

    def __init__(self, ctx: ServerRequestContext) -> None:
        self._session = ctx.session
        self._sent = 0

    async def __call__(self, message: str) -> None:
        self._sent += 1
        await self._session.report_progress(self._sent, message=message)


def _tool(name: str, one: Offered) -> Tool:
    return Tool(
        name=name,
        description=" ".join((one.call.__doc__ or "").split()),
        input_schema=_untitled(one.arguments.model_json_schema()),
        output_schema=_untitled(one.answer.model_json_schema(mode="serialization")),
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )


def _untitled(schema: Any) -> Any:
    """Return a schema without the titles that pydantic adds: they repeat the names, and models read them."""
    if isinstance(schema, list):
        return [_untitled(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _untitled(one) for name, one in schema.items() if not (name == "title" and isinstance(one, str))
    }


def _error(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)
