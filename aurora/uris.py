"""Addresses of sources, taken apart: a path, `file:`, `https://`, `hf://`, `pypi://`, and a folder inside an archive."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB = re.compile(
    r"hf://(?P<dataset>datasets/)?(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"@(?P<revision>[\w.%-]+)(?:/(?P<path>[^\s?#]+))?",
    re.ASCII,
)
PACKAGE = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)@(?P<version>[0-9][A-Za-z0-9.!+]*)/(?P<path>[^\s?#]+)",
    re.ASCII,
)
EMBEDDED = "embedded:small_base"
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?\s?commercial|research\b.*\bonly|academic use", re.IGNORECASE)
# A signed link is a secret for a time and bytes that cannot be fetched again afterwards.
SECRETS = re.compile(r"token|signature|^sig$|credential|secret|password|api_?key", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """A URI of params.yaml, taken apart."""

    scheme: str
    """path, embedded, https, hf or pypi."""
    path: str
    """A path on this machine, an https URL, NAME==VERSION of a package, or a file of a hub repository; empty for a
    whole snapshot."""
    member: str | None = None
    """Folder or file to take out of an archive or a package, empty for all of it; None where it is no archive."""
    repository: str = ""
    """OWNER/NAME on the hub, or the name of a package."""
    dataset: bool = False
    """Whether the repository is a data set rather than a model."""
    revision: str | None = None
    """Commit, branch or tag on the hub, or the version of a package."""

    @property
    def local(self) -> bool:
        """Whether the bytes lie on this machine."""
        return self.scheme in ("path", "embedded")

    @property
    def pinned(self) -> bool:
        """Whether the address itself names its bytes for good: a full commit id."""
        return bool(COMMIT.fullmatch(self.revision or ""))


def parse(uri: str) -> Address:
    """Takes a URI apart. Raises ValueError with the rule, the URI and the remedy."""
    if not uri or uri != uri.strip() or re.search(r"[\x00-\x1f\x7f]", uri):
        raise ValueError(f"uri {uri!r} is empty, or has a space at an end or a control character; correct it")
    place, *members = uri.split("!/")
    if len(members) > 1 or place.endswith("!") or not place:
        raise ValueError(f"uri '{uri}' is malformed; write ARCHIVE!/FOLDER, with one !/")
    member = members[0].strip("/") if members else None
    if member and not all(part not in ("", ".", "..") for part in member.split("/")):
        raise ValueError(
            f"uri '{uri}' names a folder with an empty part, . or ..; name it from the archive's root"
        )
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", place)
    if uri == EMBEDDED:
        return Address("embedded", uri)
    if not scheme:
        return Address("path", place, member)
    if scheme[1] == "file":
        return Address("path", _file(uri, place), member)
    if scheme[1] == "https":
        return Address("https", _web(uri, place), member)
    if scheme[1] == "hf":
        return _hub(uri, place, member)
    if scheme[1] == "pypi":
        return _package(uri)
    if scheme[1] == "embedded":
        raise ValueError(f"uri '{uri}' is unknown; the one embedded model is {EMBEDDED}")
    raise ValueError(
        f"uri '{uri}' has the unknown scheme '{scheme[1]}'; give a path, file:, https://, hf:// or pypi://"
    )


def _file(uri: str, place: str) -> str:
    path = place.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"uri '{uri}' names another machine; write file:PATH or file:///PATH")
        path = "/" + rest
    if not path or "?" in path or "#" in path:
        raise ValueError(f"uri '{uri}' names no file; write file:PATH or file:///PATH")
    return unquote(path)


def _web(uri: str, place: str) -> str:
    try:
        parts = urlsplit(place)
        well_formed = bool(parts.hostname) and parts.port != 0 and " " not in place
    except ValueError:
        well_formed = False
    if not well_formed or not place.startswith("https://") or parts.path in ("", "/"):
        raise ValueError(f"uri '{uri}' is malformed; write https://HOST/PATH")
    if parts.username is not None or any(SECRETS.search(key) for key, _ in parse_qsl(parts.query)):
        raise ValueError(
            f"uri 'https://{parts.hostname}{parts.path}' holds a user name, password, token or signature, which would be "
            "written into dvc.lock; give a public address (tokens come from the environment)"
        )
    if parts.fragment:
        raise ValueError(f"uri '{uri}' has a part behind #, which no server sees; remove it")
    return place


def _hub(uri: str, place: str, member: str | None) -> Address:
    found = HUB.fullmatch(place)
    path = unquote((found and found["path"]) or "")
    if (
        not found
        or re.search(r"--|\.\.|[.-]/|[.-]$|\.git$", found["repository"])
        or any(part in ("", ".", "..") for part in path.split("/") if path)
        or re.search(r"[\x00-\x1f\x7f\\]", path)
    ):
        raise ValueError(f"uri '{uri}' is malformed; write hf://[datasets/]OWNER/NAME@COMMIT[/PATH]")
    if not path and (found["dataset"] or member is not None):
        raise ValueError(
            f"uri '{uri}' names no file; only a model is taken as a whole: add /PATH behind the commit"
        )
    return Address(
        "hf", path, member, found["repository"], bool(found["dataset"]), unquote(found["revision"])
    )


def _package(uri: str) -> Address:
    found = PACKAGE.fullmatch(uri)
    path = unquote((found and found["path"]) or "")
    if not found or "!/" in uri or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(
            f"uri '{uri}' is malformed; write pypi://NAME@VERSION/PATH, the path as the wheel has it"
        )
    return Address(
        "pypi", f"{found['name']}=={found['version']}", path, found["name"], False, found["version"]
    )


def non_commercial(licence: str) -> bool:
    """Whether a licence, as its SPDX identifier or in words, forbids commercial use."""
    return bool(NON_COMMERCIAL.search(licence))
