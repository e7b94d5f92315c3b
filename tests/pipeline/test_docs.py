"""The docs: generated pages are those of the code and the records, links and commands exist, figures have records."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from stand_ins.clones import run

from aurora.commands.cli import main as aurora
from aurora.core.errors import DataError
from aurora.pipeline.doc_checks import command_faults, link_faults
from aurora.pipeline.docs import faults, pages, stale
from aurora.pipeline.records import RECORDS, code_digest, figures_without_record, old_records, read_records


def test_generated_pages_are_those_of_the_code(root: Path):
    assert stale(root) == []


def test_make_check_finds_nothing_wrong_with_the_docs(root: Path):
    assert faults(root) == []


@pytest.fixture
def page(root: Path, tmp_path: Path):
    """Writes a README into a folder with the Makefile; what is then wrong with its links and commands."""
    shutil.copy(root / "Makefile", tmp_path)

    def write(text: str) -> list[str]:
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        pages = [Path("README.md")]
        return link_faults(tmp_path, pages) + command_faults(tmp_path, pages, aurora)

    return write


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("See [x](docs/none.md).", "docs/none.md does not exist; correct the link"),
        ("See [x](#no-such).", "#no-such: no such heading; correct the link"),
        ("Type `aurora chst`.", "aurora chst does not exist; there is chat"),
        ("Type `aurora plan --memory-gb 8`.", "aurora plan has no option --memory-gb; it has --memory-gib"),
        ("Type `make repo`.", "make repo does not exist; there is repro"),
        ("Type `dvc rerpo`.", "dvc rerpo does not exist; there is repro"),
        ("cd a && python benchmarks/none.py", "python benchmarks/none.py does not exist; there is none like it"),
    ],
)
def test_a_dead_link_or_command_is_named_with_file_line_and_remedy(page, text: str, fault: str):
    assert page(f"# Title\n\n{text}\n") == [f"README.md line 3: {fault}"]


def test_live_links_and_commands_pass(page):
    lines = (
        "[a](#the-title)",
        "`aurora plan --memory-gib 8`",
        "`make repro`",
        "`dvc exp run --queue`",
        "`aurora --help`",
    )
    assert page("# The title\n\n" + "\n".join(lines)) == []


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
    """A copy of what the generated pages are rendered from."""
    for name in ("docs", "metrics", "benchmarks", "aurora", "stages", "profiles"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("README.md", "README.zh.md", "REPORT.md", "params.yaml"):
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
    path = small / RECORDS / "small_profile.json"
    record = json.loads(path.read_text())
    record["values"]["minutes"] = 99.9
    path.write_text(json.dumps(record))
    assert {line.split(":")[0] for line in stale(small)} == {"README.md", "README.zh.md", "benchmarks/RESULTS.md"}


@pytest.mark.minutes
def test_every_figure_of_the_results_is_that_of_its_record(small: Path):
    results = small / "benchmarks/RESULTS.md"
    text = results.read_text(encoding="utf-8")
    places = [match.start() for match in re.finditer(r"\d", text)]
    for place in places[:: len(places) // 12]:
        results.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :], encoding="utf-8")
        assert stale(small) == ["benchmarks/RESULTS.md: differs from the code; run make docs"]


def test_a_record_without_its_command_is_refused(small: Path):
    path = small / RECORDS / "small_profile.json"
    record = json.loads(path.read_text())
    del record["command"]
    path.write_text(json.dumps(record))
    line = r"small_profile\.json line 1: no 'command'; measure again: python benchmarks/records\.py small_profile"
    with pytest.raises(DataError, match=line):
        read_records(small)


def test_a_template_that_names_no_record_is_refused_with_its_line(small: Path):
    (small / "docs/laptop.md.j2").write_text("# A\n\n{{ records.nothing.minutes }}\n")
    with pytest.raises(DataError, match=r"docs/laptop\.md\.j2 line 3: .*'nothing'; write the record by"):
        pages(small)


@pytest.mark.minutes
def test_a_record_is_too_old_once_more_than_half_of_what_it_measured_has_other_code(small: Path):
    assert old_records(small) == []
    record = json.loads((small / RECORDS / "small_profile.json").read_text())
    allowed = len(record["files"]) // 2
    there = [name for name in record["files"] if (small / name).is_file()]
    now = [name for name in there if code_digest(small / name) == record["files"][name]]
    changed = len(record["files"]) - len(now)
    for name in now[: allowed - changed]:
        (small / name).write_text("other = 1\n")
    assert [line for line in old_records(small) if "small_profile" in line] == []
    (small / now[-1]).unlink()
    (line,) = [line for line in old_records(small) if "small_profile" in line]
    assert re.fullmatch(
        rf"benchmarks/results/small_profile\.json line \d+: {allowed + 1} of {len(record['files'])} measured files have "
        r"other code; measure again: python benchmarks/records\.py --name small_profile pipeline",
        line,
    )


def test_prose_in_code_makes_no_record_old(tmp_path: Path):
    path = tmp_path / "a.py"
    path.write_text('"""Old words."""\n\n\ndef double(x: int) -> int:\n    """Twice."""\n    return 2 * x\n')
    before = code_digest(path)
    path.write_text('"""New."""\n\n# why\ndef double(x: int) -> int:\n    """Two times."""\n    return 2 * x\n')
    assert code_digest(path) == before
    path.write_text(path.read_text().replace("2 * x", "3 * x"))
    assert code_digest(path) != before


@pytest.mark.parametrize(
    "text",
    ["It takes 219 seconds.", "约 20 分钟。", "at 63 tokens/s", "NLL 2.4 nats", "1.9 GiB", "4 %", "8.5e-5 apart"],
)
def test_a_figure_without_a_record_is_named_with_file_line_and_remedy(tmp_path: Path, text: str):
    (tmp_path / "a.md").write_text(f"# A\n\n{text}\n", encoding="utf-8")
    (line,) = figures_without_record(tmp_path, [Path("a.md")])
    assert re.fullmatch(r"a\.md line 3: '.+' has no record; take it from benchmarks/results in a template .*", line)
    for given in (f"{text} <!-- not measured -->", f"`{text}`", f"```\n{text}\n```", "{{ records.a.seconds }} seconds"):
        (tmp_path / "a.md").write_text(given, encoding="utf-8")
        assert figures_without_record(tmp_path, [Path("a.md")]) == []


def test_the_pages_name_every_room_and_section(root: Path):
    found = pages(root)
    text = found[Path("docs/code-map.md")]
    rooms = {path.parent.name for path in (root / "aurora").glob("*/__init__.py")}
    assert all(f"## aurora/{room}" in text for room in rooms)
    assert "| `learning_rate` |" in found[Path("docs/params.md")]


def test_the_site_builds_without_a_warning(root: Path, tmp_path: Path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    run(root, sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    assert "make repro" in (tmp_path / "site/index.html").read_text(encoding="utf-8")
