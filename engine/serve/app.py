"""The application: an engine behind OpenAI's endpoints."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hotcold.engine.chat.template import TemplateText
from hotcold.engine.generation.constraint import check_grammar
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.hidden_states import mean_state
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.answer import Heard
from hotcold.engine.serve.asked import grammar_named, in_fields, parse_asked
from hotcold.engine.serve.fields import RequestFields, parse_body
from hotcold.engine.serve.figures import figures
from hotcold.engine.serve.forms import Form
from hotcold.engine.serve.guard import Guard, read_body
from hotcold.engine.serve.messages import parse_messages
from hotcold.engine.serve.metrics import Metrics
from hotcold.engine.serve.page import page
from hotcold.engine.serve.prompts import Prompt, Prompts, is_whole
from hotcold.engine.serve.reply import Reply
from hotcold.engine.serve.responses import (
    EventStream,
    Problem,
    error_response,
    json_response,
    until_gone,
    warning_headers,
)
from hotcold.engine.serve.slot_files import SlotFiles
from hotcold.engine.serve.tools import Calls, calls_grammar, parse_tools, wants_several
from hotcold.engine.serve.worker import MAX_WAITING, Task, Worker
from hotcold.errors import DoesNotFitError, SettingError

CHAT, COMPLETION = GenerationSettings(max_tokens=-1), GenerationSettings()
MAX_TEMPLATES = 2  # that run at once, each in a process of its own
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How an engine is served.

    Attributes:
        model: its name; "" for that of its file.
        api_key: what a client has to know; "" for nothing.
        chat_template: in place of the model's own: a file, or what it says.
        draft: see `GenerationSettings`; of an answer that nothing runs beside.
        max_waiting: requests that wait beside the one that is answered; more are refused.
        ping_seconds: after which a stream says that it is still there.
        slot_save_path: folder for what slots hold; None: it cannot be saved.
        only_local: whether requests under another name than this machine's own are refused.
    """

    model: str = ""
    api_key: str = ""
    chat_template: Path | TemplateText | None = None
    draft: str = GenerationSettings.draft
    slot_save_path: Path | None = None
    max_waiting: int = MAX_WAITING
    ping_seconds: float = 15.0
    only_local: bool = False


def app(engine: Engine, options: ServeOptions | None = None) -> Guard:
    """An ASGI application that answers with an engine, which nobody else may run meanwhile.

    Its `close` ends what is under way, as the end of its lifespan does; the engine stays open.

    Raises:
        FileError: a chat template that is missing or no template, or a folder that is none.
        SettingError: drafts that are unknown, or that the model cannot have.
    """
    options = options or ServeOptions()
    server = Server(engine, options)
    routes = {
        "/v1/chat/completions": ("POST", server.chat),
        "/v1/completions": ("POST", server.completions),
        "/v1/embeddings": ("POST", server.embeddings),
        "/v1/models": ("GET", server.models),
        "/v1/models/{name:path}": ("GET", server.model),
        "/tokenize": ("POST", server.tokenize),
        "/detokenize": ("POST", server.detokenize),
        "/slots": ("GET", server.slots),
        "/slots/{number}": ("POST", server.slot),
        "/health": ("GET", server.health),
        "/metrics": ("GET", server.metrics_text),
        "/figures": ("GET", server.figures),
        "/": ("GET", server.page),
    }

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(server.worker.close)

    starlette = Starlette(
        routes=[
            Route(path, server.counted(path, endpoint), methods=[method])
            for path, (method, endpoint) in routes.items()
        ],
        exception_handlers={HTTPException: _no_such_place},
        lifespan=lifespan,
    )
    return Guard(starlette, server.worker.close, options.api_key, only_local=options.only_local)


class Server:
    """The endpoints, and what they share."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        self._engine, self._options = engine, options
        engine.checked_settings(GenerationSettings(draft=options.draft))
        self.name = options.model or engine.file.path.stem
        self._metrics = Metrics()
        self.worker = Worker(engine, options.max_waiting, self._metrics.ended)
        self._metrics.watch(self.worker)
        self._prompts = Prompts(engine, options.chat_template)
        self._page = page()
        self._slot_files = SlotFiles(engine, self.worker, options.slot_save_path, options.draft != "off")
        self._templates = anyio.CapacityLimiter(MAX_TEMPLATES)

    def counted(self, path: str, endpoint: Endpoint) -> Endpoint:
        """An endpoint whose errors have OpenAI's form, and whose answers are counted."""

        async def count(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except DoesNotFitError as error:
                response = error_response(in_fields(error, {}))
            except RecursionError:
                deep = SettingError("body", "nested too deep", "", "send a flatter one")
                response = error_response(deep)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client is told in the same form
                response = error_response(error)
            self._metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        return count

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        fields = parse_body(await read_body(request))
        asked = parse_asked(fields, is_chat=True, defaults=replace(CHAT, draft=self._options.draft))
        messages, tools = parse_messages(fields), parse_tools(fields)
        if tools and asked.settings.grammar:
            raise fields.apart("tools", "response_format or a grammar")
        if grammar := calls_grammar(fields, tools):
            asked = replace(asked, settings=replace(asked.settings, grammar=grammar))
        calls = partial(Calls, wants_several(fields)) if tools else None
        control = None if asked.settings.grammar else self._prompts.control
        if control is not None:  # channels are told apart by control pieces
            asked = replace(asked, settings=replace(asked.settings, special=True))
        form = Form(self.name, self._engine.tokenizer, asked.top_logprobs, is_chat=True)

        async def reply() -> tuple[Reply, tuple[str, ...]]:
            write = partial(self._prompts.of_chat, messages, tools)
            prompt = await anyio.to_thread.run_sync(write, limiter=self._templates)
            await self._worked_out(asked.settings.grammar)
            return Reply(self.worker, asked, [prompt], form, control=control, calls=calls), prompt.warnings

        return await self._replied(request, reply, asked.stream, fields)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        fields = parse_body(await read_body(request))
        asked = parse_asked(fields, is_chat=False, defaults=replace(COMPLETION, draft=self._options.draft))
        echo = fields.flag("echo")
        form = Form(self.name, self._engine.tokenizer, asked.top_logprobs, is_chat=False)

        async def reply() -> tuple[Reply, tuple[str, ...]]:
            encode = partial(self._prompts.of_text, fields, parse_special=asked.settings.parse_special)
            prompts: list[Prompt] = await anyio.to_thread.run_sync(encode)
            await self._worked_out(asked.settings.grammar)
            return Reply(self.worker, asked, prompts, form, echo=echo), ()

        fields.get("prompt")
        return await self._replied(request, reply, asked.stream, fields)

    async def _worked_out(self, grammar: str) -> None:
        """Have a grammar worked out before its answer takes a slot."""
        if grammar:
            check = partial(check_grammar, self._engine.tokenizer, grammar)
            await anyio.to_thread.run_sync(check, limiter=self._templates)

    async def _replied(
        self,
        request: Request,
        make: Callable[[], Awaitable[tuple[Reply, tuple[str, ...]]]],
        stream: bool,
        fields: RequestFields,
    ) -> Response:
        """The reply in its form; its place in the queue is free when it has ended."""
        told = self._told(fields)
        self.worker.take_place()
        is_taken = True
        try:
            with grammar_named(fields):
                reply, warnings = await make()
                told = (*told, *warnings)
                if stream:
                    is_taken = False
                    headers, pings = warning_headers(told), self._options.ping_seconds
                    return EventStream(_named(reply.chunks(), fields), headers, pings, self.worker.free_place)
                answer = await until_gone(request.receive, reply.whole())
            return json_response(answer or {}, headers=warning_headers((*told, *reply.warnings)))
        finally:
            if is_taken:
                self.worker.free_place()

    def _told(self, fields: RequestFields) -> tuple[str, ...]:
        """What the warning header says of a request's fields."""
        told = [f"unknown field {name!r} is left out" for name in fields.unknown]
        model = fields.text("model")
        if model not in ("", self.name):
            told.append(f"the model {model!r} is not here: {self.name!r} answers")
        return tuple(told)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings: the mean of the states that the head reads, of length 1."""
        fields = parse_body(await read_body(request))
        form = fields.one_of("encoding_format", ("float", "base64"))
        fields.refuse("dimensions", (self._engine.model.n_embd,), "all of them are told", "leave it out")
        fields.get("input")
        told = self._told(fields)
        self.worker.take_place()
        try:
            prompts = await anyio.to_thread.run_sync(
                partial(self._prompts.of_text, fields, parse_special=False, field="input")
            )
            heard = Heard(self.worker, [partial(_embed, prompts)])
            try:
                told_states = await until_gone(request.receive, heard.next())
            finally:
                heard.stop()
        finally:
            self.worker.free_place()
        n = sum(len(prompt.ids) for prompt in prompts)
        data = [
            {"object": "embedding", "index": i, "embedding": _written(state, form)}
            for i, state in enumerate(() if told_states is None else told_states[1])
        ]
        counts = {"prompt_tokens": n, "total_tokens": n}
        whole = {"object": "list", "data": data, "model": self.name, "usage": counts}
        return json_response(whole, headers=warning_headers(told))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        if name != self.name:
            error = SettingError("model", name[:100], f"here is {self.name}", "see /v1/models")
            raise Problem(404, error, "model_not_found")
        return json_response(self._about())

    def _about(self) -> dict[str, Any]:
        engine = self._engine
        meta = {
            "architecture": engine.model.architecture,
            "n_ctx": engine.n_ctx,
            "n_ctx_train": engine.model.n_ctx_train,
            "n_embd": engine.model.n_embd,
            "n_vocab": engine.model.n_vocab,
            "size": engine.file.size,
            "has_chat_template": self._prompts.has_template,
        }
        return {
            "id": self.name,
            "object": "model",
            "created": int(engine.file.path.stat().st_mtime),
            "owned_by": "hotcold",
            "meta": meta,
        }

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: token ids of a text."""
        fields = parse_body(await read_body(request))
        if fields.get("content") is None:
            raise fields.wrong("content", "a string", '"text"')
        content = fields.text("content")
        add, parse = fields.flag("add_special"), fields.flag("parse_special")
        with_pieces, tokenizer = fields.flag("with_pieces"), self._engine.tokenizer
        self._engine.check_length(content)
        encode = partial(tokenizer.encode, content, add_special=add, parse_special=parse)
        ids = await anyio.to_thread.run_sync(encode)
        told: list[Any] = ids
        if with_pieces:
            pieces = [tokenizer.piece(token, special=True).decode(errors="replace") for token in ids]
            told = [{"id": token, "piece": piece} for token, piece in zip(ids, pieces, strict=True)]
        return json_response({"tokens": told}, headers=warning_headers(self._told(fields)))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of token ids."""
        fields = parse_body(await read_body(request))
        ids = fields.get("tokens")
        if not isinstance(ids, list) or not all(map(is_whole, ids)):
            raise fields.wrong("tokens", "a list of token ids", "[1, 2]")
        n_vocab = self._engine.tokenizer.n_vocab
        for token in ids:
            if not 0 <= token < n_vocab:
                raise SettingError("token id", token, f"the vocabulary has 0 to {n_vocab - 1}", "")
        text = self._engine.tokenizer.decode(ids, special=True).decode(errors="replace")
        return json_response({"content": text}, headers=warning_headers(self._told(fields)))

    async def slots(self, request: Request) -> Response:
        """GET /slots: what each holds, and whether it answers."""
        return Response(json.dumps(self._slot_files.listed()), media_type="application/json")

    async def slot(self, request: Request) -> Response:
        """POST /slots/NUMBER?action=save|restore|erase."""
        body = await read_body(request)
        fields = parse_body(body or b"{}")
        action = request.query_params.get("action", "")
        self.worker.take_place()
        try:
            told = await self._slot_files.act(request.path_params["number"], fields, action)
        finally:
            self.worker.free_place()
        return json_response(told, headers=warning_headers(self._told(fields)))

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return json_response({"status": "ok"})

    async def figures(self, request: Request) -> Response:
        """GET /figures: what the page shows."""
        self.worker.looks.ask()
        run, generated = self._metrics.n_run, self._metrics.n_generated
        told = figures(
            self._engine, self.worker, run + self.worker.n_prompt, generated + self.worker.n_generated
        )
        return json_response(told, headers={"Cache-Control": "no-store"})

    async def page(self, request: Request) -> Response:
        """GET /: the page."""
        body, headers = self._page
        return Response(body, headers=headers)

    async def metrics_text(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), headers={"Content-Type": PROMETHEUS})


async def _named(
    chunks: AsyncIterator[dict[str, Any]], fields: RequestFields
) -> AsyncIterator[dict[str, Any]]:
    """Chunks, as `grammar_named` lets them through."""
    with grammar_named(fields):
        async for chunk in chunks:
            yield chunk


def _embed(prompts: list[Prompt], engine: Engine, slot: int, task: Task) -> list[NDArray[np.float32]]:
    """The work of an embedding request."""
    return [mean_state(engine, prompt.ids, slot) for prompt in prompts if not task.is_stopped]


def _written(state: NDArray[np.float32], form: str) -> str | list[float]:
    if form == "float":
        return [float(x) for x in state]
    return base64.b64encode(state.astype("<f4").tobytes()).decode("ascii")


async def _no_such_place(request: Request, error: Exception) -> Response:
    """What is no endpoint, or is asked in another way."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    place = f"{request.method} {request.url.path}"[:100]
    return error_response(Problem(status, SettingError("endpoint", place, "unknown", "see docs/serving.md")))
