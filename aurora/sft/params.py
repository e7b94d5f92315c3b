"""`sft` of params.yaml: the recipe of training."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from aurora.core.params import Count, Section, Seed

if TYPE_CHECKING:
    from peft import LoraConfig


class Lora(Section):
    """PEFT LoraConfig, in its own names."""

    r: Count
    """Rank."""
    lora_alpha: Annotated[float, Field(gt=0)]
    """Scale numerator; the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout before A."""
    target_modules: tuple[str, ...] | Literal["all-linear"]
    """Linear layers that get an adapter, by the ends of their names, or all of them but the head; of a mixture of
    experts PEFT takes all-linear for its experts and router too."""
    target_parameters: tuple[str, ...] = ()
    """Parameters that get one: fused experts (gate_up_proj, down_proj), also in 4 bits, or a router (gate.weight)."""
    use_rslora: bool = False
    """Whether the update is multiplied by lora_alpha / sqrt(r) instead (arXiv 2312.03732)."""
    use_dora: bool = False
    """Whether the length of each row of a linear layer is trained too (DoRA, arXiv 2402.09353)."""
    modules_to_save: tuple[Literal["embed_tokens", "lm_head"], ...] = ()
    """Modules that are trained whole, in float32, beside the adapter."""

    @field_validator("target_modules", "target_parameters", "modules_to_save")
    @classmethod
    def _named_once(cls, names: tuple[str, ...] | str) -> tuple[str, ...] | str:
        listed = () if isinstance(names, str) else names
        if repeated := [name for at, name in enumerate(listed) if name in listed[:at]]:
            raise ValueError(f"{repeated[0]!r} stands twice; name it once")
        return names

    @model_validator(mode="after")
    def _parts_agree(self) -> "Lora":
        if not self.target_modules and not self.target_parameters:
            raise ValueError("target_modules and target_parameters are both empty; name what to adapt")
        if both := {"embed_tokens", "lm_head"} & set(self.target_modules):
            raise ValueError(
                f"target_modules: {min(both)} gets no adapter; list it under modules_to_save, which trains it whole"
            )
        if self.target_parameters and (self.lora_dropout or self.use_dora):
            name = "lora_dropout: 0.0" if self.lora_dropout else "use_dora: false"
            raise ValueError(f"target_parameters: PEFT has neither dropout nor DoRA for parameters; set {name}")
        return self

    def config(self) -> "LoraConfig":
        """As PEFT's own."""
        from peft import LoraConfig

        listed = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=listed,
            target_parameters=list(self.target_parameters) or None,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            modules_to_save=list(self.modules_to_save) or None,
        )


class StartFrom(Section):
    """An adapter that training goes on from; it was trained on the same base, with the same `lora`."""

    adapter: Annotated[str, Field(min_length=1)]
    """Its folder; with `rev`, as it is in that commit, out of DVC's cache or remote."""
    rev: str | None = None
    """Commit, branch or tag of this repository; null takes the folder as it is."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of its adapter_model.safetensors, in hex, so that DVC notices another one."""


class Sft(Section):
    """TRL SFTTrainer on the quantised base, in the names of SFTConfig."""

    seed: Seed
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Field(gt=0)]
    """Passes over the training rows."""
    stop_after_steps: Count | None
    """Optimiser step at which training ends, on the schedule of all epochs; null runs to the end. The paper's
    published scores are of step 3,000."""
    per_device_train_batch_size: Count
    """Rows a device and forward pass."""
    gradient_accumulation_steps: Count
    """Forward passes an optimiser step."""
    processes: Count
    """Processes, one a card, under `accelerate launch` where more than one; each holds the whole model (DDP)."""
    effective_batch_size: Count
    """Rows an optimiser step over all processes: must be the product of the three values above."""
    accelerate_config: str | None
    """File of `accelerate config` that names several machines, of which each has its own; null is this machine."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    warmup_steps: Annotated[int, Field(ge=0)]
    """Optimiser steps of linear warm-up, whatever the schedule."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_bnb_8bit", "paged_adamw_8bit"]
    """transformers' optimiser name; the paper used a 4-bit optimiser. On CPU only the fused one gives the same bytes
    on every processor."""
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    """Gradient norm beyond which gradients are scaled down."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Autocast type; LoRA weights stay float32 in each."""
    gradient_checkpointing: bool
    packing: bool
    """Whether TRL packs rows best-fit decreasing, documents isolated."""
    packing_length: Annotated[int, Field(ge=16)]
    """Tokens of a packed row; at least format.max_length."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)]
    """Weight of the load-balancing loss of a mixture of experts; 0 in the paper."""
    logging_steps: Count
    """Optimiser steps between points of the loss curve."""
    eval_steps: Count
    """Optimiser steps between held-out losses."""
    save_steps: Count
    """Optimiser steps between checkpoints; a multiple of logging_steps."""
    save_total_limit: Count
    """Checkpoints kept until the adapter is written; with two, a damaged one has another before it."""
    keep_checkpoints: tuple[Count, ...] = Field(())
    """Optimiser steps whose adapters become outputs, models/checkpoints/step-N; multiples of save_steps."""
    threads: Count
    """CPU threads of torch in each process; part of the recipe because sums depend on it."""
    start_from: StartFrom | None = None
    """Adapter to go on from; null begins anew."""
    lora: Lora

    @model_validator(mode="after")
    def _batch_and_intervals_agree(self) -> "Sft":
        apart = self.per_device_train_batch_size * self.processes
        product = apart * self.gradient_accumulation_steps
        if product != self.effective_batch_size:
            wanted, left = divmod(self.effective_batch_size, apart)
            remedy = (
                f"set gradient_accumulation_steps: {wanted}"
                if wanted and not left
                else f"make it a multiple of {apart}, or lower per_device_train_batch_size"
            )
            raise ValueError(
                f"effective_batch_size is {self.effective_batch_size}, but per_device_train_batch_size"
                f" {self.per_device_train_batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps} x"
                f" processes {self.processes} = {product}; {remedy}"
            )
        if self.accelerate_config is not None and self.processes == 1:
            raise ValueError(
                f"accelerate_config {self.accelerate_config} names machines, but processes is 1; set it to null, or"
                " processes to those of all machines"
            )
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is no multiple of logging_steps {self.logging_steps}, so a resumed run"
                f" would log other means; set it to {-(-self.save_steps // self.logging_steps) * self.logging_steps}"
            )
        for step in self.keep_checkpoints:
            if step % self.save_steps:
                raise ValueError(
                    f"keep_checkpoints has {step}, which is no multiple of save_steps {self.save_steps}, so no checkpoint is"
                    " written there; change either"
                )
        return self
