"""The rules that judge a text, on labelled rows: precision and recall, over all and in each kind of text."""

from itertools import groupby

import pytest
from stand_ins.rule_samples import Judged, judged, quality

KIND = 0.9  # precision and recall in one kind, and the right rows of a kind with one label
LEAST = {"contaminated": 0.95}  # precision and recall of a rule, where it is not 0.9


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Judged]]:
    return judged()


@pytest.mark.parametrize(
    "rule", ["refusal", "other_model", "unreachable_prompt", "not_chinese", "truncated_answer", "mojibake", "contaminated"]
)  # fmt: skip
def test_a_rule_finds_what_it_must_and_leaves_the_rest(rows: dict[str, list[Judged]], rule: str):
    found = quality(rows[rule])
    assert found.rows >= 200
    least = LEAST.get(rule, 0.9)
    assert found.precision[0] >= least and found.recall[0] >= least
    for kind, members in groupby(sorted(rows[rule]), key=lambda row: row.kind):
        members = list(members)
        if len({row.label for row in members}) == 2:
            of_kind = quality(members)
            assert of_kind.precision[0] >= KIND and of_kind.recall[0] >= KIND, kind
        else:
            right = sum(row.label is row.found for row in members)
            assert right >= KIND * len(members), kind
