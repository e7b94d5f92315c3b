"""Addresses of sources, taken apart: a path, `file:`, `https://`, `hf://`, `pypi://`, and a folder inside an archive."""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, unquote_plus, urlsplit

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
EMBEDDED = "aurora/small_base"  # the room that makes the embedded base
# Rules in words, for a text of small letters in which one space replaces all that is no letter or digit.
USE = r"(use|usage|purposes?|applications?|exploitation|products?)"
STUDY = r"(research|academic|academia|education|educational|teaching|scholarly|scientific|personal|evaluation)"
NON_COMMERCIAL = re.compile(
    r"\b(by)?nc\b|\bnon ?commercial|\bncgl\b|\b(intel research|apple amlr)\b"
    r"|\b(no|not|never|without)( (to|be|for|in|any|use|used|licensed|permitted|allowed|intended|available|suitable))*"
    rf" commercial(ly)?( {USE})?\b(?! (\w+ )?(restrict|limit))"
    rf"|\bcommercial {USE}( (is|are|of|the|this|it|data|model|strictly))*"
    r" ((not|never)\b(?! (restrict|limit|prohibit|forbid))|prohibited|forbidden|excluded|disallowed|restricted)"
    rf"|\b{STUDY}( (and|or|non|profit|{STUDY}|{USE}))* only\b"
    rf"|(?<!\bnot )\b(only|solely|exclusively|strictly)( (be|used|use|intended|available))* (for|in|to)( \w+)?( \w+)? {STUDY}\b"
    rf"|\b(limited|restricted) to( \w+)?( \w+)? {STUDY}\b"
    r"|非 ?商[业用]|(不得|不可|不能|禁止|严禁|不允许|勿)\w{0,8}商[业用]|仅\w{0,8}(研究|学术|教育|学习)"
)
# Said without "only", this forbids commerce unless commerce is named beside it.
FOR_STUDY = re.compile(rf"\b{STUDY}( (and|or|{STUDY}))* {USE}\b")
# A signed link is a secret for a time and bytes that cannot be fetched again afterwards.
SECRETS = re.compile(
    r"token|signature|secret|passw|passphrase|credential|session|sess_?id|cookie|jwt|bearer|authoriz|access_?key|^x-(amz|goog)-"
    r"|key$|(^|[_.-])(api|account|private|subscription|shared|auth)?[_-]?(auth|sig|sign|policy|pass|pwd|pw|pat|sas|sid|code|ticket)$",
    re.IGNORECASE,
)
# Known by their form: tokens of the hub, GitHub, GitLab, Amazon, Google, OpenAI, Slack, npm, PyPI, Stripe, SendGrid,
# DigitalOcean, Vault, Square, Shopify and Docker, and JSON web tokens.
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{15,}|A[KS]IA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|ya29\.[\w-]{20,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|npm_[A-Za-z0-9]{20,}|pypi-AgE[\w-]{20,}"
    r"|[rs]k_(live|test)_\w{16,}|SG\.[\w-]{16,}\.[\w-]{16,}|do[opr]_v1_\w{20,}|hv[bs]\.[\w-]{20,}|sq0[a-z]{3}-[\w-]{20,}"
    r"|shp(at|ca|pa|ss)_\w{20,}|dckr_[op]at_[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]+)"
)
# Characters that end a line, hide, or turn the direction of a text, and halves of characters.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
REVISED = ("hf://", "pypi://")  # schemes that have an @ before a revision
LONGEST = 4096  # characters
HOST = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE)
SECRET = (
    "holds a user name, password, token or signature, which would be written into dvc.lock; give a public address (tokens come "
    "from the environment)"
)


class _Malformed(ValueError):
    """The rule that a URI breaks, and the remedy; `parse` puts the URI before it."""


@dataclass(frozen=True)
class Address:
    """A URI of params.yaml, taken apart."""

    scheme: str
    """path, embedded, file, https, hf or pypi."""
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
    def watched(self) -> bool:
        """Whether it is a path that DVC watches, rather than an address that pins hold fast."""
        return self.scheme in ("path", "embedded")

    @property
    def is_glob(self) -> bool:
        """Whether it names files by a pattern with `*`."""
        return self.scheme in ("path", "file", "hf") and "*" in self.path

    @property
    def pinned(self) -> bool:
        """Whether the address itself names its bytes for good: a full commit id."""
        return bool(COMMIT.fullmatch(self.revision or ""))


def printable(text: str) -> str:
    """A text from outside as a message may say it: in one line, and no command to a terminal."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text[:1024])


def shown(uri: str) -> str:
    """A URI as a message may say it, malformed or not: without user names, passwords, query, fragment and tokens."""
    place, *rest = re.split(r"[?#;]", TOKENS.sub("…", uri.strip()), maxsplit=1)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*:)?(//)?", place)
    scheme = found[0] if found else ""
    parts = place.removeprefix(scheme).split("@")
    kept = 2 if scheme in REVISED and ":" not in "".join(parts[:-1]) else 1
    if scheme:
        place = scheme + ("…@" if len(parts) > kept else "") + "@".join(parts[-kept:])
    return place + ("?…" if rest else "")


def parse(uri: str) -> Address:
    """Takes a URI apart. Raises ValueError with the rule, the URI (no secret in it) and the remedy."""
    try:
        return _parse(uri)
    except _Malformed as error:
        raise ValueError(f"uri '{printable(shown(uri))[:300]}' {error}") from None


def _parse(uri: str) -> Address:
    if not uri or uri != uri.strip() or UNPRINTABLE.search(uri):
        raise _Malformed("is empty, or has a space at an end or a control character; correct it")
    if len(uri) > LONGEST:
        raise _Malformed(f"is longer than {LONGEST:,} characters; correct it")
    if TOKENS.search(unquote(uri)):
        raise _Malformed(SECRET)
    place, *members = uri.split("!/")
    if len(members) > 1 or place.endswith("!") or not place:
        raise _Malformed("is malformed; write ARCHIVE!/FOLDER, with one !/")
    member = members[0].strip("/") if members else None
    if member and not all(part not in ("", ".", "..") for part in member.split("/")):
        raise _Malformed("names a folder with an empty part, . or ..; name it from the archive's root")
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", place)
    scheme = found[1] if found else None
    if scheme is None and member is not None:
        raise _Malformed(
            "names a part of an archive; unpack it, or write file:ARCHIVE!/FOLDER and its sha256 under downloads"
        )
    if scheme is None:
        return Address("embedded" if PurePosixPath(place).as_posix() == EMBEDDED else "path", place)
    if scheme == "file":
        return Address("file", _file(place), member)
    if scheme == "https":
        return Address("https", _web(place), member)
    if scheme == "hf":
        return _hub(place, member)
    if scheme == "pypi":
        return _package(uri)
    raise _Malformed(f"has the unknown scheme '{scheme}'; give a path, file:, https://, hf:// or pypi://")


def _file(place: str) -> str:
    path = place.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise _Malformed("names another machine; write file:PATH or file:///PATH")
        path = "/" + rest
    if not path or "?" in path or "#" in path or UNPRINTABLE.search(unquote(path)):
        raise _Malformed("names no file; write file:PATH or file:///PATH")
    return unquote(path)


def _web(place: str) -> str:
    try:
        parts = urlsplit(place)
        well_formed = _host(parts.hostname or "", "[" in parts.netloc) and parts.port != 0 and " " not in place
    except ValueError:
        parts, well_formed = urlsplit(""), False
    if not well_formed or not place.startswith("https://") or parts.path in ("", "/"):
        raise _Malformed("is malformed; write https://HOST/PATH")
    given = [*re.split("[&;]", parts.query), *(part for name in parts.path.split("/") for part in name.split(";")[1:])]
    keys = (unquote_plus(pair.partition("=")[0]) for pair in given)
    if parts.username is not None or any(SECRETS.search(key) for key in keys):
        raise _Malformed(SECRET)
    if parts.fragment:
        raise _Malformed("has a part behind #, which no server sees; remove it")
    return place


def _host(host: str, bracketed: bool) -> bool:
    """Whether a host can be looked up at all; raises ValueError for some that cannot."""
    if bracketed:
        return bool(ipaddress.IPv6Address(host))
    return bool(HOST.fullmatch(host.encode("idna").decode())) and len(host) <= 253


def _hub(place: str, member: str | None) -> Address:
    found = HUB.fullmatch(place)
    path = unquote((found and found["path"]) or "")
    revision = unquote((found and found["revision"]) or "")
    if (
        not found
        or re.search(r"--|\.\.|[.-]/|[.-]$|\.git$", found["repository"])
        or any(part in ("", ".", "..") for part in path.split("/") if path)
        or re.search(r"\\", path + revision)
        or UNPRINTABLE.search(path + revision)
    ):
        raise _Malformed("is malformed; write hf://[datasets/]OWNER/NAME@COMMIT[/PATH]")
    if not path and (found["dataset"] or member is not None):
        raise _Malformed(
            "names no file; only a model is taken as a whole: add /PATH behind the commit, or a glob "
            "such as /data/*.parquet"
        )
    return Address("hf", path, member, found["repository"], bool(found["dataset"]), revision)


def _package(uri: str) -> Address:
    found = PACKAGE.fullmatch(uri)
    path = unquote((found and found["path"]) or "")
    if not found or "!/" in uri or any(part in ("", ".", "..") for part in path.split("/")):
        raise _Malformed("is malformed; write pypi://NAME@VERSION/PATH, the path as the wheel has it")
    return Address("pypi", f"{found['name']}=={found['version']}", path, found["name"], False, found["version"])


def non_commercial(licence: str) -> bool:
    """Whether a licence, as its SPDX identifier or in words, forbids commercial use."""
    words = " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", licence).lower()).split())
    return bool(NON_COMMERCIAL.search(words) or (FOR_STUDY.search(words) and "commercial" not in words))
