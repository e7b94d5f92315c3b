"""The docs tell what is: generated pages are those of the code, links lead somewhere, commands exist."""

import json
import re
import shutil
from pathlib import Path

import pytest

from aurora.commands.cli import COMMANDS
from aurora.core.errors import DataError
from aurora.pipeline.docs import doc_faults, pages, records, stale


def test_generated_pages_are_those_of_the_code(root: Path):
    assert stale(root) == []


def test_every_link_and_command_of_the_docs_exists(root: Path):
    assert doc_faults(root, COMMANDS) == []


def test_dead_links_and_unknown_commands_are_named_with_their_line(tmp_path: Path):
    (tmp_path / "README.md").write_text("# A\n\nSee [x](docs/none.md), or type `aurora fly`.\n")
    assert doc_faults(tmp_path, ["chat"]) == [
        "README.md line 3: docs/none.md does not exist; correct the link",
        "README.md line 3: aurora fly does not exist; there are chat",
    ]


def test_both_readmes_hold_the_same_commands_and_figures(root: Path):
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))

    def commands(text: str) -> list[str]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
        lines = [line for label, block in blocks if not label for line in block.splitlines()]
        return [line.partition("#")[0].strip() for line in lines]

    assert commands(english) == commands(chinese)
    assert english.count("](docs/") == chinese.count("](docs/")
    numbers = [re.findall(r"\d+(?:\.\d+)?", re.sub(r"\(.*?\)", "", text)) for text in (english, chinese)]
    assert sorted(numbers[0]) == sorted(numbers[1])
    assert len(english.splitlines()) <= 150


@pytest.fixture
def small(root: Path, tmp_path: Path) -> Path:
    """A copy of what the READMEs are rendered from."""
    for name in ("docs", "metrics", "benchmarks/results", "aurora", "stages"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "README.zh.md", "REPORT.md"):
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def test_one_altered_digit_is_noticed_on_either_side(small: Path):
    assert stale(small) == []
    readme = (small / "README.md").read_text(encoding="utf-8")
    digit = re.search(r"\d\.\d+(?= nats)", readme)
    changed = readme[: digit.end() - 1] + str((int(readme[digit.end() - 1]) + 1) % 10) + readme[digit.end() :]
    (small / "README.md").write_text(changed, encoding="utf-8")
    assert stale(small) == ["README.md: differs from the code; run make docs"]
    (small / "README.md").write_text(readme, encoding="utf-8")
    path = small / "benchmarks/results/small_profile.json"
    record = json.loads(path.read_text())
    record["values"]["minutes"] = 99.9
    path.write_text(json.dumps(record))
    assert [line.split(":")[0] for line in stale(small)] == ["README.md", "README.zh.md"]


def test_a_record_without_its_command_is_refused(small: Path):
    path = small / "benchmarks/results/small_profile.json"
    record = json.loads(path.read_text())
    del record["command"]
    path.write_text(json.dumps(record))
    with pytest.raises(
        DataError, match=r"benchmarks/results/small_profile\.json: no 'command'; measure again"
    ):
        records(small)


def test_the_pages_name_every_room_and_section(root: Path):
    found = pages(root)
    text = found[Path("docs/code-map.md")]
    rooms = {path.parent.name for path in (root / "aurora").glob("*/__init__.py")}
    assert all(f"## aurora/{room}" in text for room in rooms)
    assert "| `learning_rate` |" in found[Path("docs/params.md")]
