"""docs/what-reruns.md, as DVC's own status says it of edits in a clone; `make docs` writes it."""

import tempfile
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path

import networkx
from dvc.repo import Repo
from ruamel.yaml import YAML
from stand_ins.clones import copy_tracked, outputs

PAGE = Path("docs/what-reruns.md")
HEAD = "\n| edit of | runs again | and, where bytes change |\n|---|---|---|\n"
START = """# What an edit reruns

`make docs` writes this page from what `dvc status` says of edits in a clone, and a test holds it. It is the small
profile's: a source that a hub gives runs again with `aurora/hub`, an upcycled base with `aurora/upcycled_base`.

The stages that an edit touches run again. What follows them runs only where their outputs have other bytes: after a new
comment in `aurora/clean`, clean runs, and nothing else.
"""
# What a person edits, by kind: one file of each.
KINDS = {
    "a command": "aurora/commands/doctor.py",
    "the checker": "aurora/pipeline/rooms.py",
    "a model card": "aurora/report/model_card.py",
    "the report's page": "aurora/report/page.py",
    "the schema of clean": "aurora/clean/params.py",
    "the schema of sft": "aurora/sft/params.py",
    "the schema of eval": "aurora/eval/params.py",
    "a cleaning rule": "aurora/clean/filters.py",
    "the prompt": "aurora/prompt/mistral.py",
    "the model": "aurora/model/experts.py",
    "the fixed questions": "samples/prompts.yaml",
    "a page of docs": "README.md",
    "a test": "tests/conftest.py",
    "the pins of pip": "constraints.txt",
}


class Edits:
    """A clone whose dvc.lock is up to date, with a small file in place of each output."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = copy_tracked(root, folder)
        for name in outputs(folder):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name, encoding="utf-8")
        with chdir(folder), Repo() as repo:
            repo.commit(force=True)
            names = {stage: stage.addressing for stage in repo.index.stages}
            # an edge leads from a stage to one that it needs
            self.graph = networkx.relabel_nodes(repo.index.graph, names)
        self.stages = list(names.values())
        rooms = {path.parent: path for path in sorted((folder / "aurora").glob("*/*.py"))}
        scripts = {path: path for path in sorted((folder / "stages").glob("*.py"))}
        self.places = {
            place.relative_to(folder).as_posix(): file.relative_to(folder).as_posix()
            for place, file in (rooms | scripts).items()
        }

    def status(self) -> dict[str, set[str]]:
        """Stages by what DVC says has changed of theirs: the path of a dep, or the file and key of a param."""
        with chdir(self.folder), Repo() as repo:
            status = repo.status()
        found: dict[str, set[str]] = {}
        for stage, reasons in status.items():
            for path, what in (item for reason in reasons for item in reason["changed deps"].items()):
                for key in [path] if isinstance(what, str) else [f"{path}: {key}" for key in what]:
                    found.setdefault(key, set()).add(stage)
        return found

    def of_code(self) -> dict[str, set[str]]:
        """Stages by each file that is given another comment, one of every kind, room and script, all at once.

        DVC names the dep that changed, so that one status tells the edits apart.
        """
        files = {*KINDS.values(), *self.places.values()}
        for name in files:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write("\n# edited\n")
        status = self.status()
        found = {
            file: set().union(*(status[dep] for dep in status if f"{file}/".startswith(f"{dep}/"))) for file in files
        }
        assert set().union(*found.values()) == set().union(*status.values()), status
        return found

    def of_settings(self) -> dict[str, set[str]]:
        """Stages by each section of params.yaml and group of versions.yaml that has another value, all at once."""
        yaml = YAML(typ="safe")
        graph = yaml.load((self.folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
        of_entries = [entry["foreach"].strip("${}") for entry in graph if isinstance(entry.get("foreach"), str)]
        for name in ("params.yaml", "versions.yaml"):
            path = self.folder / name
            content = yaml.load(path.read_text(encoding="utf-8"))
            for key, section in content.items():
                if name == "params.yaml" and key in of_entries:  # an instance of fetch for each entry
                    for entry in section.values():
                        entry["edited"] = "1"
                elif isinstance(section, dict):
                    section["edited"] = "1"
            if name == "params.yaml":
                content["format"]["prompt"] = "edited"
            with path.open("w", encoding="utf-8") as file:
                yaml.dump(content, file)
        return {key: stages for key, stages in sorted(self.status().items()) if ".yaml: " in key}

    def row(self, name: str, stages: Iterable[str]) -> str:
        """A line of the table: what runs again, and what follows it."""
        found = set(stages)
        following = set().union(*(networkx.ancestors(self.graph, stage) for stage in found)) - found
        return f"| {name} | {self._names(found)} | {self._names(following)} |\n"

    def _names(self, stages: set[str]) -> str:
        """Stages in the order of dvc.yaml; all instances of one are one word."""
        names = []
        for stage in self.stages:
            word = stage.partition("@")[0]
            if stage in stages:
                every = {other for other in self.stages if other.partition("@")[0] == word} <= stages
                names.append(word if every else stage)
        return ", ".join(dict.fromkeys(names)) or "nothing"


def page(edits: Edits) -> str:
    """The whole text of docs/what-reruns.md."""
    code = edits.of_code()
    lines = [START, "\n## By kind\n", HEAD]
    lines += [edits.row(f"{kind}, `{file}`", code[file]) for kind, file in KINDS.items()]
    lines += ["\n## By room\n\nAny file of a room, and each stage's own script.\n", HEAD]
    lines += [edits.row(f"`{place}`", code[file]) for place, file in edits.places.items()]
    lines += ["\n## By setting and by library\n", HEAD]
    lines += [edits.row(f"`{key}`", stages) for key, stages in edits.of_settings().items()]
    return "".join(lines)


def main() -> None:
    """Writes the page of the repository in the current folder."""
    with tempfile.TemporaryDirectory() as folder:
        text = page(Edits(Path.cwd(), Path(folder)))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
