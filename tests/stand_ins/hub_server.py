"""A local server that speaks the Hugging Face hub's protocol, and serves plain files, with faults on demand.

Repository information, listings with LFS, resolve with etags and redirects to a second server that stands for the
hub's storage, ranges, gated and private repositories; every answer as huggingface.co gives it as far as
the unmodified huggingface_hub client looks at it (https://huggingface.co/docs/hub/api).
"""

import datetime
import hashlib
import ipaddress
import json
import mmap
import re
import socket
import ssl
import struct
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_FROM = 1 << 16  # bytes; smaller files lie in git itself
TOKEN = "hf_a-token-that-no-log-may-show"


@dataclass
class Fault:
    """What goes wrong with one GET of a file; faults of a path are used up in their order."""

    cut_after: int | None = None
    """Body bytes after which the connection is closed."""
    resets: bool = False
    """Whether that close is a reset, which throws away what is under way."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    claims: int | None = None
    """Content-Length that is said in place of the true one; a smaller one also ends the body there."""
    flips: int | None = None
    """Place of a byte that comes out wrong."""
    stalls: float = 0
    """Seconds of silence in the middle of the body, or before a status."""
    ignores_ranges: bool = False


@dataclass
class Repository:
    """One repository at one commit."""

    commit: str
    files: dict[str, bytes | Path]
    gated: bool = False
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)

    def pointer(self, path: str) -> bytes:
        """What git itself holds of a file that LFS holds."""
        content = self.files[path]
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {size}\n".encode()

    def entry(self, path: str) -> dict:
        """A file as the tree API lists it."""
        content = self.files[path]
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size < LFS_FROM:
            return {"type": "file", "path": path, "size": size, "oid": git_blob(read(content))}
        pointer = self.pointer(path)
        lfs = {"oid": sha256(content), "size": size, "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": size, "oid": git_blob(pointer), "lfs": lfs}


def read(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


DIGESTS: dict[Path, str] = {}


def sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if content not in DIGESTS:
        with content.open("rb") as file:
            DIGESTS[content] = hashlib.file_digest(file, "sha256").hexdigest()
    return DIGESTS[content]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self) -> None:
        hub: LocalHub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers)))
        if path in hub.files:
            return self.file(path, hub.files[path], '"%s"')
        if path.startswith("/storage/"):
            content = hub.storage.get(path)
            return self.file(path, content, '"%s"') if content is not None else self.refuse(404, "")
        if found := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        ):
            return self.api(*found.groups())
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/(resolve|raw)/([^/]+)/(.+)", path):
            return self.resolve("datasets" if found[1] else "models", *found.groups()[1:])
        return self.refuse(404, "")

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
        siblings = []
        for path in sorted(repository.files):
            entry = repository.entry(path)
            siblings.append({"rfilename": path})
            if "blobs" in parse_qs(urlsplit(self.path).query):
                lfs = entry.get("lfs")
                siblings[-1] |= {"size": entry["size"], "blobId": entry["oid"]}
                siblings[-1] |= (
                    {"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}}
                    if lfs
                    else {}
                )
        return self.json({"_id": "0", "id": name, "modelId": name, "sha": commit, "private": repository.private,
                          "gated": "manual" if repository.gated else False, "siblings": siblings})  # fmt: skip

    def resolve(self, kind: str, name: str, how: str, revision: str, path: str) -> None:
        hub: LocalHub = self.server.hub
        repository = self.repository(kind, name, revision, content=True)
        if repository is None:
            return None
        if path not in repository.files:
            return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        entry, content = repository.entry(path), repository.files[path]
        commit = {"X-Repo-Commit": repository.commit}
        if "lfs" not in entry:
            return self.file(urlsplit(self.path).path, content, f'"{entry["oid"]}"', commit)
        if how == "raw":
            return self.reply(200, repository.pointer(path), commit)
        storage = f"/storage/{entry['lfs']['oid']}"
        hub.storage[storage] = content
        linked = {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
        location = f"{hub.storage_url}{storage}?X-Amz-Signature=signed&filename={quote(path)}"
        return self.reply(302, b"", commit | linked | {"Location": location, "Accept-Ranges": "bytes"})

    def file(self, path: str, content: bytes | Path, tag: str, more: dict[str, str] | None = None) -> None:
        """A file or a range of it, with the next fault of its path."""
        hub: LocalHub = self.server.hub
        fault = hub.faults[path].pop(0) if self.command == "GET" and hub.faults[path] else Fault()
        if fault.status:
            time.sleep(fault.stalls)
            return self.reply(fault.status, b"", fault.headers)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        headers = {"Accept-Ranges": "bytes"} | (more or {})
        headers["ETag"] = tag % sha256(content) if "%s" in tag else tag
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not fault.ignores_ranges:
            start, status = int(asked[1]), 206
            if start >= size:
                return self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        length = size - start if fault.claims is None else fault.claims
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = min(size, start + length)
        if isinstance(content, Path) and fault == Fault():
            with content.open("rb") as file:
                while start < end:  # counted as it goes: the client may go away
                    count = self.connection.sendfile(file, start, min(end - start, 1 << 16))
                    start, hub.sent[path] = start + count, hub.sent[path] + count
        elif isinstance(content, Path) and fault.flips is None:
            with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                self.faulty(path, mapped, start, end, fault)
        else:
            self.faulty(path, read(content), start, end, fault)

    def faulty(self, path: str, content: bytes | mmap.mmap, start: int, end: int, fault: Fault) -> None:
        hub: LocalHub = self.server.hub
        if fault.flips is not None:
            content = content[: fault.flips] + bytes([content[fault.flips] ^ 1]) + content[fault.flips + 1 :]
        stop = end if fault.cut_after is None else min(end, start + fault.cut_after)
        for at in range(start, stop, 1 << 16):
            block = content[at : min(at + (1 << 16), stop)]
            self.wfile.write(block)
            hub.sent[path] += len(block)
            if fault.stalls and at <= (start + stop) // 2 < at + (1 << 16):
                self.wfile.flush()
                time.sleep(fault.stalls)
        self.wfile.flush()
        if stop < end or (fault.claims or 0) > end - start:
            self.close_connection = True
        if fault.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str = "", more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.reply(status, json.dumps({"error": message}).encode(), headers | (more or {}))

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what many tests are about


class LocalHub:
    """Two servers on loopback, the hub and its storage, and what both serve; a context manager."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.files: dict[str, bytes | Path] = {}
        self.storage: dict[str, bytes | Path] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict]] = []
        self.sent: dict[str, int] = defaultdict(int)
        self.servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
        scheme = "http"
        for server in self.servers:
            server.hub = self
            if certificate:
                scheme = "https"
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.url, self.storage_url = (f"{scheme}://127.0.0.1:{server.server_port}" for server in self.servers)

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


def certificate(path: Path) -> Path:
    """Writes a key and a certificate for 127.0.0.1 that signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    path.chmod(0o600)
    return path
