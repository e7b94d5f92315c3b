"""What this installation and machine can do, against what is pinned and asked for; each fault with its remedy."""

import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import click

from aurora.commands.findings import Finding, sharing, unfinished
from aurora.core.errors import AuroraError, ParamsError, exit_with_message
from aurora.core.params import PARAMS_FILE
from aurora.model.machine import GIB, machine
from aurora.pipeline.params import load_params

LEAST_DISK = 3 * GIB  # what the small profile needs


def findings() -> list[Finding]:
    """All findings about this folder, in the order of the report."""
    return [*versions(), *device(), *asked(), *disk(), *sharing(), *unfinished()]


def versions(pins: list[str] | None = None) -> Iterator[Finding]:
    """Python, how many packages the project pins, and each that is missing or has another version."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    yield Finding("python", sys.version.split()[0])
    right = 0
    for text in dict.fromkeys(checkout_pins() if pins is None else pins):
        pin = Requirement(text)
        extra = pin.marker is not None and not pin.marker.evaluate({"extra": ""})
        wanted = next((clause.version for clause in pin.specifier if clause.operator == "=="), None)
        try:
            found = version(pin.name)
        except PackageNotFoundError:
            if not extra:
                yield Finding(pin.name, "not installed", "make environment", fault=True)
            continue
        if wanted and Version(found).public != wanted:
            yield Finding(
                pin.name, f"{found}, pinned {wanted}", f"make environment, or pip install {pin.name}=={wanted}", True
            )
        else:
            right += 1
    yield Finding("packages", f"{right} as pinned")


def checkout_pins() -> list[str]:
    """Requirements of the checkout's pyproject.toml, or of the installation where this folder has none."""
    file = Path("pyproject.toml")
    if not file.is_file():
        return requires("aurora") or []
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ParamsError(f"{file}: no [project] to read ({error}); restore it by: git checkout {file}") from None
    optional = dict.fromkeys(pin for listed in extras.values() for pin in listed)
    return [*project.get("dependencies", []), *(f'{pin} ; extra == "any"' for pin in optional)]


def device() -> Iterator[Finding]:
    """The card or the CPU, and the precisions that it computes in."""
    import torch

    found = machine()
    if not found.cards:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("device", f"{found.name}, {cores} cores, {found.memory / GIB:.1f} GiB free, no card")
        yield Finding("precision", "fp32, bf16 (slow); fp16 needs a card")
        return
    total = torch.cuda.get_device_properties(0).total_memory
    yield Finding(
        "device",
        f"{found.cards} x {found.name}, {found.memory / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}",
    )
    half = torch.cuda.is_bf16_supported(including_emulation=False)
    yield Finding("precision", "fp32, fp16, bf16" if half else "fp32, fp16; no bf16")


def asked() -> Iterator[Finding]:
    """Whether params.yaml asks for what this machine has."""
    from aurora.sft.requirements import check_surroundings

    try:
        check_surroundings(load_params().sft)
    except AuroraError as error:
        rule, _, remedy = str(error).partition("; ")
        yield Finding(str(PARAMS_FILE), rule, remedy or "correct it", fault=True)
    else:
        yield Finding(str(PARAMS_FILE), "valid; this machine has its precision and optimiser")


def disk() -> Iterator[Finding]:
    """Room in this folder."""
    free = shutil.disk_usage(Path()).free
    remedy = "free some space: the small profile takes 3 GiB, `aurora plan` says what yours takes"
    yield Finding("disk", f"{free / GIB:.1f} GiB free", remedy if free < LEAST_DISK else "", free < LEAST_DISK)


@click.command()
@exit_with_message
def doctor() -> None:
    """Print versions, device, precision, disk, DVC remote and cache links, each fault with its remedy."""
    found = findings()
    width = max(len(finding.name) for finding in found)
    for finding in found:
        mark = "FAULT" if finding.fault else "note" if finding.remedy else "ok"
        click.echo(f"{mark:<6}{finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            click.echo(f"{'':<{width + 8}}-> {finding.remedy}")
    faults = sum(finding.fault for finding in found)
    if faults:
        click.echo(f"{faults} faults", err=True)
        sys.exit(1)
