"""What a training shows while it runs, and the loss curve that it leaves."""

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    import dvclive

CURVE = ("step", "loss", "learning_rate", "grad_norm", "held_out_loss")
LIVE = Path("dvclive")  # ignored by git; `dvc plots show dvclive/plots/metrics/train` draws it at any time
NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "eval_loss": "train/held_out_loss",
}


class Progress(TrainerCallback):
    """A bar on stderr with the last losses and an estimate of the end; stops at the last step of the recipe."""

    def __init__(self, stop_after_steps: int | None) -> None:
        self.stop_after_steps = stop_after_steps
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=min(state.max_steps, self.stop_after_steps or state.max_steps),
            initial=state.global_step,
            desc="sft",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)
        if state.global_step == self.stop_after_steps:
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def on_log(self, args, state, control, logs, **kwargs):
        shown = {name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs}
        if "tokens_per_second" in logs:
            shown["tokens/s"] = f"{logs['tokens_per_second']:,.0f}"
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def close(self) -> None:
        """Ends the line of the bar."""
        if self.bar is not None:
            self.bar.close()


class Live(TrainerCallback):
    """Curves by dvclive, for eyes alone: untracked, with tokens a second, rewritten whole after a resume."""

    def __init__(self, folder: Path = LIVE) -> None:
        self.folder = folder
        self.live: dvclive.Live | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        import dvclive

        self.live = dvclive.Live(str(self.folder), report=None, dvcyaml=None, save_dvc_exp=False, monitor_system=False)
        for entry in state.log_history:
            self.write(entry, entry["step"])

    def on_log(self, args, state, control, logs, **kwargs):
        self.write(logs, state.global_step)

    def write(self, values: dict, step: int) -> None:
        """Adds one point to each curve that `values` has a value for."""
        if self.live is None:
            return
        self.live.step = step
        try:
            for name, metric in NAMES.items():
                if name in values:
                    self.live.log_metric(metric, values[name])
        except OSError as error:  # the training is worth more than its curves
            print(f"sft: {self.folder} takes no more points ({error})", file=sys.stderr)
            self.live = None

    def on_train_end(self, args, state, control, **kwargs):
        if self.live is not None:
            self.live.end()


def curve(history: list[dict]) -> str:
    """The loss curve as CSV, one line a logged step; empty cells where a value was not measured there.

    It holds no time, so that equal runs leave equal bytes.
    """
    points: dict[int, dict] = {}
    for entry in history:
        point = points.setdefault(entry["step"], {"step": entry["step"]})
        for name in CURVE[1:]:
            value = entry.get("eval_loss" if name == "held_out_loss" else name)
            if value is not None:
                point[name] = f"{value:.6g}"
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, lineterminator="\n")
    writer.writeheader()
    writer.writerows(points[step] for step in sorted(points))
    return text.getvalue()
