"""Each row comes out of its passes token by token, whatever the tree and the limit."""

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora.eval.token_tree import Pass, plan_passes

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=30, unique=True)


def path_to(passes: list[Pass], index: int | None) -> list[int]:
    """Tokens in the cache once pass `index` has run, by the tokens that every later one may see."""
    if index is None:
        return []
    step = passes[index]
    before = path_to(passes, step.parent)
    assert len(before) == step.depth
    return before + step.tokens[: step.cache_length - step.depth].tolist()


@given(ROWS, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_rows_are_seen_whole(rows: list[tuple[int, ...]], limit: int) -> None:
    passes = plan_passes(rows, limit)
    seen = {}
    for number, step in enumerate(passes):
        assert 0 < len(step.tokens) <= limit
        cached = path_to(passes, step.parent)
        assert len(cached) == step.depth
        for row, place in zip(step.rows.tolist(), step.places.tolist(), strict=True):
            visible = [j for j in range(place + 1) if place < step.ends[j]]
            assert row not in seen
            seen[row] = (*cached, *step.tokens[visible].tolist())
            assert step.positions[visible].tolist() == list(range(step.depth, step.depth + len(visible)))
        if step.parent is not None:
            # The cache is only ever cut back, so a parent's prefix must still lie there.
            assert step.parent < number
            assert all(later.cache_length >= step.depth for later in passes[step.parent + 1 : number])
    assert seen == dict(enumerate(rows))


def test_shared_tokens_are_forwarded_once() -> None:
    rows = [(1, *range(10, 30), tail) for tail in range(100, 140)]
    assert sum(len(step.tokens) for step in plan_passes(rows, 1000)) == 21 + 40
    assert sum(len(step.tokens) for step in plan_passes(rows, 30)) == 21 + 40
    assert len(plan_passes(rows, 30)) == 3  # the prefix with nine tails, then thirty, then one


def test_a_row_can_be_the_beginning_of_another() -> None:
    (step,) = plan_passes([(1, 2), (1, 2, 3), (1,)], 10)
    assert step.tokens.tolist() == [1, 2, 3]
    assert dict(zip(step.rows.tolist(), step.places.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}
    assert step.is_chain


def test_passes_do_not_depend_on_the_order_of_rows() -> None:
    rows = [tuple(row) for row in numpy.random.default_rng(0).integers(0, 3, (40, 6)).tolist()]
    rows = list(dict.fromkeys(rows))
    one, other = plan_passes(rows, 16), plan_passes(rows[::-1], 16)
    assert [step.tokens.tolist() for step in one] == [step.tokens.tolist() for step in other]
