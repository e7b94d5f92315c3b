"""The claim: the rules of clean that judge a text find what they must and leave the rest.

    python benchmarks/precision.py [--wrong]

Precision and recall of each rule, and of each kind of text, on the labelled rows of tests/clean/rule_samples.yaml and
those that tests/stand_ins/rule_samples.py makes of the embedded texts, with 95 % intervals (Clopper-Pearson). Rows of
one kind share their wording, so that the intervals are those of these rows and no promise for other data.
"""

import sys
from pathlib import Path

import click

MEASURES = ("aurora/clean",)

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@click.command()
@click.option("--wrong", is_flag=True, help="Show the rows that a rule gets wrong.")
def main(wrong: bool) -> None:
    from stand_ins.rule_samples import judged, quality

    print(f"{'rule':<20}{'kind':<40}{'rows':>6}  {'precision':<22}recall")
    for rule, rows in judged().items():
        kinds = list(dict.fromkeys(row.kind for row in rows))
        for kind, chosen in [("", rows), *((kind, [row for row in rows if row.kind == kind]) for kind in kinds)]:
            of = quality(chosen)
            name, cells = rule if not kind else "", [shown(of.precision), shown(of.recall)]
            if kind:  # a kind of one label has no other figure than how many were found
                found = sum(row.found for row in chosen)
                cells = [f"{found} found", "to be found" if chosen[0].label else "to be left"]
                if len({row.label for row in chosen}) == 2:
                    cells = [shown(of.precision), shown(of.recall)]
            print(f"{name:<20}{kind:<40}{of.rows:>6}  {cells[0]:<22}{cells[1]}")
        for row in rows if wrong else ():
            if row.label is not row.found:
                print(f"    {'missed' if row.label else 'false'}, {row.kind}: {row.text!r}")


def shown(share: tuple[float, float, float] | None) -> str:
    return "-" if share is None else f"{share[0]:.3f} ({share[1]:.3f}-{share[2]:.3f})"


if __name__ == "__main__":
    main()
