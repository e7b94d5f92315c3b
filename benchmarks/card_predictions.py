"""What benchmarks/card.sh should find on a card, in bands, from what was counted without one.

    python benchmarks/records.py card_predictions

Reads the record card_counts; its own is to be committed before the run. The best that a run
can do is the roofline; expected is the roofline at SHARE of it, or the time in which the host starts all kernels and
waits for the card, whichever is longer. Memory lies between what live tensors reach and that with the allocator's gaps.
"""

import json

from records import RECORDS, ROOT

from aurora.commands.roofline import CARDS, REACHED

MEASURES = ("aurora/commands/roofline.py",)

KERNEL, WAIT = 6e-6, 25e-6  # seconds for the host to start a kernel from Python, and to wait for the card
SHARE, WORST = 0.75, 0.45  # of the roofline: expected, and at worst
GAPS = 1.15  # what the allocator, the driver and libraries may add to live tensors
LENT = ("H100 SXM", "H200 SXM")
PAPER_STEPS, PAPER_ROWS = 3000, 8
PAPER_TOKENS, PADDED = 573, 1024  # of a row, on average and at most


def bands(counts: dict[str, float], card: dict[str, float]) -> dict[str, list[float]]:
    """Lowest and highest tokens/s and GiB of one case."""
    # The counted roofline is an H100's; on another card operations and bytes scale apart.
    work = counts["tera_operations"] / (card["bfloat16"] * REACHED[0])
    moved = max(
        0.0, counts["roofline_ms"] / 1e3 - counts["tera_operations"] / (CARDS["H100 SXM"]["bfloat16"] * REACHED[0])
    )
    roofline = work + moved * CARDS["H100 SXM"]["bandwidth"] / card["bandwidth"]
    host = counts["kernels"] * KERNEL + counts["synchronisations"] * WAIT
    expected, worst = max(roofline / SHARE, host), max(roofline / WORST, 2 * host)
    speeds = [counts["tokens"] / seconds for seconds in (worst, expected, roofline)]
    return {
        "tokens_per_second": [round(speeds[0], 1), round(speeds[2], 1)],
        "expected_tokens_per_second": [round(speeds[1], 1)],
        "peak_gib": [round(counts["peak_gib"] * 0.97, 2), round(counts["peak_gib"] * GAPS, 2)],
    }


def hours(tokens: int, speed: float) -> float:
    return round(tokens / speed / 3600, 2)


def main() -> None:
    """Print the bands of each case on each card that may be lent."""
    counted = json.loads((ROOT / RECORDS / "card_counts.json").read_text(encoding="utf-8"))["values"]["after"]
    values = {}
    for name in LENT:
        values[name] = {case: bands(counts, CARDS[name]) for case, counts in counted.items()}
        least, most = PAPER_STEPS * PAPER_ROWS * PAPER_TOKENS, PAPER_STEPS * PAPER_ROWS * PADDED
        slow, fast = (values[name][case]["tokens_per_second"] for case in ("train 2 x 1,024", "train packed 8,192"))
        # The paper's rows are padded to the longer of two; a packed row of 4,608 lies between the two cases.
        values[name]["hours of profiles/paper.yaml"] = [hours(least, slow[1]), hours(most, slow[0])]
        values[name]["hours of profiles/paper-fast.yaml"] = [hours(least, fast[1]), hours(least, slow[0])]
    print(json.dumps(values))


if __name__ == "__main__":
    main()
