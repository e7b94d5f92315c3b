"""`aurora serve [MODEL]...`: an OpenAI-compatible server, and a page to chat and to compare."""

import os
import socket
from pathlib import Path

import click

from aurora.core.errors import ParamsError, ResourceError, exit_with_message
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.model.quantization import Quantization
from aurora.serving.places import ModelPlace, find_model, project_folders

KEY = "AURORA_API_KEY"
PROMPTS = Path("samples/prompts.yaml")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ResourceError where the port is taken or the address is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
        return bound
    except OSError as error:
        raise ResourceError(f"{host} port {port}: {error.strerror}; give another by --port or --host") from None


def chosen(names: tuple[str, ...]) -> list[ModelPlace]:
    """The models of these names; without any, base and tuned as far as they are there."""
    folders = project_folders()
    found = [
        find_model(name)
        for name in names or [name for name in ("base", "tuned") if name in folders and folders[name].is_dir()]
    ]
    if not found:
        raise ParamsError("no model to serve; run dvc repro merge, or name a folder")
    labels = [place.name for place in found]
    if len(set(labels)) < len(labels):
        raise ParamsError(f"two models of one name: {', '.join(labels)}; name each once")
    return found


def api_key(wanted: bool) -> str | None:
    """The key that clients must send. Raises ParamsError where one is wanted and the environment has none."""
    key = os.environ.get(KEY)
    if wanted and not key:
        raise ParamsError(f"--api-key: {KEY} is not set; set it to the key that clients send")
    return key if wanted else None


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--api-key", "with_key", is_flag=True, help=f"Ask clients for the key in {KEY}.")
@exit_with_message
def serve(models: tuple[str, ...], host: str, port: int, with_key: bool) -> None:
    """Serve MODELs under OpenAI's API, with a page at /.

    A MODEL is base, tuned, adapter, step-STEP (a kept adapter), checkpoint-STEP of an unfinished training, or a
    folder; base and tuned where none is named. Each is held in memory as `quantization` of params.yaml says. Answers
    are greedy unless a request gives a temperature.
    """
    try:
        import uvicorn

        from aurora.serving.app import build_app
    except ModuleNotFoundError as error:
        raise ResourceError(f"{error.name} is not installed; pip install -e '.[serve]' -c constraints.txt") from None
    from aurora.eval.prompt_set import read_prompt_set
    from aurora.serving.chat_model import ChatModel

    key, places, bound = api_key(with_key), chosen(models), listen(host, port)
    quantization = read_section("quantization", Quantization)
    form = read_section("format.prompt", PromptName)
    prompts = (
        [{"kind": dialogue.kind, "text": dialogue.turns[0]} for dialogue in read_prompt_set(PROMPTS)]
        if PROMPTS.is_file()
        else []
    )
    loaded = {place.name: ChatModel.load(place, quantization, form) for place in places}
    local = host in LOOPBACK
    name = f"[{host}]" if ":" in host else host
    click.echo(
        f"serving {', '.join(loaded)} at http://{name}:{bound.getsockname()[1]} (API: /v1), made for this machine and"
        " not for the open internet; Ctrl-C ends it",
        err=True,
    )
    if not local and key is None:
        click.echo("anyone who reaches this address can use it; --api-key asks for a key", err=True)
    app = build_app(loaded, prompts, key, any_host=not local)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
    uvicorn.Server(settings).run(sockets=[bound])
