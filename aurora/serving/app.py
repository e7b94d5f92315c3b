"""The HTTP side: OpenAI's chat completions and models list, and the page at /."""

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from aurora.core.errors import DataError, out_of_memory
from aurora.core.language import language
from aurora.serving.chat_model import Answer, ChatModel, ContextError, Sampling
from aurora.serving.requests import ChatRequest, RequestError, read_request

PAGE = Path(__file__).with_name("page")
MOST_BYTES = 4 * 2**20  # of a request
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def build_app(
    models: Mapping[str, ChatModel], prompts: list[dict], key: str | None = None, any_host: bool = False
) -> Starlette:
    """The application over loaded models by name.

    `prompts` are those that the page offers: kind and text. `key` is what clients must send as a bearer token. Unless
    `any_host`, requests under another host name than this machine's own are refused, so that no page of the web can
    reach the server by a name that it points here.
    """
    started = int(time.time())

    async def list_models(request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": started, "owned_by": "aurora", **_described(model)}
            for name, model in models.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        model = _model(models, name)
        return JSONResponse(
            {"id": name, "object": "model", "created": started, "owned_by": "aurora", **_described(model)}
        )

    async def complete(request: Request) -> Response:
        # A page of another site can send plain text without asking, and JSON cannot.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RequestError("Content-Type must be application/json", 415)
        asked = read_request(await _body(request))
        model = _model(models, asked.model)
        try:
            ids = await run_in_threadpool(model.prompt, asked.chat())
        except ContextError as error:
            raise RequestError(str(error), code="context_length_exceeded") from None
        except DataError as error:
            raise RequestError(str(error)) from None
        completion = _Completion(asked, model, ids)
        if asked.stream:
            return StreamingResponse(
                completion.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        return JSONResponse(await completion.whole(request))

    async def list_prompts(request: Request) -> Response:
        return JSONResponse(prompts)

    def page(name: str) -> Route:
        async def send(request: Request) -> Response:
            return FileResponse(PAGE / name, headers=HEADERS | {"Cache-Control": "no-cache"})

        return Route("/" if name == "index.html" else f"/{name}", send)

    def guarded(path: str, endpoint, *methods: str) -> Route:
        async def answer(request: Request) -> Response:
            if key is not None and not _has_key(request, key):
                raise RequestError(
                    "no or a wrong API key; send it as: Authorization: Bearer KEY", 401, "invalid_api_key"
                )
            return await endpoint(request)

        return Route(path, answer, methods=list(methods))

    return Starlette(
        routes=[
            guarded("/v1/models", list_models, "GET"),
            guarded("/v1/models/{name}", show_model, "GET"),
            guarded("/v1/chat/completions", complete, "POST"),
            guarded("/prompts", list_prompts, "GET"),
            *(page(name) for name in ("index.html", "page.css", "page.js")),
        ],
        middleware=[] if any_host else [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])],
        exception_handlers={RequestError: _say, HTTPException: _say_http},
    )


class _Completion:
    """One request's answer, in the form of OpenAI's objects."""

    def __init__(self, asked: ChatRequest, model: ChatModel, ids: list[int]) -> None:
        self.asked, self.model = asked, model
        self.sampling: Sampling = asked.sampling()
        self.answer = Answer(len(ids))
        self.pieces = model.answer(ids, self.sampling, self.answer)
        self.begun = time.perf_counter()
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

    async def next(self) -> str | None:
        """The next piece of text, None at the end. The work is done here: who stops asking ends it."""
        try:
            return await run_in_threadpool(next, self.pieces, None)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise RequestError("memory ran out; ask for less, or later", 503) from None

    async def whole(self, request: Request) -> dict:
        while await self.next() is not None:
            if await request.is_disconnected():
                break
        message = {"role": "assistant", "content": self.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish_reason, "logprobs": None}
        return self._object("chat.completion", choices=[choice], usage=self._usage(), aurora=self._measured())

    async def events(self) -> AsyncIterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            while (piece := await self.next()) is not None:
                yield self._chunk({"content": piece})
        except RequestError as error:
            yield _event(error.body())
            return
        yield self._chunk({}, self.answer.finish_reason, aurora=self._measured())
        options = self.asked.stream_options
        if options and options.include_usage:
            yield _event(self._object("chat.completion.chunk", choices=[], usage=self._usage()))
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict, finish_reason: str | None = None, **more: object) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event(self._object("chat.completion.chunk", choices=[choice], **more))

    def _object(self, kind: str, **fields: object) -> dict:
        return {**self.head, "object": kind, **fields}

    def _usage(self) -> dict:
        asked, given = self.answer.prompt_tokens, len(self.answer.tokens)
        return {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}

    def _measured(self) -> dict:
        """Beside OpenAI's fields: the language of the answer as eval counts it, speed, and the model's hash."""
        seconds = time.perf_counter() - self.begun
        return {
            "language": language(self.answer.text),
            "tokens_per_second": round(len(self.answer.tokens) / max(seconds, 1e-9), 2),
            **_described(self.model),
        }


def _described(model: ChatModel) -> dict:
    return {"dvc_hash": model.place.dvc_hash, "context": model.context}


def _model(models: Mapping[str, ChatModel], name: str) -> ChatModel:
    if name not in models:
        raise RequestError(f"no model {name!r}; there are: {', '.join(models)}", 404, "model_not_found")
    return models[name]


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise RequestError(f"the request has more than {MOST_BYTES:,} bytes", 413)
    return found


def _has_key(request: Request, key: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {key}".encode())


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _say(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), status_code=error.status)


async def _say_http(request: Request, error: Any) -> Response:
    return await _say(request, RequestError(f"{request.method} {request.url.path}: {error.detail}", error.status_code))
