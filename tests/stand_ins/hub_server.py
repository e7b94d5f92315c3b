"""A local server that speaks the Hugging Face hub's protocol, and serves plain files, with faults on demand.

Repository information, listings with LFS, resolve with etags and redirects to a second server that stands for the
hub's storage, ranges, gated and private repositories; every answer as huggingface.co gives it as far as
the unmodified huggingface_hub client looks at it (https://huggingface.co/docs/hub/api).
"""

import hashlib
import json
import re
import ssl
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

import trustme

LFS_FROM = 1 << 16  # bytes; smaller files lie in git itself
TOKEN = "hf_a-token-that-no-log-may-show"


@dataclass
class Fault:
    """What goes wrong with one GET of a file; faults of a path are used up in their order."""

    cut_after: int | None = None
    """Body bytes after which the connection is closed."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    flips: int | None = None
    """Place of a byte that comes out wrong."""
    stalls: float = 0
    """Seconds of silence in the middle of the body."""
    ignores_ranges: bool = False


@dataclass
class Repository:
    """One repository at one commit."""

    commit: str
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)

    def pointer(self, path: str) -> bytes:
        """What git itself holds of a file that LFS holds."""
        content = self.files[path]
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()
        )

    def entry(self, path: str) -> dict:
        """A file as the tree API lists it."""
        content = self.files[path]
        entry = {"type": "file", "path": path, "size": len(content)}
        if len(content) < LFS_FROM:
            return entry | {"oid": git_blob(content)}
        pointer = self.pointer(path)
        lfs = {"oid": sha256(content), "size": len(content), "pointerSize": len(pointer)}
        return entry | {"oid": git_blob(pointer), "lfs": lfs}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_HEAD

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self) -> None:
        hub: LocalHub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        if path in hub.files:
            return self.file(path, hub.files[path])
        if found := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        ):
            return self.api(*found.groups())
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/(resolve|raw)/([^/]+)/(.+)", path):
            return self.resolve("datasets" if found[1] else "models", *found.groups()[1:])
        return self.refuse(404)

    def repository(self, kind: str, name: str, revision: str | None, content: bool) -> Repository | None:
        """The repository, if it is there and the token may see it (or, of a gated one, its content)."""
        hub: LocalHub = self.server.hub
        found = hub.repositories.get((kind, name))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, "hf_stranger"):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.private and token != TOKEN):
            # The hub does not say to strangers whether a repository exists.
            self.refuse(404 if token == TOKEN else 401, "RepoNotFound", "Repository Not Found")
        elif revision not in (None, found.commit, *found.branches):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif content and found.gated and token != TOKEN:
            self.refuse(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        else:
            return found
        return None

    def api(self, kind: str, name: str, what: str | None, revision: str | None, below: str | None) -> None:
        repository = self.repository(kind, name, revision, content=False)
        if repository is None:
            return None
        commit = repository.branches.get(revision or "main", repository.commit)
        if what == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", [])
            return self.json([repository.entry(path) for path in wanted if path in repository.files])
        if what == "tree":
            return self.json([repository.entry(path) for path in sorted(repository.files)])
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        return self.json({"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings})

    def resolve(self, kind: str, name: str, how: str, revision: str, path: str) -> None:
        hub: LocalHub = self.server.hub
        repository = self.repository(kind, name, revision, content=True)
        if repository is None:
            return None
        if path not in repository.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        entry, content = repository.entry(path), repository.files[path]
        commit = {"X-Repo-Commit": repository.commit}
        if "lfs" not in entry:
            return self.file(urlsplit(self.path).path, content, commit | {"ETag": f'"{entry["oid"]}"'})
        if how == "raw":
            return self.reply(200, repository.pointer(path), commit)
        storage = f"/storage/{entry['lfs']['oid']}"
        hub.files[storage] = content
        linked = {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
        location = f"{hub.storage_url}{storage}?X-Amz-Signature=signed&filename={quote(path)}"
        return self.reply(302, b"", commit | linked | {"Location": location, "Accept-Ranges": "bytes"})

    def file(self, path: str, content: bytes, more: dict[str, str] | None = None) -> None:
        """A file or a range of it, with the next fault of its path."""
        hub: LocalHub = self.server.hub
        fault = hub.faults[path].pop(0) if self.command == "GET" and hub.faults[path] else Fault()
        if fault.status:
            return self.reply(fault.status, b"", fault.headers)
        size, start, status = len(content), 0, 200
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha256(content)}"'} | (more or {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not fault.ignores_ranges:
            start, status = int(asked[1]), 206
            if start >= size:
                return self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.head(status, headers, size - start)
        if self.command == "HEAD":
            return None
        if fault.flips is not None:
            content = content[: fault.flips] + bytes([content[fault.flips] ^ 1]) + content[fault.flips + 1 :]
        stop = size if fault.cut_after is None else min(size, start + fault.cut_after)
        for at in range(start, stop, 1 << 16):
            block = content[at : min(at + (1 << 16), stop)]
            self.wfile.write(block)
            hub.sent[path] += len(block)
            if fault.stalls and at <= (start + stop) // 2 < at + (1 << 16):
                self.wfile.flush()
                time.sleep(fault.stalls)
        self.wfile.flush()
        self.close_connection = stop < size

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.reply(status, json.dumps({"error": message}).encode(), headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what many tests are about


class LocalHub:
    """Two servers on loopback, the hub and its storage, and what both serve; a context manager."""

    def __init__(self, authority: trustme.CA) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict]] = []
        self.sent: dict[str, int] = defaultdict(int)
        self.servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        for server in self.servers:
            server.hub = self
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.url, self.storage_url = (f"https://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> "LocalHub":
        for server in self.servers:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def count(self, path: str, method: str = "GET") -> int:
        """Requests for a path so far."""
        return sum(request[:2] == (method, path) for request in self.requests)
