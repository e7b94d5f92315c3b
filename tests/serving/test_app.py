"""The server as the unmodified `openai` client meets it."""

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai", reason="the openai client is not installed")
pytest.importorskip("starlette", reason="pip install -e '.[serve]'")

from aurora.serving.chat_model import Answer, ChatModel, Sampling  # noqa: E402

HELLO = [{"role": "user", "content": "你好"}]


@pytest.fixture
def client(url: str):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def expected(model: ChatModel, messages: list[dict], tokens: int) -> Answer:
    ids = model.prompt(messages)
    answer = Answer(len(ids))
    list(model.answer(ids, Sampling(max_tokens=tokens), answer))
    return answer


def test_models_are_listed(client, models):
    assert [model.id for model in client.models.list()] == ["base", "tuned"]
    assert client.models.retrieve("tuned").dvc_hash == "1" * 32


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_several_turns_are_answered_by_the_model_that_is_named(client, models, name: str):
    messages = list(HELLO)
    for _ in range(3):
        wanted = expected(models[name], messages, 8)
        found = client.chat.completions.create(model=name, messages=messages, max_tokens=8)
        (choice,) = found.choices
        assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.finish_reason)
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (wanted.prompt_tokens, len(wanted.tokens))
        messages += [{"role": "assistant", "content": wanted.text}, {"role": "user", "content": "再说一遍"}]


def test_a_stream_adds_up_to_the_answer_and_ends_with_usage(client, models):
    chunks = list(
        client.chat.completions.create(
            model="tuned", messages=HELLO, max_completion_tokens=16, stream=True, stream_options={"include_usage": True}
        )
    )
    wanted = expected(models["tuned"], HELLO, 16)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == wanted.text and len(pieces) > 3
    assert chunks[-1].usage.completion_tokens == len(wanted.tokens) and not chunks[-1].choices
    last = chunks[-2]
    assert last.choices[0].finish_reason == wanted.finish_reason
    assert last.aurora["dvc_hash"] == "1" * 32 and last.aurora["tokens_per_second"] > 0
    assert last.aurora["language"] in ("Chinese", "mixed", "other", "none", "empty")


def test_eight_at_once_get_the_answers_that_they_get_alone(client, models):
    chats = [[{"role": "user", "content": f"第{number}个问题"}] for number in range(8)]

    def ask(chat: list[dict]) -> str:
        stream = client.chat.completions.create(model="tuned", messages=chat, max_tokens=12, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, chats))
    assert found == [expected(models["tuned"], chat, 12).text for chat in chats]


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancelled_request_ends_the_work(client, models, monkeypatch: pytest.MonkeyPatch, stream: bool):
    computed, original = [], models["tuned"].model.forward

    def slow(*args, **kwargs):
        computed.append(1)
        time.sleep(0.05)
        return original(*args, **kwargs)

    monkeypatch.setattr(models["tuned"].model, "forward", slow)
    monkeypatch.setattr(models["tuned"], "ends", set())
    ask = {"model": "tuned", "messages": HELLO, "max_tokens": 2000}
    if stream:
        with client.chat.completions.create(**ask, stream=True) as chunks:
            next(iter(chunks))
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(**ask)
    time.sleep(0.7)  # the server notices with the next token
    seen = len(computed)
    time.sleep(0.7)
    assert len(computed) == seen < 100
    monkeypatch.undo()
    assert client.chat.completions.create(model="tuned", messages=HELLO, max_tokens=4).choices


def test_a_request_names_what_the_server_does_not_do(client):
    for name, value in {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "n": 2,
        "response_format": {"type": "json_object"},
        "presence_penalty": 1.0,
        "logprobs": True,
    }.items():
        with pytest.raises(openai.BadRequestError, match=name) as caught:
            client.chat.completions.create(model="tuned", messages=HELLO, **{name: value})
        assert "\n" not in caught.value.body["message"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt-4o"}, 404, "no model 'gpt-4o'; there are: base, tuned"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "no user message"),
        ({"messages": []}, 400, "no user message"),
        ({"messages": [*HELLO, *HELLO]}, 400, "user and assistant alternate"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "好" * 4096}]}, 400, "and the context of this model 4,096"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stop": [""]}, 400, "stop"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(client, change: dict, status: int, said: str):
    ask = {"model": "tuned", "messages": HELLO, "max_tokens": 4} | change
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.status_code == status
    assert said in caught.value.body["message"] and "\n" not in caught.value.body["message"]


def test_parts_of_text_and_the_other_fields_of_the_client_are_taken(client, models):
    parts = [{"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]
    found = client.chat.completions.create(model="base", messages=parts, max_tokens=5, user="me", n=1, store=False)
    assert found.choices[0].message.content == expected(models["base"], HELLO, 5).text


def test_a_seed_repeats_a_sampled_answer(client):
    def ask(seed: int) -> str:
        return (
            client.chat.completions.create(
                model="base", messages=HELLO, max_tokens=10, temperature=1.5, top_p=0.95, seed=seed
            )
            .choices[0]
            .message.content
        )

    assert ask(1) == ask(1) != ask(2)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body, {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else {"error": {"message": text}}


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[" * 100_000, {}, 400, "not JSON"),
        (b"\xff\xfe{}", {}, 400, "not JSON"),
        (b"[]", {}, 400, "body: "),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b" " * (4 * 2**20 + 1), {}, 413, "more than"),
        (b"{}", {"Host": "evil.example"}, 400, "Invalid host"),
    ],
    ids=["json", "nested", "bytes", "list", "plain text", "large", "host"],
)
def test_what_is_no_request_is_refused(url: str, body: bytes, headers: dict, status: int, said: str):
    found, content = post(url, body, **headers)
    assert found == status
    assert said in content["error"]["message"]


def test_a_lone_surrogate_is_refused(url: str):
    body = b'{"model": "tuned", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    status, content = post(url, body)
    assert status == 400 and "half a character" in content["error"]["message"]


def test_a_key_is_asked_for_and_its_absence_is_told(models):
    from stand_ins.serving import Serving

    from aurora.serving.app import build_app

    serving = Serving(build_app(models, [], key="secret"))
    try:
        for key, right in (("secret", True), ("wrong", False)):
            with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=key, max_retries=0) as client:
                if right:
                    assert len(list(client.models.list())) == 2
                else:
                    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                        client.models.list()
        with urllib.request.urlopen(serving.url, timeout=10) as page:  # which then asks for the key
            assert page.status == 200
    finally:
        serving.close()


def test_a_model_without_memory_is_503(client, models, monkeypatch: pytest.MonkeyPatch):
    def full(*args, **kwargs):
        raise MemoryError("cannot allocate memory")

    monkeypatch.setattr(models["base"].model, "forward", full)
    with pytest.raises(openai.InternalServerError, match="memory ran out") as caught:
        client.chat.completions.create(model="base", messages=HELLO)
    assert caught.value.status_code == 503
    with pytest.raises(openai.APIError, match="memory ran out"):
        list(client.chat.completions.create(model="base", messages=HELLO, stream=True))


def test_other_threads_of_the_client_are_served_while_one_waits(client, models, monkeypatch: pytest.MonkeyPatch):
    gate, original = threading.Event(), models["base"].model.forward

    def held(*args, **kwargs):
        gate.wait(20)
        return original(*args, **kwargs)

    monkeypatch.setattr(models["base"].model, "forward", held)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.chat.completions.create, model="base", messages=HELLO, max_tokens=2)
        assert client.chat.completions.create(model="tuned", messages=HELLO, max_tokens=2).choices
        assert not waiting.done()
        gate.set()
        assert waiting.result().choices
