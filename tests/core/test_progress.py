"""Without a terminal a bar becomes few whole lines."""

import subprocess
import sys

BAR = """
from aurora.core.progress import calm_bars
calm_bars()
from tqdm import tqdm
for _ in tqdm(range(2000), desc="work"):
    pass
print("done", file=__import__("sys").stderr)
"""


def test_a_bar_is_a_few_lines_and_other_text_stays():
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, check=True)
    lines = done.stderr.decode().splitlines()
    assert b"\r" not in done.stderr
    assert lines[-1] == "done" and 2 <= len(lines) <= 5
    assert "2000/2000" in lines[-2]
