"""`eval` of params.yaml: what is measured, on how much."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aurora.core.params import Count, Section, Seed

Benchmark = Literal["ceval", "mmlu", "cmmlu"]


class BenchmarkParams(Section):
    """One benchmark under lm-eval."""

    num_fewshot: Annotated[int, Field(ge=0, le=5)]
    """Shots in front of each question; the first of the dev split."""
    limit: Count | None
    """Questions a subject, the first of its file; null takes all."""


class OtherTask(Section):
    """One further task or group under lm-eval."""

    num_fewshot: Annotated[int, Field(ge=0)]
    """Shots in front of each question, as the task draws them."""
    limit: Count | None
    """Questions a task; null takes all."""


class Replies(Section):
    """Greedy replies to held-out Chinese prompts."""

    prompts: Count
    """Number of held-out prompts that are answered."""
    max_new_tokens: Count
    """Tokens of a reply."""
    batch_size: Count
    """Prompts generated together."""


class PaperProtocol(Section):
    """The paper's own way to ask the benchmarks."""

    prompts: dict[Benchmark, Annotated[list[Literal["en", "zh"]], Field(min_length=1)]] = Field(
        {"ceval": ["zh"], "mmlu": ["en"], "cmmlu": ["en", "zh"]}
    )
    """Languages of the text around the questions of each benchmark; each is a run of its own."""
    seed: Seed = Field(42)
    """Of the shots, which are drawn anew for each question."""


class Eval(Section):
    """lm-eval on the benchmarks, held-out loss, and replies."""

    protocols: Annotated[list[Literal["lm_eval", "paper"]], Field(min_length=1)] = Field(["lm_eval"])
    """Ways to ask the benchmarks: lm-eval's stock tasks, and the paper's own. Questions and shots of both are those of
    tasks."""
    paper_protocol: PaperProtocol = Field(PaperProtocol())
    """Read where protocols has paper."""
    tasks: Annotated[dict[Benchmark, BenchmarkParams], Field(min_length=1)]
    """Benchmarks to run."""
    other_tasks: dict[str, OtherTask] = Field({})
    """Further tasks or groups, by the name in lm-eval or in a task file of samples/tasks; lm-eval fetches their data,
    which is not pinned here."""
    router_tokens: Count | None = Field(None)
    """Tokens of each language on which the choices of the experts are counted; null counts none."""
    batch_tokens: Count
    """Tokens forwarded together; nothing is padded."""
    max_length: Annotated[int, Field(ge=64)]
    """Context length; a longer prompt is counted and listed."""
    chat_template: bool
    """Whether prompts are wrapped in the chat template; the paper's evaluation does not."""
    loss_rows: Count | None
    """Held-out rows on which the loss is measured; null takes all."""
    threads: Count
    """CPU threads of torch in each process."""
    processes: Count = Field(1)
    """Processes, one a card, under `accelerate launch` where more than one; each holds the whole model, and they share
    out questions, held-out rows and replies."""
    accelerate_config: str | None = Field(None)
    """File of `accelerate config` that names several machines, of which each has its own; null is this machine."""
    replies: Replies

    @model_validator(mode="after")
    def _lm_eval_is_asked(self) -> "Eval":
        if "lm_eval" not in self.protocols or len(set(self.protocols)) < len(self.protocols):
            raise ValueError(
                f"protocols is {self.protocols}; lm_eval, of which metrics and report are made, stands in it once: "
                "write [lm_eval] or [lm_eval, paper]"
            )
        return self
