"""Attacks on what a team is promised: merges, caches, environment, trace, bit rot; one table of case, expected, seen.

    python benchmarks/attacks.py [--only TEXT]

Each case is a test, or a group of them, which stands where its module's tests stand; here they run in one go, with the
slow ones. Ends non-zero where one is seen otherwise than expected. Without --only it writes the record attacks.
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import click

MEASURES = ("aurora/pipeline", "aurora/core")

ROOT = Path(__file__).resolve().parent.parent
AS_EXPECTED = "as expected"


@dataclass(frozen=True, slots=True)
class Case:
    """An attack, what is promised, and the tests of it: a file and a part of their names, as of pytest -k."""

    attack: str
    expected: str
    file: str
    names: str


CASES = (
    Case("two branches ran, git merge", "stops; ends in records of runs", "pipeline/test_merging", "ends_in_a_lock"),
    Case("... and each ran other stages", "neither runs again", "pipeline/test_merging", "both_branches_are_used"),
    Case("... by lines, without attributes", "a record of no run, as feared", "pipeline/test_merging", "by_lines"),
    Case("params.yaml in conflict too", "named first", "pipeline/test_merging", "conflict_in_params"),
    Case("marks of a conflict in dvc.lock", "one line with the remedy", "pipeline/test_merging", "marks_in_a_lock"),
    Case("core.autocrlf=true", "no stage is edited", "pipeline/test_repository", "autocrlf"),
    Case("training done, DVC lost it", "last checkpoint kept, same bytes", "sft/test_checkpoints", "lost_by_dvc"),
    Case("cache takes no file, or is full", "refused before the hours", "core/test_recorded", "takes_no_file"),
    Case("scratch of finished work", "kept until dvc.lock names it", "core/test_recorded", "scratch_stays"),
    Case("variables that shape bytes", "set", "core/test_environment", "shapes_bytes_is_set"),
    Case("nine variables at once, a real training", "the same bytes", "sft/test_checkpoints", "environment_shapes"),
    Case("variables of another recipe", "removed and named", "core/test_environment", "changes_a_recipe"),
    Case("variables read before Python", "refused", "core/test_environment", "had_its_effect"),
    Case("a launcher of another recipe", "refused", "core/test_environment", "launcher"),
    Case("a file with a library's name", "not imported", "core/test_environment", "shadows"),
    Case("a stale .pyc of equal size and second", "not run", "core/test_environment", "compiled_file"),
    Case(
        "30 undeclared inputs, in each sandbox",
        "caught where docs/promises.md says",
        "pipeline/test_tracing",
        "planted_input",
    ),
    Case("no namespaces, or no sandbox", "said; Landlock still stops reads", "pipeline/test_tracing", "weaker_sandbox"),
    Case("a stage traced alone", "inputs from the cache", "pipeline/test_tracing", "traced_alone"),
    Case(
        "a bit of an input flipped, time kept", "the next stage stops", "core/test_recorded", "flipped_bit or damaged"
    ),
    Case(
        "a bit flipped in tree, cache, listing",
        "aurora verify, remedy works",
        "pipeline/test_integrity",
        "flipped or damaged",
    ),
    Case("an import by a computed name", "aurora check finds it", "pipeline/test_rooms", "every_form_of_an_import"),
    Case("aurora why of a frozen stage", "says that it never runs", "pipeline/test_reasons", "frozen"),
    Case("a remote object damaged or missing", "aurora verify --remote", "pipeline/test_integrity", "remote"),
    Case(
        "eval's memory: a bit, a page, a file",
        "computed again",
        "eval/test_resume_cache",
        "flipped or damaged or another",
    ),
    Case("eval's memory: a power cut", "what was written is there", "eval/test_resume_cache", "power_cut"),
    Case("eval's memory: a full disk", "one line", "eval/test_resume_cache", "full_disk"),
    Case(
        "cache unmounted or not writable", "doctor: a fault, nothing made", "commands/test_doctor", "cache_that_takes"
    ),
    Case("remote missing", "doctor: a fault", "commands/test_doctor", "written_to"),
    Case("a training runs", "doctor: not to be removed", "commands/test_doctor", "training_that_runs"),
    Case("links to nothing, frozen stages", "doctor names them", "commands/test_doctor", "frozen"),
    Case("a remote folder of several users", "doctor: mode and umask", "commands/test_doctor", "several_share"),
    Case(
        "a second user pushes to a folder", "both push and pull, as docs say", "pipeline/test_sharing", "several_users"
    ),
    Case("published by another user than root", "ordinary permissions, right sums", "export/test_export", "ordinary"),
    Case("other bytes than dvc.lock's published", "refused", "export/test_export", "other_bytes"),
    Case("secrets in addresses", "refused, and not repeated", "sources/test_uris", "secret"),
    Case("a link of the repository leads out", "refused", "fetch/test_fetch", "leads_out"),
    Case("markup in a licence", "text in every card and table", "report/test_model_card", "opens_no_markup"),
    Case("four busy processes beside a stage", "no more CPU time, as threads sleep", "core/test_environment", "busy"),
    Case("aurora why, plan without a cache", "one line", "pipeline/test_reasons", "cache_that_cannot"),
)


def run_tests(file: str, cases: list[Case]) -> dict[str, str]:
    """Runs the tests of these cases, which stand in one file; for each by its name what went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name, "report.xml")
        names = " or ".join(case.names for case in cases)
        command = [sys.executable, "-m", "pytest", f"tests/{file}.py", "-k", names, f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        tests = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    found = {}
    for test in tests:
        wrong = [child for child in test if child.tag in ("failure", "error", "skipped")]
        said = (wrong[0].get("message") or wrong[0].tag).partition("\n")[0][:120] if wrong else ""
        found[test.get("name", "")] = said
    return found


def seen(case: Case, results: dict[str, str]) -> tuple[int, str]:
    """How many tests of the case ran, and what they saw."""
    mine = {test: wrong for test, wrong in results.items() if any(part in test for part in case.names.split(" or "))}
    faults = [f"{test}: {wrong}" for test, wrong in mine.items() if wrong]
    return len(mine), "; ".join(faults) or (AS_EXPECTED if mine else "no test ran")


@click.command()
@click.option("--only", default="", help="Cases in whose attack or file this text stands.")
def main(only: str) -> None:
    """Run the attacks and print the table."""
    table = []
    print(f"{'attack':<45}{'expected':<36}{'tests':>6}  seen")
    chosen = [case for case in CASES if only in f"{case.attack} {case.file}"]
    for file in dict.fromkeys(case.file for case in chosen):
        cases = [case for case in chosen if case.file == file]
        results = run_tests(file, cases)
        for case in cases:
            count, found = seen(case, results)
            table.append({"attack": case.attack, "expected": case.expected, "tests": count, "seen": found})
            print(f"{case.attack:<45}{case.expected:<36}{count:>6}  {found}", flush=True)
    failed = sum(row["seen"] != AS_EXPECTED for row in table)
    print(f"{len(table)} cases, {failed} otherwise than expected")
    print(json.dumps({"cases": len(table), "otherwise": failed, "table": table}, ensure_ascii=False))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
