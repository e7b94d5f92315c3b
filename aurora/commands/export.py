"""`aurora export DIR`: the merged model, the adapter, or a GGUF file as a folder to publish."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import click

from aurora.core.errors import ParamsError, exit_with_message
from aurora.core.files import replacing
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.export.contents import CARD, PROVENANCE, Contents, Inputs, adapter_contents, merged_contents
from aurora.export.folder import fill, require_disk, require_new, write_folder, write_sums
from aurora.export.modelfile import modelfile
from aurora.intake.disk import disk_error, free_bytes
from aurora.merge.gguf import estimated_bytes, require_tools, write_gguf
from aurora.merge.params import GgufType
from aurora.serving.places import stage_options


def read_places() -> Inputs:
    """Where dvc.yaml puts models, sources and cards. Raises ParamsError outside a project."""
    merge, report = stage_options("merge"), stage_options("report")
    if not merge:
        raise ParamsError("no dvc.yaml here; run aurora export in the root of the project")
    return Inputs(
        base=merge["base"],
        adapter=merge["adapter"],
        merged=merge["merged"],
        sources=report["sources"],
        cards=report["out"],
        form=read_section("format.prompt", PromptName),
    )


def print_sizes(sizes: dict[str, int], needed: int, out: Path) -> None:
    """A line a file, and what all of it takes beside what is free."""
    for name, size in sizes.items():
        click.echo(f"{size:>18,}  {name}")
    click.echo(f"{needed:>18,}  bytes of disk are needed; {free_bytes(out):,} are free at {out}")


def export_gguf(model: Contents, inputs: Inputs, out: Path, kind: str, dry_run: bool) -> None:
    """A folder with the GGUF file, a Modelfile for Ollama, the card and the sums."""
    from aurora.model.loading import load_tokenizer
    from aurora.model.sizes import stored

    require_tools(kind)
    weights = sum(group["parameters"] for name, group in stored(inputs.merged).items() if name != "total")
    size, needed = estimated_bytes(weights, kind)
    file = f"{out.name}.{kind}.gguf"
    told = {name: model.texts[name] for name in (CARD, PROVENANCE)}
    told["Modelfile"] = modelfile(file, load_tokenizer(inputs.merged), inputs.form)
    if dry_run:
        print_sizes({file: size} | Contents(texts=told).sizes(), needed, out)
        return
    require_disk(out, needed)
    try:
        with replacing(out) as partial, TemporaryDirectory() as scratch:
            partial.mkdir()
            staged = Path(scratch)
            fill(Contents(texts=model.texts), staged)
            for name, source in model.copies.items():
                (staged / name).symlink_to(source.resolve())
            write_gguf(staged, partial / file, kind, out.name)
            fill(Contents(texts=told), partial)
            write_sums(partial)
    except OSError as error:
        raise disk_error(f"{out}", error) from None


@click.command()
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--merged", "what", flag_value="merged", default=True, help="The merged model (the default).")
@click.option("--adapter", "what", flag_value="adapter", help="The adapter, with its base's tokeniser.")
@click.option(
    "--gguf", type=click.Choice(get_args(GgufType), case_sensitive=False), help="The merged model for llama.cpp."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written and its sizes, and write nothing.")
@exit_with_message
def export(out: Path, what: str, gguf: str | None, dry_run: bool) -> None:
    """Write the model into DIR, a new folder, in the form in which it is published.

    It has the files of the model, a card with scores, licences and provenance, and SHA256SUMS. config.json and the
    tokeniser's files are readable by transformers 4 and 5. Upload it by: hf upload NAME DIR.
    """
    if gguf and what == "adapter":
        raise ParamsError("--gguf: an adapter is not a model of its own; export the merged model")
    require_new(out)
    inputs = read_places()
    contents = (adapter_contents if what == "adapter" else merged_contents)(inputs)
    if gguf:
        export_gguf(contents, inputs, out, gguf, dry_run)
    elif dry_run:
        sizes = contents.sizes()
        print_sizes(sizes, sum(sizes.values()), out)
    else:
        write_folder(contents, out)
    if not dry_run:
        files = [path.stat().st_size for path in out.iterdir()]
        click.echo(f"export: {len(files)} files of {sum(files):,} bytes in {out}")
