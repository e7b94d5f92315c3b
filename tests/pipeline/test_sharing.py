"""What one person pushes another one pulls: the same bytes, nothing run again, and nothing damaged on the way.

The graph is the project's own; its stages have small commands in their places (clones.with_small_commands). The real
ones run in test_collaborator.py.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stand_ins.clones import (
    DVC,
    bytes_of,
    commands_under,
    commit,
    copy_tracked,
    docs,
    dvc,
    edit,
    ran,
    restored,
    run,
    second_clone,
    surroundings,
    use_remote,
    with_small_commands,
)
from stand_ins.remote_servers import S3, SECRET, OpenSsh, Server, Sftp

ALL = ("data", "models")
VERIFY = {"verify": "true"}
# A user who may read, but not write, where only root may: the interpreter may lie in root's home.
READ_ALL = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
SHARED = "/mnt/shared/aurora"  # of docs/sharing.md
pytestmark = pytest.mark.slow  # DVC over its remotes takes minutes
EVALUATED = ["checkpoints", "eval@base", "eval@tuned", "report"]
OBJECT = re.compile(r"files/md5/(../.{30}(?:\.dir)?)$")
MEBIBYTE = 2**20
PATIENCE = 60  # seconds until DVC must have noticed that a server is gone


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the pipeline has run, committed and pushed to the folder `remote` beside it."""
    folder = tmp_path_factory.mktemp("sharing") / "finished"
    copy_tracked(root, folder)
    with_small_commands(folder, {"data/raw/model/base": 12 * MEBIBYTE, "models/merged": 12 * MEBIBYTE})
    use_remote(folder, "../remote", VERIFY)
    run(folder, "git", "rm", "-r", "--quiet", "metrics/pictures")  # the small command writes no pictures
    assert len(ran(dvc(folder, "repro"))) == 16
    commit(folder, "run")
    dvc(folder, "push", "--run-cache")
    return folder


@pytest.fixture
def first(finished: Path, tmp_path: Path) -> Path:
    """The first person's clone, in which all lies; the remote is the folder `remote` beside it, still empty."""
    folder = second_clone(finished, tmp_path / "first")
    run(folder, "cp", "--recursive", "--link", str(finished / ".dvc/cache"), ".dvc/cache")
    dvc(folder, "checkout")
    return folder


@pytest.fixture
def remote(finished: Path, tmp_path: Path) -> Path:
    """The remote beside `first`, with everything pushed."""
    run(tmp_path, "cp", "--recursive", "--link", str(finished.parent / "remote"), "remote")
    return tmp_path / "remote"


@pytest.fixture
def second(finished: Path, tmp_path: Path) -> Path:
    """The second person's clone, as git gives it."""
    return second_clone(finished, tmp_path / "second")


def damaged(objects: Path) -> list[str]:
    """Objects whose content is not what their name says."""
    names = {path: OBJECT.search(path.as_posix()) for path in objects.rglob("*")}
    wanted = {path: name[1].replace("/", "").removesuffix(".dir") for path, name in names.items() if name}
    return [path.as_posix() for path, md5 in wanted.items() if hashlib.md5(path.read_bytes()).hexdigest() != md5]


def object_of(objects: Path, file: Path) -> Path:
    """Where the object of `file` lies."""
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return objects / "files/md5" / md5[:2] / md5[2:]


def locked(folder: Path, stage: str, out: str) -> str:
    """The hash that dvc.lock gives an output."""
    content = YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))
    return next(entry["md5"] for entry in content["stages"][stage]["outs"] if entry["path"] == out)


@pytest.mark.usefixtures("remote")
def test_a_second_clone_has_the_same_bytes_and_nothing_to_run(finished: Path, second: Path):
    dvc(second, "pull")
    assert bytes_of(second, *ALL) == bytes_of(finished, *ALL)
    printed = dvc(second, "repro")
    assert ran(printed) == restored(printed) == []
    assert run(second, "git", "status", "--porcelain") == ""


@pytest.mark.usefixtures("remote")
def test_every_file_stands_on_the_disk_once(finished: Path, second: Path):
    dvc(second, "pull")
    for folder in (finished, second):
        for name in bytes_of(folder, *ALL):
            assert (folder / name).samefile(object_of(folder / ".dvc/cache", folder / name)), name


@pytest.mark.usefixtures("remote")
def test_the_run_cache_restores_what_another_clone_has_computed(finished: Path, second: Path):
    (second / "dvc.lock").unlink()
    printed = dvc(second, "repro", "--pull")
    assert ran(printed) == ["report"]  # its outputs are in git, which no remote has
    assert len(restored(printed)) == 15
    assert bytes_of(second, *ALL, "metrics", "dvc.lock") == bytes_of(finished, *ALL, "metrics", "dvc.lock")


@pytest.mark.usefixtures("remote")
def test_an_evaluation_setting_fetches_what_eval_and_report_read_and_runs_them_alone(
    root: Path, finished: Path, second: Path
):
    (command,) = [line for line in docs(root).splitlines() if "--pull --allow-m" in line]
    edit(second, "params.yaml", r"(?m)^    prompts: \d+", "    prompts: 7")
    dvc(second, "pull", "fetch@language_confusion")  # as docs/sharing.md says
    assert ran(run(second, "bash", "-c", command)) == EVALUATED
    here, whole = bytes_of(second, *ALL), bytes_of(finished, *ALL)
    for model in ("data/raw/model/base/weights.bin", "models/merged/weights.bin"):
        assert here[model] == whole[model]
    for left in ("data/clean/conversations.parquet", "data/format/train.parquet"):
        assert left in whole and left not in here


@pytest.mark.usefixtures("remote")
def test_a_setting_that_another_clone_has_tried_is_not_trained_again(first: Path, second: Path):
    for folder in (first, second):
        edit(folder, "params.yaml", r"(?m)^  learning_rate: \S+", "  learning_rate: 1.234e-3")
    assert ran(dvc(first, "repro")) == ["checkpoints", "eval@tuned", "merge", "report", "sft"]
    dvc(first, "push", "--run-cache")  # and no commit
    printed = dvc(second, "repro", "--pull")
    assert (restored(printed), ran(printed)) == (["checkpoints", "eval@tuned", "merge", "sft"], ["report"])
    assert bytes_of(second, "dvc.lock") == bytes_of(first, "dvc.lock")


def test_what_the_pipeline_makes_again_need_not_be_pushed(root: Path, first: Path, second: Path, tmp_path: Path):
    (command,) = re.findall(r"(?m)^dvc push data/raw/.*$", docs(root))
    run(first, "bash", "-c", command)
    for name, is_there in {
        "data/raw/model/base/weights.bin": False,
        "models/merged/weights.bin": False,
        "models/adapter/weights.bin": True,
        "data/raw/benchmark/mmlu/weights.bin": True,
        "data/format/train.parquet": True,
        "data/eval/tuned/weights.bin": True,
    }.items():
        assert object_of(tmp_path / "remote", first / name).exists() == is_there, name
    assert ran(dvc(second, "repro", "--pull")) == ["fetch@base", "merge"]
    assert bytes_of(second, *ALL, "dvc.lock") == bytes_of(first, *ALL, "dvc.lock")


def test_a_base_of_hub_models_is_not_pushed_and_a_clone_fetches_it_again(root: Path, first: Path, tmp_path: Path):
    yaml = YAML()
    params, paper = (yaml.load((root / name).read_text()) for name in ("params.yaml", "profiles/paper.yaml"))
    del params["sources"]["base"]
    params["hub_models"] = paper["hub_models"]
    with (first / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    before = (first / "dvc.lock").read_bytes()
    with_small_commands(first)
    (first / "dvc.lock").write_bytes(before)  # as it is when a profile is switched: fetch@base stays in it
    stages = ran(dvc(first, "repro"))
    assert "fetch_hub@base" in stages and "fetch@base" not in stages
    commit(first, "a base of a hub")
    dvc(first, "push")
    for name in bytes_of(first, *ALL):
        there = object_of(tmp_path / "remote", first / name).exists()
        assert there is not name.startswith("data/raw/model/"), name
    second = second_clone(first, tmp_path / "second")
    (command,) = [line for line in docs(root).splitlines() if line.startswith("dvc repro --pull  ")]
    assert "data/raw/model/base" in dvc(second, "pull", returncode=None)
    assert ran(run(second, "bash", "-c", command)) == ["fetch_hub@base"]
    assert bytes_of(second, *ALL, "dvc.lock") == bytes_of(first, *ALL, "dvc.lock")
    for name, edited, stages in (
        ("third", (r"(?m)^    prompts: \d+", "    prompts: 7"), EVALUATED),
        (
            "fourth",
            (r"(?m)^  learning_rate: \S+", "  learning_rate: 1.234e-3"),
            ["checkpoints", "eval@tuned", "merge", "report", "sft"],
        ),
    ):
        clone = second_clone(first, tmp_path / name)
        edit(clone, "params.yaml", *edited)
        assert ran(dvc(clone, "repro", "fetch_hub")) == ["fetch_hub@base"]
        dvc(clone, "pull", "fetch@language_confusion")
        (command,) = [line for line in docs(root).splitlines() if "--pull --allow-m" in line]
        assert sorted(ran(run(clone, "bash", "-c", command))) == stages
        assert not (clone / "data/raw/instructions").exists()


def test_gc_keeps_what_every_branch_names_and_frees_the_rest(root: Path, first: Path, remote: Path, tmp_path: Path):
    merged = first / "models/merged/weights.bin"
    objects = {"main": object_of(remote, merged)}
    use_remote(first, str(remote), VERIFY)
    commit(first, "a remote with an absolute path")
    for name in ("slower", "given up"):
        edit(first, "params.yaml", r"(?m)^  learning_rate: \S+", f"  learning_rate: {len(name)}e-4")
        dvc(first, "repro")
        dvc(first, "push")
        objects[name] = object_of(remote, merged)
        if name == "slower":
            run(first, "git", "switch", "--quiet", "--create", name)
            commit(first, name)
            run(first, "git", "switch", "--quiet", "main")
    assert all(path.exists() for path in objects.values())
    third = second_clone(first, tmp_path / "third")  # whose git has no branch `slower` of its own yet
    for command in commands_under(root, "## Making room"):
        run(third, "bash", "-c", command, answer="y\n")
    there = {name: path.exists() for name, path in objects.items()}
    assert there == {"main": True, "slower": True, "given up": False}
    run(third, "git", "switch", "--quiet", "slower")
    dvc(third, "pull")
    assert ran(dvc(third, "repro")) == []


def test_several_users_of_one_folder(root: Path):
    """Two users of one group push to it and pull from it, as docs/sharing.md says; without that the second is refused."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can be two users")
    opened, mask = commands_under(root, "## Several users of one folder")
    with tempfile.TemporaryDirectory() as name:  # the folder of the test is closed to others
        place = Path(name)
        place.chmod(0o755)

        def typed(user: int, script: str, returncode: int | None = 0) -> str:
            """By a user of the group 4800, in the user's own project."""
            home = place / str(user)
            who = ["setpriv", f"--reuid={user}", "--regid=4800", "--clear-groups", *READ_ALL]
            settings = {"HOME": str(home), "LOGNAME": str(user), "DVC_SITE_CACHE_DIR": str(home / "site")}
            return run(home, *who, "bash", "-c", script, returncode=returncode, **settings)

        for user in (4801, 4802):
            for number in range(300):  # in most of the 256 folders of a remote
                file = place / f"{user}/data/{number}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{user} {number}")
            run(place, "chown", "-R", f"{user}:4800", str(user))
            typed(user, f"{DVC} init --no-scm --quiet && {DVC} add --quiet data")
        for told in (False, True):
            shared = place / f"shared-{told}"
            shared.mkdir()
            os.chown(shared, 4801, 4800)
            shared.chmod(0o2775)
            if told:
                typed(4801, opened.replace(SHARED, str(shared)).replace("team", "4800"))
            push = f"{mask if told else 'umask 022'}; {DVC} remote add -f -d shared {shared} && {DVC} push"
            typed(4801, push)
            printed = typed(4802, push, 0 if told else None)
            assert told or "Permission denied" in printed
        shutil.copyfile(place / "4802/data.dvc", place / "4801/data.dvc")
        typed(4801, f"{DVC} pull --force")
        assert (place / "4801/data/7").read_text() == "4802 7"


def test_a_damaged_object_is_never_pulled(first: Path, second: Path, remote: Path):
    name = "models/merged/weights.bin"
    whole = object_of(remote, first / name)
    cut = whole.read_bytes()[:-1]
    whole.unlink()
    whole.write_bytes(cut)
    printed = dvc(second, "pull", "--verbose", returncode=None)
    assert "models/merged" in printed and re.search(rf"corrupted cache file .*{whole.name}", printed)
    assert not (second / name).exists()
    assert damaged(second / ".dvc/cache") == []
    md5 = locked(first, "merge", "models/merged")
    for path in (whole, remote / "files/md5" / md5[:2] / md5[2:]):
        path.unlink()
    dvc(first, "push")
    dvc(second, "pull")
    assert bytes_of(second, *ALL) == bytes_of(first, *ALL)


@pytest.mark.usefixtures("remote")
def test_a_sweep_leaves_the_tree_clean_shows_what_differs_and_travels(root: Path, first: Path, second: Path):
    (first / ".venv").symlink_to(Path(sys.prefix))
    before = bytes_of(first, *ALL, "params.yaml", "dvc.lock", "metrics")
    queue, work, show, differ = commands_under(root, "# Experiments")
    for command in (queue, work):
        run(first, "bash", "-c", command)
    assert bytes_of(first, *ALL, "params.yaml", "dvc.lock", "metrics") == before
    assert run(first, "git", "status", "--porcelain", "--untracked-files=no") == ""
    header, _, *rows = run(first, "bash", "-c", show).strip().splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    values = [metric for metric in columns if metric.endswith("value")]  # what the small commands measure
    plain = {"Experiment", "Created", "State", "Executor", "sft.learning_rate", *values}
    assert 1 <= len(values) <= 2
    assert all(column in plain or "/" in column for column in columns)  # the others are paths that stages read
    rates = [row.strip("|").split("|")[columns.index("sft.learning_rate")].strip() for row in rows]
    assert rates == ["0.003", "0.01", "0.002"]
    printed = run(first, "bash", "-c", differ)
    assert re.search(r"params.yaml +sft.learning_rate +0.003 +0.0\d+", printed)
    assert "metrics/tuned.json" in printed
    dvc(first, "exp", "push", "origin", "rate-1")
    dvc(second, "pull")
    dvc(second, "exp", "pull", "origin", "rate-1")
    for folder in (first, second):
        dvc(folder, "exp", "apply", "rate-1")
        assert ran(dvc(folder, "repro")) == []
    assert bytes_of(second, *ALL, "metrics") == bytes_of(first, *ALL, "metrics")
    assert (second / "models/merged/weights.bin").read_bytes() != before["models/merged/weights.bin"]


@pytest.fixture(params=[S3, Sftp, OpenSsh], ids=["s3", "sftp", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A running server of each kind."""
    server = request.param(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def connect(folder: Path, server: Server, right: bool = True) -> dict[str, str]:
    """Makes the server the remote of `folder`; the environment that DVC then needs."""
    url, options = server.remote()
    secrets, environment = server.secrets(right)
    use_remote(folder, url, options | VERIFY, secrets)
    return environment


def test_a_stranger_is_refused_and_told_so(first: Path, server: Server):
    stranger = connect(first, server, right=False)
    for command in ("push", "pull"):
        if command == "pull":
            run(first, "rm", "-rf", ".dvc/cache", "models/adapter")
        printed = dvc(first, command, returncode=None, **stranger)
        assert server.refusal in printed and "ERROR: " in printed
        assert "another-secret" not in printed and "Traceback" not in printed
        assert not any(path.is_file() for path in server.objects.rglob("*"))


def test_a_server_takes_and_gives_the_same_bytes(first: Path, server: Server, tmp_path: Path):
    environment = connect(first, server)
    dvc(first, "push", "--run-cache", **environment)
    assert SECRET not in (first / ".dvc/config").read_text(encoding="utf-8")
    assert damaged(server.objects) == []
    second = second_clone(first, tmp_path / "second")
    connect(second, server)
    dvc(second, "pull", "--run-cache", **environment)
    assert bytes_of(second, *ALL) == bytes_of(first, *ALL)
    (second / "dvc.lock").unlink()
    printed = dvc(second, "repro", "--pull", **environment)
    assert (len(restored(printed)), ran(printed)) == (15, ["report"])


def objects_at(folder: Path) -> int:
    """Objects of DVC's that are at `folder`, whole or not."""
    return sum(OBJECT.search(path.as_posix()) is not None for path in folder.rglob("*"))


def kill_during(folder: Path, server: Server, command: str, watched: Path, environment: dict) -> str:
    """Runs DVC, kills the server once some objects but not all are at `watched`, and returns what DVC printed.

    Over SSH fsspec closes a half-written file at exit, on an event loop that is gone: DVC has said all and hangs.
    Rarely it hangs before it has said anything; then the server is killed under another client.
    """
    for _ in range(3):
        if server.process is None:
            server.start()
        before = objects_at(watched)
        started = subprocess.Popen(
            [DVC, command, "--jobs", "2"],
            cwd=folder,
            env=surroundings(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while started.poll() is None:
            if objects_at(watched) > before + 4:
                server.kill()
                break
            time.sleep(0.002)
        try:
            printed = started.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            started.kill()
            printed = started.communicate()[0]
        assert server.process is None, f"{command} ended before the server was killed:\n{printed}"
        assert started.returncode != 0
        if printed:
            break
    return printed


def test_a_server_killed_during_a_push_has_what_a_second_push_completes(first: Path, server: Server, tmp_path: Path):
    environment = connect(first, server)
    assert "ERROR" in kill_during(first, server, "push", server.objects, environment)
    assert damaged(server.objects) == []
    server.start()
    dvc(first, "push", **environment)
    second = second_clone(first, tmp_path / "second")
    connect(second, server)
    dvc(second, "pull", **environment)
    assert bytes_of(second, *ALL) == bytes_of(first, *ALL)


def test_a_server_killed_during_a_pull_leaves_no_damaged_file(first: Path, server: Server, tmp_path: Path):
    environment = connect(first, server)
    dvc(first, "push", **environment)
    second = second_clone(first, tmp_path / "second")
    connect(second, server)
    assert "ERROR" in kill_during(second, server, "pull", second / ".dvc/cache", environment)
    assert damaged(second / ".dvc/cache") == []
    whole = bytes_of(first, *ALL)
    assert bytes_of(second, *ALL).items() <= whole.items()
    server.start()
    dvc(second, "pull", **environment)
    assert bytes_of(second, *ALL) == whole
