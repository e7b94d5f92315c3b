"""Attacks on what a team is promised: merges, caches, environment, trace, bit rot; one table of case, expected, seen.

    python benchmarks/attacks.py [--only TEXT]

Each case is a test, or a group of them, which stands where its module's tests stand; here they run in one go, with the
slow ones. Ends non-zero where one is seen otherwise than expected.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import click

MEASURES = ("aurora/pipeline", "aurora/core")

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Case:
    """An attack, what is promised, and the tests of it: a file and a part of their names, as of pytest -k."""

    attack: str
    expected: str
    file: str
    names: str


CASES = (
    Case(
        "two branches ran, git merge",
        "stops; ends in records of runs",
        "pipeline/test_merging",
        "ends_in_a_lock",
    ),
    Case(
        "... and each ran other stages",
        "neither runs again",
        "pipeline/test_merging",
        "both_branches_are_used",
    ),
    Case(
        "... by lines, without attributes",
        "a record of no run, as feared",
        "pipeline/test_merging",
        "by_lines",
    ),
    Case("params.yaml in conflict too", "named first", "pipeline/test_merging", "conflict_in_params"),
    Case(
        "marks of a conflict in dvc.lock",
        "one line with the remedy",
        "pipeline/test_merging",
        "marks_in_a_lock",
    ),
    Case("core.autocrlf=true", "no stage is edited", "pipeline/test_repository", "autocrlf"),
    Case(
        "training done, DVC lost it",
        "last checkpoint kept, same bytes",
        "sft/test_checkpoints",
        "lost_by_dvc",
    ),
    Case(
        "cache takes no file, or is full", "refused before the hours", "core/test_recorded", "takes_no_file"
    ),
    Case("scratch of finished work", "kept until dvc.lock names it", "core/test_recorded", "scratch_stays"),
    Case("variables that shape bytes", "set", "core/test_environment", "shapes_bytes_is_set"),
    Case(
        "nine variables at once, a real training",
        "the same bytes",
        "sft/test_checkpoints",
        "environment_shapes",
    ),
    Case("variables of another recipe", "removed and named", "core/test_environment", "changes_a_recipe"),
    Case("variables read before Python", "refused", "core/test_environment", "had_its_effect"),
    Case("a launcher of another recipe", "refused", "core/test_environment", "launcher"),
    Case("a file with a library's name", "not imported", "core/test_environment", "shadows"),
    Case("a stale .pyc of equal size and second", "not run", "core/test_environment", "compiled_file"),
    Case("undeclared inputs, 30 ways", "each is caught", "pipeline/test_tracing", "planted_input"),
    Case(
        "no namespaces, or no sandbox",
        "said; Landlock still stops reads",
        "pipeline/test_tracing",
        "weaker_sandbox",
    ),
    Case("a stage traced alone", "inputs from the cache", "pipeline/test_tracing", "traced_alone"),
    Case(
        "a bit of an input flipped, time kept",
        "the next stage stops",
        "core/test_recorded",
        "flipped_bit or damaged",
    ),
    Case(
        "a bit flipped in tree, cache, listing",
        "aurora verify, remedy works",
        "pipeline/test_integrity",
        "flipped or damaged",
    ),
    Case("a remote object damaged or missing", "aurora verify --remote", "pipeline/test_integrity", "remote"),
    Case(
        "eval's memory: a bit, a page, a file",
        "computed again",
        "eval/test_resume_cache",
        "flipped or damaged or another",
    ),
    Case("eval's memory: a full disk", "one line", "eval/test_resume_cache", "full_disk"),
    Case(
        "cache unmounted or not writable",
        "doctor: a fault, nothing made",
        "commands/test_doctor",
        "cache_that_takes",
    ),
    Case("remote missing", "doctor: a fault", "commands/test_doctor", "written_to"),
    Case("a training runs", "doctor: not to be removed", "commands/test_doctor", "training_that_runs"),
    Case("links to nothing, frozen stages", "doctor names them", "commands/test_doctor", "frozen"),
    Case(
        "a remote folder of several users", "doctor: mode and umask", "commands/test_doctor", "several_share"
    ),
    Case("aurora why, plan without a cache", "one line", "pipeline/test_reasons", "cache_that_cannot"),
)


def seen(case: Case) -> tuple[int, list[str]]:
    """How many tests ran, and a line for each that was not as expected."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"tests/{case.file}.py",
            "-k",
            case.names,
            f"--junitxml={report}",
        ]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if not report.is_file():
            return 0, ["pytest ended without a report"]
        tests = list(ElementTree.parse(report).iter("testcase"))
    wrong = []
    for test in tests:
        for child in test:
            if child.tag in ("failure", "error", "skipped"):
                said = (child.get("message") or child.tag).partition("\n")[0]
                wrong.append(f"{test.get('name')}: {said[:120]}")
    return len(tests), wrong


@click.command()
@click.option("--only", default="", help="Cases in whose attack or file this text stands.")
def main(only: str) -> None:
    """Run the attacks and print the table."""
    print(f"{'attack':<40}{'expected':<36}{'tests':>6}  seen")
    failed = 0
    for case in CASES:
        if only not in f"{case.attack} {case.file}":
            continue
        count, wrong = seen(case)
        failed += bool(wrong) or not count
        print(
            f"{case.attack:<40}{case.expected:<36}{count:>6}  {'; '.join(wrong) or ('as expected' if count else 'NO TEST')}",
            flush=True,
        )
    print(f"{failed} cases otherwise than expected")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
