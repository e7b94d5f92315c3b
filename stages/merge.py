"""merge: the adapter added to the base, as a standard Hugging Face folder, and the drift."""

from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.core.files import replacing, write_json
from aurora.core.params import read_section
from aurora.core.recorded import require_cache
from aurora.merge.copy_bytes import disk_errors
from aurora.merge.ends import ends_of
from aurora.merge.merge import merge
from aurora.merge.params import Merge
from aurora.model.quantization import Quantization


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Base model folder.")
@click.option("--adapter", type=click.Path(path_type=Path), required=True, help="PEFT folder of sft.")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="held_out.parquet of format.")
@click.option("--merged", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of metrics.")
@exit_with_message
def main(base: Path, adapter: Path, rows: Path, merged: Path, out: Path) -> None:
    """Merge the adapter into the base."""
    import torch

    from aurora.merge.drift import drift, read_samples, require_room

    params = read_section("merge", Merge)
    quantization = read_section("quantization", Quantization)
    settings = params.drift
    require_cache(sum(file.stat().st_size for file in base.glob("*.safetensors")))
    torch.set_num_threads(params.threads)
    if settings:
        require_room(base, adapter, settings, quantization)
        read_samples(rows, settings)  # a mistake there is found before the merge, which takes long

    def measure(folder: Path) -> dict:
        if settings is None:
            return {}
        return {"drift": drift(base, adapter, folder, rows, settings, quantization)}

    metrics = merge(base, adapter, merged, measure, ends_of(base, rows))
    with disk_errors(out), replacing(out) as partial:
        partial.mkdir()
        write_json(partial / "metrics.json", metrics)
    line = f"merge: {metrics['tensors_changed']} of {metrics['tensors']} tensors changed"
    for bits in settings.merged_bits if settings else ():
        line += f"; top-1 agreement in {bits} bits {metrics['drift'][f'merged_{bits}_bits']['top1_agreement']:.1%}"
    print(line)


if __name__ == "__main__":
    main()
