"""Addresses of sources: what each form means, and one line for each that is malformed."""

import random

import pytest

from aurora.sources.source import SECTIONS, Source
from aurora.sources.uris import Address, non_commercial, parse, shown

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("own/rows.jsonl", Address("path", "own/rows.jsonl")),
        ("own/my rows.json", Address("path", "own/my rows.json")),
        (f"hf://datasets/o/n@{COMMIT}/a%20b", Address("hf", "a b", None, "o/n", True, COMMIT)),
        ("./a:b.json", Address("path", "./a:b.json")),
        ("file:own/rows%20a.jsonl", Address("file", "own/rows a.jsonl")),
        ("file:///data/rows.jsonl", Address("file", "/data/rows.jsonl")),
        ("file:own/mmlu.zip!/data/test/", Address("file", "own/mmlu.zip", "data/test")),
        ("file:own/mmlu.tar!/", Address("file", "own/mmlu.tar", "")),
        ("./aurora/small_base/", Address("embedded", "./aurora/small_base/")),
        ("https://h.org/a/b.zip!/c", Address("https", "https://h.org/a/b.zip", "c")),
        (f"hf://o/n@{COMMIT}", Address("hf", "", None, "o/n", False, COMMIT)),
        (f"hf://datasets/o-1/n.2@{COMMIT}/a/b.zip!/c/d", Address("hf", "a/b.zip", "c/d", "o-1/n.2", True, COMMIT)),
        ("hf://datasets/o/n@refs%2Fpr%2F1/a", Address("hf", "a", None, "o/n", True, "refs/pr/1")),
    ],
)
def test_an_address_is_taken_apart(uri: str, address: Address):
    assert parse(uri) == address


HUB = f"hf://datasets/o/n@{COMMIT}"
MALFORMED = {
    "is empty": ["", "  "],
    "a space at an end": ["own/a.json "],
    "a control character": ["a\nb", "own/\ud800", "own/\u202egpj.json"],
    "is longer than 4,096 characters": ["a" * 5000],
    "with one !/": ["!/data", "a.zip!", "a.zip!/b.zip!/c"],
    "names a folder with an empty part": ["a.zip!/../c", "a.zip!/b//c"],
    "unknown scheme 'ftp'": ["ftp://h/x"],
    "unknown scheme 'http'": ["http://h/x"],
    "unknown scheme 'HTTPS'": ["HTTPS://h/x"],
    "unknown scheme 's3'": ["s3://bucket/x"],
    "unknown scheme 'C'": ["C:/rows.json"],
    "unknown scheme 'embedded'": ["embedded:large"],
    "unpack it, or write file:ARCHIVE!/FOLDER": ["own/mmlu.zip!/data"],
    "names no file": ["file:", "file:own/a%00b", "file:own/a%0Ab"],
    "names another machine": ["file://server/share/x"],
    "write https://HOST/PATH": [
        "https:///x", "https:h/x", "https://h", "https://h/", "https://h/a b", "https://h:x/y", "https://h:99999/x", "https://[::1/y",
        f"https://{'a' * 64}.org/x", f"https://{'a.' * 130}org/x", "https://a..org/x", "https://.org/x", "https://a%20b.org/x",
        "https://[v1.a]/x",
    ],
    "a part behind #": ["https://h/y#z"],
    r"write hf://\[datasets/\]OWNER/NAME@COMMIT": [
        "hf://o@main", "hf://o/n", "hf://o/n@", f"hf://o--p/n@{COMMIT}", f"hf://o/n.git@{COMMIT}", f"hf://spaces/o/n@{COMMIT}/a",
        f"hf://../n@{COMMIT}/a", "hf://datasets/o/n@%00/a",
        *(HUB + path for path in ("/", "/a b", "/a?b", "/%2e%2e/b", "/../x", "/a//x", "/a%00b")),
    ],
    "only a model is taken as a whole": [HUB, f"hf://o/n@{COMMIT}!/a"],
}  # fmt: skip
URIS = [(uri, message) for message, uris in MALFORMED.items() for uri in uris]


@pytest.mark.parametrize(("uri", "message"), URIS)
def test_a_malformed_uri_is_one_printable_line(uri: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        parse(uri)
    assert type(caught.value) is ValueError
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_whatever_stands_for_a_uri_it_is_an_address_or_one_line():
    choice = random.Random(3)
    seeds = [*(uri for uri, _ in URIS), f"{HUB}/a.zip!/b", "https://u:p@h.org:1/a?b=c#d", "file:///a%20b"]
    odd = [
        *"@:/?#%!&;=[].\\ \t~", "%00", "..", "!/", "//", "\u2024", "\uff0f", "\u202e", "\udc80", "é", "@@", "hf://", "[::", "xn--", "\u200d",
    ]  # fmt: skip
    for _ in range(20_000):
        uri = choice.choice(seeds)[:200]
        for _ in range(choice.randrange(1, 4)):
            at = choice.randrange(len(uri) + 1)
            uri = uri[:at] + choice.choice(odd) + uri[at + choice.randrange(2) :]
        try:
            address = parse(uri)
        except ValueError as error:
            assert type(error) is ValueError, uri
            assert "\n" not in str(error)
            assert str(error).startswith("uri "), uri
        else:
            assert "\0" not in address.path


@pytest.mark.parametrize("host", ["münchen.de", "例え.jp", "a_b.h.org", "h.org.", "[::1]", "127.0.0.1", "h.org:8443"])
def test_a_host_may_be_a_name_in_any_script_or_a_number(host: str):
    assert parse(f"https://{host}/x").path == f"https://{host}/x"


QUERIES = [
    "token", "access_token", "hf_token", "key", "api_key", "apikey", "api-key", "x-api-key", "accesskey",
    "AWSAccessKeyId", "auth", "authkey", "authorization", "jwt", "sig", "sign", "signature", "Signature",
    "X-Amz-Signature", "X-Amz-Credential", "x-goog-signature", "Policy", "credential", "secret",
    "client_secret", "password", "passwd", "pwd", "pass", "session_id", "sessionid", "code", "ticket", "pat",
    "sas", "%74oken", "subscription-key", "private_key", "rlkey", "jsessionid", "PHPSESSID", "connect.sid",
]  # fmt: skip


TOKENS = (
    "hf_ ghp_ github_pat_ glpat- sk- sk-proj- xoxb- xoxp-1- xapp-1- npm_ pypi-AgE ya29. sk_live_ rk_test_ dop_v1_ hvs. sq0atp- "
    "shpat_ dckr_pat_ SG.s3crets3crets3cret."
)


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:s3cret@h.org/x",
        "https://s3cret@h.org/x",
        "https://s3cret:@h.org/x",
        "https://:s3cret@h.org/x",
        *(f"https://h.org/x?{key}=s3cret" for key in QUERIES),
        "https://h.org/x?a=b&sig=s3cret",
        "https://h.org/x?a=b;token=s3cret",
        "https://h.org/a;jsessionid=s3cret/x",
        "https://h.org/a/x.zip;v=1;rlkey=s3cret!/data",
        "https://h.org/x.zip?token=s3cret!/data",
        *(f"https://h.org/x?a={start}s3crets3crets3crets3cret" for start in TOKENS.split()),
        "https://h.org/x/AKIAS3CRETS3CRETS3CRET",
        "https://h.org/x?a=eyJs3crets3.eyJs3crets3cret",
        "https://h.org/x?a=hf%5Fs3crets3crets3crets3cret",
        f"hf://datasets/o/n@{COMMIT}/hf_s3crets3crets3crets3cret",
        "hf://datasets/o/n@hf_s3crets3crets3crets3cret/x",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(uri: str):
    with pytest.raises(ValueError, match=r"holds a user name, password") as caught:
        parse(uri)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:s3cret@h.org/x", "ftp://s3cret@h.org/x", "https://user:s3/cret@h.org/s3cret@x", "https:user:s3cret@h.org/x",
        "https://user:s3cret@h.org", "https://user:s3cret@h.org:x/y", "https://user:s3cret@a..org/x", "https://h.org?token=s3cret",
        "http://h.org/x?token=s3cret", "https://h:x/y?token=s3cret", "https://h.org/y#token=s3cret", "s3://key:s3cret@bucket/x",
        "hf://user:s3cret@o/n@main/x", "hf://s3cret@datasets/o/n@main/x?", "hf://user:s3@cret@s3cret@o/n@main", "hf://o/n@main/x?token=s3cret",
        "file://user:s3cret@server/x", "file:x?token=s3cret", "https://user:s3cret@h.org/a.zip!/b!/c", "https://h.org/x?token=s3cret ",
        " https://user:s3cret@h.org/x", "https://user:s3cret@h.org/\n", "https://h.org/a.zip?token=s3cret!/../b",
        "https://user:s3cret@h.org/" + "x" * 5000, "embedded:s3cret@small", "http://h.org/hf_s3crets3crets3crets3cret",
    ],
)  # fmt: skip
def test_a_malformed_address_is_not_repeated_with_its_secret(uri: str):
    with pytest.raises(ValueError, match=r"^uri ") as caught:
        parse(uri)
    assert "s3cret" not in str(caught.value)
    assert "s3" not in shown(uri).removeprefix("s3:")


@pytest.mark.parametrize(
    "rest",
    ["?download=true", "?raw", "?ref=main", "?id=1aB2", "?author=monkey", "?format=json&page=2", "?v=1;b=2", ";v=1/y",
     "/task-classification-in-many-languages.json", "/pypi-download-counts-of-the-year.json"],
)  # fmt: skip
def test_an_address_without_a_secret_is_taken_whole(rest: str):
    assert parse(f"https://h.org/x{rest}").path == f"https://h.org/x{rest}"


def test_what_is_shown_of_an_address_is_all_that_names_it():
    for uri in (f"hf://datasets/o/n@{COMMIT}/a/b.json", "https://h.org:1/a/b", "own/a@b.json", "file:own/a"):
        assert shown(uri) == uri


def source(section: str | None = None, **values: object) -> Source:
    kind = SECTIONS[section] if section else Source
    return kind(**{"kind": "instructions", "format": "alpaca", "licence": "MIT"} | values)


MODEL = {"kind": "model", "format": "transformers"}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (None, {"uri": "https://h/x"}, "is not pinned; give its sha256 or git_blob, or pin: record"),
        (None, {"uri": "https://h/x", "bytes": 3}, "is not pinned"),
        (None, {"uri": "file:own/x"}, "is not pinned"),
        (None, {"uri": "hf://datasets/o/n@main/x"}, "names no full commit"),
        (None, {"uri": f"hf://datasets/o/n@{COMMIT[:-1]}/x"}, "names no full commit"),
        (None, {"uri": "https://h/x", "sha256": "0" * 64, "pin": "record"}, "stands beside sha256"),
        (None, {"uri": "own/x", "pin": "record"}, "remove pin"),
        (None, {"uri": f"hf://o/n@{COMMIT}", "sha256": "0" * 64}, "uri names a whole model"),
        (None, {"uri": "own/x", "format": "mmlu"}, "is not one of kind instructions"),
        (None, {"uri": "own/x", "format": "shareGPT"}, "Input should be 'auto'"),
        (None, {"uri": "own/x", "licence": " "}, "licence is empty or has a control character"),
        (None, {"uri": "own/x", "licence": "MIT\n| a"}, "licence is empty or has a control character"),
        (None, {"uri": "https://h/x", "sha256": "ABC"}, "should match pattern"),
        (None, {"uri": "https://h/x", "pin": "recorded"}, "Input should be 'record'"),
        ("sources", {"uri": "https://h/x", "sha256": "0" * 64}, "is an address, .* move the entry to downloads"),
        ("sources", {"uri": "file:own/x", "pin": "record"}, "is an address, .* move the entry to downloads"),
        ("downloads", {"uri": "own/x"}, "is a path, .* move the entry to sources"),
        ("downloads", {"uri": "aurora/small_base", **MODEL}, "is a path, .* move the entry to sources"),
        ("hub_models", {"uri": "aurora/small_base", **MODEL}, "is a path, .* move the entry to sources"),
        ("hub_models", {"uri": "hf://o/n@main", "pin": "record", **MODEL}, "pinned by record; .* to downloads"),
        ("hub_models", {"uri": f"hf://datasets/o/n@{COMMIT}/x"}, "of kind instructions, .* to downloads"),
    ],
)
def test_a_source_that_is_not_pinned_or_of_another_kind_or_section_is_refused(
    section: str | None, values: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        source(section, **values)


@pytest.mark.parametrize(
    ("values", "pin"),
    [
        ({"uri": "https://h/x", "sha256": "0" * 64}, "sha256"),
        ({"uri": "https://h/x", "git_blob": "0" * 40}, "git blob"),
        ({"uri": "https://h/x", "pin": "record"}, "record"),
        ({"uri": "hf://datasets/o/n@main/x", "pin": "record"}, "record"),
        ({"uri": f"hf://datasets/o/n@{COMMIT}/x"}, "commit"),
        ({"uri": "own/x"}, "repository"),
    ],
)
def test_what_holds_the_bytes_fast_has_a_name(values: dict, pin: str):
    assert source(**values).pinned_by == pin


NON_COMMERCIAL = [
    "CC-BY-NC-4.0", "CC BY-NC-SA 4.0", "cc_by_nc_4", "CC BY NC ND 3.0 IGO", "cc-bync-4.0", "CC-BY-NC-ND-2.0-DE", "NCGL-UK-2.0",
    "PolyForm-Noncommercial-1.0.0", "fair-noncommercial-research-license", "NonCommercial", "for non-commercial use",
    "non commercial", "NON\u2011COMMERCIAL", "not for commercial use", "Not to be used for any commercial purposes", "no commercial use",
    "may not be used commercially", "Apache-2.0 code; weights not licensed for commercial applications", "without commercial use",
    "commercial use is prohibited", "Commercial use of the data is not permitted", "commercial usage strictly forbidden",
    "research use only", "research only", "research-only", "for research purposes", "academic purposes only", "for academic use",
    "academic and research use only", "only for research; ask us about commercial licences", "personal use only", "evaluation only",
    "solely for non-profit research", "restricted to academic research", "may only be used in research", "intel-research", "apple-amlr",
    "仅供研究使用", "非商业用途", "不得用于商业用途", "禁止商用", "仅限学术研究", "ＣＣ－ＢＹ－ＮＣ",
]  # fmt: skip
PERMISSIVE = [
    "Apache-2.0", "MIT", "AFL-3.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "NCSA", "ODC-By-1.0", "BSD-3-Clause", "ECL-2.0", "MPL-2.0",
    "GPL-3.0-only", "LGPL-2.1-only", "Academic Free License v3.0", "Educational Community License", "MIT, of Microsoft Research",
    "GPL-3.0-only, research software", "research software, GPL-3.0-only", "for research and commercial use",
    "free for academic use and commercial use", "commercial use allowed", "no restriction on commercial use",
    "no commercial restrictions", "no commercial use restrictions", "commercial use is not restricted",
    "not only for research, for commerce too", "Mulan PSL v2", "Tongyi Qianwen", "llama3.1", "openrail", "可商用", "NCBI-PD", "Vance-1.0",
]  # fmt: skip


@pytest.mark.parametrize(("licences", "expected"), [(NON_COMMERCIAL, True), (PERMISSIVE, False)])
def test_a_non_commercial_licence_is_known_by_identifier_and_words(licences: list[str], expected: bool):
    assert [licence for licence in licences if non_commercial(licence) is not expected] == []


def test_a_glob_of_the_hub_is_an_address_and_one_of_a_path_is_told_as_a_folder_and_its_files():
    given = {"kind": "instructions", "format": "alpaca", "licence": "MIT"}
    hub = SECTIONS["downloads"](uri=f"hf://datasets/o/n@{COMMIT}/data/*.parquet", **given)
    assert hub.address.is_glob and not parse("own/rows.json").is_glob
    for uri, folder, files in (
        ("own/shards/*.jsonl", "own/shards", "*.jsonl"),
        ("own/*/train-*.jsonl", "own", "*/train-*.jsonl"),
        ("*.jsonl", ".", "*.jsonl"),
    ):
        with pytest.raises(ValueError, match="is a glob, and DVC watches a file or a folder") as caught:
            SECTIONS["sources"](uri=uri, **given)
        assert f"write uri: {folder} and files: '{files}'" in str(caught.value)
    with pytest.raises(ValueError, match="are of one file, and uri names several"):
        SECTIONS["downloads"](uri=hub.uri, sha256="0" * 64, **given)
    with pytest.raises(ValueError, match="takes a part out of several archives"):
        SECTIONS["downloads"](uri=f"hf://datasets/o/n@{COMMIT}/*.zip!/a", **given)
