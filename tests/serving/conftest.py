"""A server of two tiny models with their own weights, on a port of this machine."""

from collections.abc import Iterator

import pytest
from stand_ins.serving import Serving
from stand_ins.tiny_mixtral import DENSE, write_model

from aurora.serving.chat_model import ChatModel
from aurora.serving.places import ModelPlace

PROMPTS = [{"kind": "first_words", "text": "你好"}, {"kind": "code", "text": "用 Python 写一个函数"}]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatModel]:
    folder = tmp_path_factory.mktemp("served")
    places = [
        ModelPlace(name, write_model(folder / name, seed), None, f"{seed}" * 32)
        for seed, name in enumerate(("base", "tuned"))
    ]
    return {place.name: ChatModel.load(place, DENSE, "mistral") for place in places}


@pytest.fixture(scope="session")
def url(models: dict[str, ChatModel]) -> Iterator[str]:
    pytest.importorskip("starlette", reason="pip install -e '.[serve]'")
    pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
    from aurora.serving.app import build_app

    serving = Serving(build_app(models, PROMPTS))
    yield serving.url
    serving.close()
