"""`checkpoints` of params.yaml: which kept adapters are scored, and on what."""

from pydantic import Field

from aurora.core.params import Count, Section
from aurora.eval.params import Benchmark


class Checkpoints(Section):
    """Scores by optimiser step; settings of replies, loss and benchmarks are those of eval."""

    steps: tuple[Count, ...] = Field(())
    """Steps that are scored; each is one of sft.keep_checkpoints."""
    benchmarks: tuple[Benchmark, ...] = Field(())
    """Benchmarks of eval.tasks that each of them answers, under lm-eval's stock tasks."""
