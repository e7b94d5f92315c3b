"""Token rows as a radix tree, cut into forward passes in which each shared prefix is computed once.

A pass holds several subtrees end to end as one sequence. A token sees the tokens in the cache, and those of its own
pass that are above it in the tree: token j is visible to token i when j <= i < ends[j]. So nothing is padded, and no
prefix is repeated, neither its tokens nor its keys and values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy


@dataclass(slots=True)
class Node:
    """A stretch of tokens that all rows below share."""

    tokens: numpy.ndarray  # (t,) int32
    children: list["Node"] = field(default_factory=list)
    row: int | None = None  # the row that ends here
    size: int = 0  # tokens of the whole subtree


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass."""

    parent: int | None  # the pass whose prefix is in the cache right in front of this one
    depth: int  # tokens in the cache before
    cache_length: int  # tokens in the cache that later passes build upon
    tokens: numpy.ndarray  # (T,) int32
    positions: numpy.ndarray  # (T,) int32
    ends: numpy.ndarray  # (T,) int32; one behind the last token of the pass that sees this one
    rows: numpy.ndarray  # (R,) int32; rows that end in this pass
    places: numpy.ndarray  # (R,) int32; where in `tokens` each of them ends

    @property
    def is_chain(self) -> bool:
        """Whether each token sees all before it, so that no mask is needed."""
        return bool((self.ends == len(self.tokens)).all())


def build_tree(rows: Sequence[Sequence[int]]) -> list[Node]:
    """The roots of the radix tree of distinct rows, children in order of their tokens."""
    keys = [numpy.asarray(row, dtype=">u4").tobytes() for row in rows]  # bytes compare as the tokens do
    order = sorted(range(len(rows)), key=keys.__getitem__)
    arrays = [numpy.frombuffer(keys[index], dtype=">u4").astype(numpy.int32) for index in order]
    top = Node(numpy.empty(0, dtype=numpy.int32))
    _grow(top, arrays, order)
    _measure(top)
    return top.children


def _grow(top: Node, arrays: list[numpy.ndarray], order: list[int]) -> None:
    # `open_` is the path to the row before, each node with the depth at which it ends.
    open_: list[tuple[Node, int]] = [(top, 0)]
    before = numpy.empty(0, dtype=numpy.int32)
    for row, array in zip(order, arrays, strict=True):
        shared = common_prefix(before, array)
        while open_[-1][1] > shared:
            last, _ = open_.pop()
            start = open_[-1][1]
            if start < shared:  # the node is split where the rows part
                cut = shared - start
                upper = Node(last.tokens[:cut], [last])
                last.tokens = last.tokens[cut:]
                open_[-1][0].children[-1] = upper
                open_.append((upper, shared))
        leaf = Node(array[shared:], row=row)
        open_[-1][0].children.append(leaf)
        open_.append((leaf, len(array)))
        before = array


def common_prefix(one: numpy.ndarray, other: numpy.ndarray) -> int:
    """Number of tokens at the beginning that two rows share."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length


def _measure(node: Node) -> int:
    node.size = len(node.tokens) + sum(_measure(child) for child in node.children)
    return node.size


def plan_passes(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[Pass]:
    """Passes of at most `batch_tokens` tokens that together cover all rows, parents in front of children."""
    planner = _Planner(batch_tokens)
    planner.plan(build_tree(rows), None, 0)
    return planner.passes


class _Planner:
    """Walks the tree from the top; what fits goes into a pass together; what does not is the prefix of passes of its own."""

    def __init__(self, batch_tokens: int) -> None:
        self.limit = batch_tokens
        self.passes: list[Pass] = []

    def plan(self, nodes: list[Node], parent: int | None, depth: int) -> None:
        """Passes for sibling subtrees behind `depth` tokens in the cache."""
        for group in self._groups([node for node in nodes if node.size <= self.limit], self.limit):
            self._add(parent, depth, None, group)
        for node in nodes:
            if node.size > self.limit:
                self._plan_prefix(node, parent, depth)

    def _plan_prefix(self, node: Node, parent: int | None, depth: int) -> None:
        # The prefix goes in front of its first children, so that it costs no pass of its own.
        tokens = node.tokens
        while len(tokens) > self.limit:
            parent = self._add(parent, depth, Node(tokens[: self.limit]), [])
            depth, tokens = depth + self.limit, tokens[self.limit :]
        small = [child for child in node.children if child.size <= self.limit]
        first = next(self._groups(small, self.limit - len(tokens)), [])
        if first and first[0].size > self.limit - len(tokens):
            first = []
        parent = self._add(parent, depth, Node(tokens, row=node.row), first)
        rest = [child for child in node.children if not any(child is taken for taken in first)]
        self.plan(rest, parent, depth + len(tokens))

    @staticmethod
    def _groups(nodes: list[Node], limit: int) -> Iterator[list[Node]]:
        group: list[Node] = []
        used = 0
        for node in nodes:
            if group and used + node.size > limit:
                yield group
                group, used = [], 0
            group.append(node)
            used += node.size
        if group:
            yield group

    def _add(self, parent: int | None, depth: int, prefix: Node | None, subtrees: list[Node]) -> int:
        tokens, positions, ends = [], [], []
        rows: list[tuple[int, int]] = []

        def lay(node: Node, start: int, behind: int) -> int:
            # Returns the place behind the subtree; `start` is its place, `behind` the depth of its first token.
            end = start + node.size
            tokens.append(node.tokens)
            positions.append(numpy.arange(behind, behind + len(node.tokens), dtype=numpy.int32))
            ends.append(numpy.full(len(node.tokens), end, dtype=numpy.int32))
            place = start + len(node.tokens)
            if node.row is not None:
                rows.append((node.row, place - 1))
            for child in node.children:
                place = lay(child, place, behind + len(node.tokens))
            return place

        if prefix is None:
            place, below = 0, depth
        else:
            prefix.size = len(prefix.tokens) + sum(child.size for child in subtrees)
            place, below = (
                lay(Node(prefix.tokens, row=prefix.row, size=prefix.size), 0, depth),
                depth + len(prefix.tokens),
            )
        for child in subtrees:
            place = lay(child, place, below)
        self.passes.append(
            Pass(
                parent,
                depth,
                below,
                numpy.concatenate(tokens),
                numpy.concatenate(positions),
                numpy.concatenate(ends),
                numpy.array([row for row, _ in rows], dtype=numpy.int32),
                numpy.array([place for _, place in rows], dtype=numpy.int32),
            )
        )
        return len(self.passes) - 1
