"""Pages that are generated: the map of the code from docstrings, the parameters from their schemas, results from their
records, and README and others from docs/*.j2, where every measured number comes out of metrics/ or a record.

`python -m aurora.pipeline.docs` writes them. With `--check` it names pages that differ, dead links, unknown commands,
figures without a record, and records that are too old.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from traceback import extract_tb

from aurora.core.errors import DataError
from aurora.pipeline.doc_checks import command_faults, link_faults
from aurora.pipeline.records import figures_without_record, old_records, read_records, results_page

DOCS = Path("docs")
NAMES = {"ceval": "C-Eval", "mmlu": "MMLU", "cmmlu": "CMMLU"}
# Sections of params.yaml in the order of the pipeline, with the module and the class of each.
SECTIONS = {
    "sources": ("aurora/sources/source.py", "Source"),
    "quantization": ("aurora/model/quantization.py", "Quantization"),
    "clean": ("aurora/clean/params.py", "Clean"),
    "format": ("aurora/format/params.py", "Format"),
    "sft": ("aurora/sft/params.py", "Sft"),
    "merge": ("aurora/merge/params.py", "Merge"),
    "eval": ("aurora/eval/params.py", "Eval"),
    "checkpoints": ("aurora/checkpoints/params.py", "Checkpoints"),
}


def pages(root: Path) -> dict[Path, str]:
    """The text of each generated page, by its path relative to `root`."""
    return {
        DOCS / "code-map.md": code_map(root),
        DOCS / "params.md": params_page(root),
        Path("benchmarks/RESULTS.md"): results_page(root),
        **{page_of(template): rendered(root, template) for template in sorted((root / DOCS).glob("*.j2"))},
    }


def page_of(template: Path) -> Path:
    """docs/NAME.md of docs/NAME.md.j2; a README goes to the root."""
    return Path(template.stem) if template.name.startswith("README") else DOCS / template.stem


def stale(root: Path) -> list[str]:
    """A line for each generated page that differs from what it should be."""
    return [
        f"{path}: differs from the code; run make docs"
        for path, text in pages(root).items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def rendered(root: Path, template: Path) -> str:
    """A page from its template. Raises DataError for a record that is not whole, or a name that no record has."""
    from jinja2 import Environment, StrictUndefined, UndefinedError

    scores = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
    values = {name: record["values"] for name, record in read_records(root).items()}

    def figure(record: str, key: str, unit: str, absent: str = "not measured") -> str:
        value = values.get(record, {}).get(key)
        return absent if value is None else f"{value} {unit}"

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(
            base=scores["base"],
            tuned=scores["tuned"],
            names=NAMES,
            percent=lambda share: f"{100 * share:.0f} %",
            figure=figure,
            records=values,
            replies=first_replies((root / "REPORT.md").read_text(encoding="utf-8")),
        )
    except UndefinedError as error:
        number = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == "<template>"][-1]
        place = f"{template.relative_to(root)} line {number}"
        raise DataError(
            f"{place}: {error.message}; write the record by python benchmarks/records.py, or correct the name"
        ) from error


def first_replies(report: str) -> list[list[str]]:
    """Rows of the report's Table 1: prompt, reply of the base, reply of the tuned model."""
    table = report.partition("## Table 1")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return rows[2:]


def code_map(root: Path) -> str:
    """Every room with its modules, a line each: the first sentence of the docstring."""
    lines = [
        "# Map of the code",
        "",
        "Generated from docstrings by `make docs`. `stages/` has one script per stage of `dvc.yaml`; `aurora/` has the rooms"
        " that they are made of, and `aurora/commands` what the `aurora` command answers.",
    ]
    folders = [root / "stages", *sorted(path.parent for path in (root / "aurora").glob("*/__init__.py"))]
    for folder in folders:
        lines += ["", f"## {folder.relative_to(root).as_posix()}", "", _summary(folder / "__init__.py"), ""]
        lines += ["| module | what it holds |", "|---|---|"]
        modules = sorted(path for path in folder.rglob("*.py") if path != folder / "__init__.py")
        lines += [f"| `{path.relative_to(folder).as_posix()}` | {_summary(path)} |" for path in modules]
    return "\n".join(lines) + "\n"


def _summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def params_page(root: Path) -> str:
    """Every key of params.yaml with its type and meaning."""
    lines = [
        "# Parameters",
        "",
        "Every key of `params.yaml`, generated from the schemas by `make docs`. Unknown keys are refused.",
    ]
    for section, (module, name) in SECTIONS.items():
        tree = ast.parse((root / module).read_text(encoding="utf-8"))
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        lines += ["", f"## {section}", "", _text(ast.get_docstring(classes[name])), ""]
        lines += ["| key | type | meaning |", "|---|---|---|"]
        lines += list(_fields(classes, name, ""))
    return "\n".join(lines) + "\n"


def _fields(classes: dict[str, ast.ClassDef], name: str, prefix: str) -> Iterator[str]:
    body = classes[name].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        kind = ast.unparse(node.annotation)
        value = getattr(after, "value", None) if isinstance(after, ast.Expr) else None
        said = _text(getattr(value, "value", ""))
        inner = [other for other in re.findall(r"\w+", kind) if other in classes and other != name]
        key = f"{prefix}{node.target.id}"
        default = f" Default: `{_default(node.value)}`." if node.value is not None else ""
        if inner:
            yield f"| `{key}` | | {said or _text(ast.get_docstring(classes[inner[0]]))}{default} |"
            for other in inner:
                yield from _fields(classes, other, f"{key}.")
        else:
            yield f"| `{key}` | `{_kind(kind)}` | {said}{default} |"


def _default(value: ast.expr) -> str:
    if isinstance(value, ast.Call) and value.args:  # Field(None, pattern=...)
        value = value.args[0]
    return ast.unparse(value)


def _kind(annotation: str) -> str:
    short = re.sub(r"Annotated\[(.+), (?:Field|AfterValidator|BeforeValidator)\((.*)\)\]", r"\1, \2", annotation)
    return short.replace("Literal[", "one of [").replace("|", "\\|")


def _text(value: object) -> str:
    return " ".join(str(value or "").split()).replace("|", "\\|")


def faults(root: Path) -> list[str]:
    """A line, with file, line and remedy, for all that is wrong with the docs or their records."""
    (command,) = entry_points(group="console_scripts", name="aurora")  # commands import this room

    generated = pages(root)
    written = [path.relative_to(root) for path in sorted((root / DOCS).glob("*.md"))]
    read = [Path("README.md"), Path("README.zh.md"), Path("CONTRIBUTING.md"), *written]
    templates = [path.relative_to(root) for path in sorted((root / DOCS).glob("*.j2"))]
    return [
        *stale(root),
        *link_faults(root, read),
        *command_faults(root, read, command.load()),
        *figures_without_record(root, [path for path in read if path not in generated] + templates),
        *old_records(root),
    ]


def main(check: bool) -> None:
    """Writes the generated pages; with `check` it writes nothing and ends with 1 where something is wrong."""
    try:
        if check:
            sys.exit("\n".join(faults(Path())) or 0)
        for path, text in pages(Path()).items():
            path.write_text(text, encoding="utf-8")
            print(f"{path}: written")
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
