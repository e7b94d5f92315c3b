"""Requests of OpenAI's chat completions, as far as a model of this project can keep them; anything else is refused."""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aurora.core.errors import AuroraError
from aurora.core.params import describe
from aurora.serving.chat_model import Sampling
from aurora.serving.encoding import Messages


class RequestError(AuroraError):
    """A request that cannot be answered; `status` is that of HTTP, `code` one of OpenAI's."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> dict:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(_Strict):
    """A part of a message: text alone, since the models read nothing else."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message; its name and refusal are read by nobody."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None


class StreamOptions(_Strict):
    """What a stream reports beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions. Fields below `user` are taken at the value that changes nothing."""

    model: str
    messages: list[ChatMessage]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict | None = None
    store: bool | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list, Field(max_length=0)] | None = None

    def chat(self) -> Messages:
        """Messages of role and text; `developer` is OpenAI's newer word for `system`."""
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.content
                if isinstance(message.content, str)
                else "".join(part.text for part in message.content),
            }
            for message in self.messages
        ]

    def sampling(self) -> Sampling:
        """Greedy unless a temperature is given; without a seed, a new one for each request."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": secrets.randbits(63) if self.seed is None else self.seed,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


def read_request(body: bytes) -> ChatRequest:
    """Raises RequestError, in one line, for a body that is no JSON or asks for what is not there."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({error})") from None
    try:
        return ChatRequest.model_validate(content)
    except ValidationError as error:
        raise RequestError(describe(error, "body").replace("body.", "", 1)) from None
