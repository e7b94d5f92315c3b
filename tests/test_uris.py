"""Addresses of sources: what each form means, and one line for each that is malformed."""

import pytest

from aurora.params.source import Source
from aurora.uris import Address, non_commercial, parse

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("own/rows.jsonl", Address("path", "own/rows.jsonl")),
        ("own/my rows.json", Address("path", "own/my rows.json")),
        (f"hf://datasets/o/n@{COMMIT}/a%20b", Address("hf", "a b", None, "o/n", True, COMMIT)),
        ("./a:b.json", Address("path", "./a:b.json")),
        ("file:own/rows%20a.jsonl", Address("path", "own/rows a.jsonl")),
        ("file:///data/rows.jsonl", Address("path", "/data/rows.jsonl")),
        ("own/mmlu.zip!/data/test/", Address("path", "own/mmlu.zip", "data/test")),
        ("own/mmlu.tar!/", Address("path", "own/mmlu.tar", "")),
        ("embedded:small_base", Address("embedded", "embedded:small_base")),
        ("https://h.org/a/b.zip!/c", Address("https", "https://h.org/a/b.zip", "c")),
        (f"hf://o/n@{COMMIT}", Address("hf", "", None, "o/n", False, COMMIT)),
        (
            f"hf://datasets/o-1/n.2@{COMMIT}/a/b.zip!/c/d",
            Address("hf", "a/b.zip", "c/d", "o-1/n.2", True, COMMIT),
        ),
        ("hf://datasets/o/n@refs%2Fpr%2F1/a", Address("hf", "a", None, "o/n", True, "refs/pr/1")),
    ],
)
def test_an_address_is_taken_apart(uri: str, address: Address):
    assert parse(uri) == address


MALFORMED = {
    "": "is empty",
    "  ": "is empty",
    "own/a.json ": "a space at an end",
    "a\nb": "a control character",
    "https://h/a b": "write https://HOST/PATH",
    f"hf://datasets/o/n@{COMMIT}/a b": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://datasets/o/n@{COMMIT}/%2e%2e/b": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://datasets/o/n@{COMMIT}/a?b": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://o--p/n@{COMMIT}": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://o/n.git@{COMMIT}": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    "!/data": "with one !/",
    "a.zip!": "with one !/",
    "a.zip!/b.zip!/c": "with one !/",
    "a.zip!/../c": "names a folder with an empty part",
    "a.zip!/b//c": "names a folder with an empty part",
    "ftp://h/x": "unknown scheme 'ftp'",
    "http://h/x": "unknown scheme 'http'",
    "HTTPS://h/x": "unknown scheme 'HTTPS'",
    "s3://bucket/x": "unknown scheme 's3'",
    "C:/rows.json": "unknown scheme 'C'",
    "embedded:large": "the one embedded model is embedded:small_base",
    "embedded:small_base!/a": "the one embedded model is",
    "file:": "names no file",
    "file://server/share/x": "names another machine",
    "https:///x": "write https://HOST/PATH",
    "https:h/x": "write https://HOST/PATH",
    "https://h": "write https://HOST/PATH",
    "https://h/": "write https://HOST/PATH",
    "https://h:x/y": "write https://HOST/PATH",
    "https://[::1/y": "write https://HOST/PATH",
    "https://h/y#z": "a part behind #",
    "hf://o@main": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    "hf://o/n": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    "hf://o/n@": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://o/n@{COMMIT}/": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://o/n@{COMMIT}/../x": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://o/n@{COMMIT}/a//x": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://spaces/o/n@{COMMIT}/a": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://../n@{COMMIT}/a": r"write hf://\[datasets/\]OWNER/NAME@COMMIT",
    f"hf://datasets/o/n@{COMMIT}": "only a model is taken as a whole",
    f"hf://o/n@{COMMIT}!/a": "only a model is taken as a whole",
}


@pytest.mark.parametrize(("uri", "message"), MALFORMED.items())
def test_a_malformed_uri_is_one_line(uri: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        parse(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:s3cret@h.org/x",
        "https://s3cret@h.org/x",
        "https://h.org/x?token=s3cret",
        "https://h.org/x?access_token=s3cret",
        "https://h.org/x?X-Amz-Signature=s3cret",
        "https://h.org/x?a=b&sig=s3cret",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(uri: str):
    with pytest.raises(ValueError, match=r"uri 'https://h\.org/x' holds a user name, password") as caught:
        parse(uri)
    assert "s3cret" not in str(caught.value)


def source(**values: object) -> Source:
    common = {"kind": "instructions", "format": "alpaca", "licence": "MIT", "dep": "aurora/fetch/hub"}
    return Source(**common | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uri": "https://h/x"}, "is not pinned; give its sha256 or git_blob, or pin: record"),
        ({"uri": "https://h/x", "bytes": 3}, "is not pinned"),
        ({"uri": "hf://datasets/o/n@main/x"}, "names no full commit"),
        ({"uri": f"hf://datasets/o/n@{COMMIT[:-1]}/x"}, "names no full commit"),
        ({"uri": "https://h/x", "sha256": "0" * 64, "pin": "record"}, "stands beside sha256"),
        ({"uri": "own/x", "dep": "own/x", "pin": "record"}, "remove pin"),
        ({"uri": f"hf://o/n@{COMMIT}", "sha256": "0" * 64}, "uri names a whole model"),
        ({"uri": "own/x.zip!/y", "dep": "own/x.zip!/y"}, r"write dep: own/x\.zip \["),
        ({"uri": "file:own/x", "dep": "aurora/fetch/hub"}, "write dep: own/x"),
        ({"uri": "https://h/x", "sha256": "0" * 64, "dep": "own"}, "write dep: aurora/fetch/hub"),
        ({"uri": "own/x", "dep": "own/x", "format": "mmlu"}, "is not one of kind instructions"),
        ({"uri": "own/x", "dep": "own/x", "format": "shareGPT"}, "Input should be 'alpaca'"),
        ({"uri": "own/x", "dep": "own/x", "licence": " "}, "licence is empty; give an SPDX identifier"),
        ({"uri": "https://h/x", "sha256": "ABC"}, "should match pattern"),
        ({"uri": "https://h/x", "pin": "recorded"}, "Input should be 'record'"),
    ],
)
def test_a_source_that_is_not_pinned_or_not_watched_is_refused(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        source(**values)


@pytest.mark.parametrize(
    ("values", "pin"),
    [
        ({"uri": "https://h/x", "sha256": "0" * 64}, "sha256"),
        ({"uri": "https://h/x", "git_blob": "0" * 40}, "git blob"),
        ({"uri": "https://h/x", "pin": "record"}, "record"),
        ({"uri": "hf://datasets/o/n@main/x", "pin": "record"}, "record"),
        ({"uri": f"hf://datasets/o/n@{COMMIT}/x"}, "commit"),
        ({"uri": "own/x.zip!/y", "dep": "own/x.zip"}, "repository"),
    ],
)
def test_what_holds_the_bytes_fast_has_a_name(values: dict, pin: str):
    assert source(**values).pinned_by == pin


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("CC-BY-NC-4.0", True),
        ("CC BY-NC-SA 4.0", True),
        ("research use only", True),
        ("for non-commercial use", True),
        ("Apache-2.0", False),
        ("MIT", False),
        ("AFL-3.0", False),
        ("CC-BY-4.0", False),
        ("NCSA", False),
    ],
)
def test_non_commercial_licences_are_known(licence: str, forbids: bool):
    assert non_commercial(licence) is forbids
