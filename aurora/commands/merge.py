"""`aurora merge`: goes on where `git merge` has stopped at dvc.lock."""

from pathlib import Path

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from aurora.core.errors import DataError, exit_with_message
from aurora.pipeline.lock_file import LOCK, MAP, git, merged_records, unmerged

SIDES = {"base": 1, "ours": 2, "theirs": 3}  # git's numbers


@click.command()
@exit_with_message
def merge() -> None:
    """Resolve a conflict of git in dvc.lock, and in the reports that git tracks, after `git merge BRANCH`.

    Every record of dvc.lock is taken whole, from the branch that has run the stage; where both have, ours stays. `dvc
    repro` then runs only the stages whose record does not fit the merged inputs, and writes the reports again.
    """
    left = unmerged()
    if str(LOCK) not in left:
        raise DataError(f"{LOCK}: no merge of git is open here; begin with: git merge BRANCH")
    for file in MAP:
        if str(file) in left:
            raise DataError(f"{file}: resolve the conflict here first, and: git add {file}")
    contents = {side: _read(number) for side, number in SIDES.items()}
    stages = {side: content.get("stages") or {} for side, content in contents.items()}
    records, taken, both = merged_records(**stages)
    _write({"schema": "2.0", **contents["ours"], "stages": records})
    reports = sorted(left & set(_uncached(left)))
    if reports:
        git("checkout", "--ours", "--", *reports)
    git("add", "--", str(LOCK), *reports)
    click.echo(f"{LOCK}: {len(records)} records" + (f"; of theirs: {', '.join(taken)}" if taken else ""))
    if both:
        click.echo(f"both branches ran {', '.join(both)}; ours stays until dvc repro")
    rest = sorted(left - {str(LOCK), *reports})
    if rest:
        click.echo(f"still in conflict: {', '.join(rest)}")
    click.echo("now: dvc repro && git commit --all --no-edit")


def _read(number: int) -> dict:
    try:
        text = git("show", f":{number}:./{LOCK}")
    except DataError:  # a side that does not have it
        return {}
    try:
        content = YAML(typ="safe").load(text) or {}
    except YAMLError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages") or {}, dict):
        raise DataError(f"{LOCK}: side {number} of the merge is no lock file; take one by: git checkout --ours {LOCK}")
    return content


def _write(content: dict) -> None:
    from dvc.utils.serialize import dump_yaml

    from aurora.core.files import replacing

    with replacing(LOCK) as partial:
        dump_yaml(str(partial), content)


def _uncached(names: set[str]) -> list[str]:
    """Those of these files that a stage writes, and git tracks rather than DVC's cache."""
    from dvc.repo import Repo

    with Repo() as repo:
        outs = [Path(out.def_path) for stage in repo.index.stages for out in stage.outs if not out.use_cache]
    return [name for name in names if any(out in (Path(name), *Path(name).parents) for out in outs)]
