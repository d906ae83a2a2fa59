"""`train`: how a model is trained, and `teacher.finetune`, the same with defaults for fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybrew.config.base import (
    MAX_COUNT,
    MAX_CPUS,
    MAX_SEED,
    MAX_THREADS,
    MAX_WEIGHT,
    MAX_WORKERS,
    NOT_IDENTITY,
    WHEN_SET,
    Many,
    Section,
)
from raybrew.errors import Problem

__all__ = ["ChangeConfig", "EarlyStoppingConfig", "FinetuneConfig", "TrainConfig", "check_train"]


class EarlyStoppingConfig(Section):
    """End training when evaluations stop getting better."""

    patience: int = Field(default=3, ge=1, le=MAX_COUNT)
    """End after so many evaluations in a row without a better value of `task.metric`, or, where nothing trains the head
    in the last stage, of the evaluation loss."""
    min_delta: float = Field(default=0.0, ge=0, le=MAX_WEIGHT)
    """A value counts as better if it beats the best one so far by more than this."""


class ChangeConfig(Section):
    """Other values from a share of all steps on."""

    at: float = Field(gt=0, lt=1)
    """Share of all steps."""
    values: dict[str, float] = Field(min_length=1)
    """Dotted key -> value from there on."""


class TrainConfig(Section):
    """Optimisation of a student. `batch_size` counts rows per optimizer step over all workers.

    Example:
        >>> raybrew.Train(epochs=3, learning_rate=5e-5)
        Train(epochs=3, learning_rate=5e-05)
    """

    epochs: int = Field(default=30, ge=1, le=10**6)
    """Passes over the training rows."""
    max_steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    batch_size: int = Field(default=32, ge=1, le=10**6)
    """Rows per optimizer step, over all workers and micro-batches together."""
    batch_tokens: int | None = Field(default=None, ge=1, le=10**8)
    """Tokens per optimizer step, padding included: as many rows of like length as fit. Replaces `batch_size`."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=10**6)
    """Rows per forward pass of one worker; the rest of a batch is accumulated. Default: no accumulation."""
    micro_batch_tokens: int | None = Field(default=None, ge=1, le=10**8)
    """Tokens per forward pass of one worker, padding included; the rest of a batch is accumulated."""
    learning_rate: float = Field(default=1e-4, gt=0, le=MAX_WEIGHT)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after warm-up: to zero linearly or by a half cosine, or constant."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=MAX_WEIGHT)
    """Decoupled weight decay of matrices; biases and normalisation weights have none."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of each layer as a share of that of the layer above it; head and projections have the full rate."""
    max_grad_norm: float | None = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    """Clip the norm of all trained parameters' gradient, projections included."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of initialisation, row order and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on GPUs that have it, else fp32."""
    compile: bool = False
    """Compile the student (torch.compile); lengths and rows of batches are then padded to few shapes."""
    gradient_checkpointing: bool = Field(default=False, json_schema_extra=NOT_IDENTITY)
    """Compute each layer of the student again in the backward pass instead of keeping it: less memory, more time."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=NOT_IDENTITY)
    """`auto` takes a GPU where there is one; `cuda` without a GPU is an error."""
    workers: int | Many[int] = Field(default=1, json_schema_extra=NOT_IDENTITY)
    """Training workers, which divide each batch; [fewest, most] goes on with fewer when workers or nodes are lost."""
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", json_schema_extra=NOT_IDENTITY)
    """`ddp`: each worker holds the whole student; `fsdp`: student and optimizer are divided among the workers."""
    launcher: Literal["auto", "local", "ray"] = Field(default="auto", json_schema_extra=NOT_IDENTITY)
    """`local`: one worker in this process; `ray`: Ray Train; `auto`: local for one worker without a cluster address."""
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS, json_schema_extra=NOT_IDENTITY)
    """CPU threads of a worker. Default: what torch (local) or Ray (CPUs per worker) decides."""
    cpus_per_worker: float = Field(default=1, gt=0, le=MAX_CPUS, json_schema_extra=NOT_IDENTITY)
    """CPUs that Ray reserves for each worker."""
    max_failures: int = Field(default=3, ge=0, le=MAX_COUNT, json_schema_extra=NOT_IDENTITY)
    """How often Ray restarts dead workers from the last checkpoint before the run fails."""
    eval_steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Evaluate every so many steps. Default: after each epoch. The last step is always evaluated."""
    eval_epochs: int | None = Field(default=None, ge=1, le=10**6)
    """Evaluate after every so many epochs, in place of `eval_steps`."""
    early_stopping: EarlyStoppingConfig | None = None
    """End before the last step when evaluations stop getting better, e.g. {patience: 3, min_delta: 0.001}."""
    checkpoint_steps: int | None = Field(default=None, ge=1, le=MAX_COUNT, json_schema_extra=NOT_IDENTITY)
    """Save the full training state every so many steps. Default: at each evaluation."""
    checkpoint_epochs: int | None = Field(default=None, ge=1, le=10**6, json_schema_extra=NOT_IDENTITY)
    """Save the full training state after every so many epochs, in place of `checkpoint_steps`."""
    checkpoint_minutes: float = Field(default=10.0, gt=0, le=MAX_COUNT, json_schema_extra=NOT_IDENTITY)
    """Save the full training state after so many minutes without a checkpoint."""
    keep_checkpoints: int = Field(default=2, ge=1, le=10**6, json_schema_extra=NOT_IDENTITY)
    """How many training states are kept; the best student is kept besides."""
    log_steps: int = Field(default=10, ge=1, le=MAX_COUNT)
    """Write losses, learning rate and speed to metrics.jsonl every so many steps."""
    changes: Many[ChangeConfig] = Field(default=(), json_schema_extra=WHEN_SET)
    """Other temperatures, loss weights or peak learning rates from shares of the steps on, such as
    [{at: 0.5, values: {distill.temperature: 2, train.learning_rate: 5.0e-5}}]."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else (self.workers[0], self.workers[-1])


class FinetuneConfig(TrainConfig):
    """As `train`, with defaults for fine-tuning on labels.

    Example:
        >>> raybrew.Finetune(epochs=2)
        Finetune(epochs=2)
    """

    init: Literal["pretrained", "random"] = Field(default="pretrained", json_schema_extra=WHEN_SET)
    """Weights to begin with: those of `teacher.model`, or random ones from `seed`; of the folder only config.json and
    the tokenizer are read then."""

    epochs: int = Field(default=3, ge=1, le=10**6)
    """Passes over the training rows."""
    learning_rate: float = Field(default=3e-5, gt=0, le=MAX_WEIGHT)
    """Peak learning rate of AdamW."""


def check_train(key: str, train: TrainConfig) -> list[Problem]:
    problems = []
    for part, whole in (("micro_batch_size", "batch_size"), ("micro_batch_tokens", "batch_tokens")):
        small, large = getattr(train, part), getattr(train, whole)
        if part == "micro_batch_size" and train.batch_tokens is not None:
            continue  # batch_size is not used
        if small is not None and large is not None and small > large:
            problems.append(
                Problem(
                    f"{key}.{part}", f"given {small}; allowed: at most {key}.{whole} ({large}), of which it is a part"
                )
            )
    problems += _workers(key, train)
    for steps, epochs in (("eval_steps", "eval_epochs"), ("checkpoint_steps", "checkpoint_epochs")):
        if getattr(train, steps) is not None and getattr(train, epochs) is not None:
            problems.append(Problem(f"{key}.{epochs}", f"given beside {key}.{steps}; allowed: one of them", "conflict"))
    if train.precision == "fp16" and train.device == "cpu":
        problems.append(
            Problem(f"{key}.precision", "given 'fp16' with device 'cpu'; allowed there: fp32, bf16", "conflict")
        )
    if train.changes and key != "train":
        problems.append(
            Problem(f"{key}.changes", "given; what changes as training goes on is a student's: train.changes", "unused")
        )
    if train.compile and train.parallel == "fsdp":
        problems.append(Problem(f"{key}.compile", "given with parallel 'fsdp'; allowed with 'ddp' only", "conflict"))
    return problems


def _workers(key: str, train: TrainConfig) -> list[Problem]:
    given = list(train.workers) if isinstance(train.workers, tuple) else train.workers
    fewest, most = train.worker_range if given != [] else (0, 0)
    if (isinstance(given, list) and len(given) != 2) or not 1 <= fewest <= most <= MAX_WORKERS:
        allowed = f"allowed: a number from 1 to {MAX_WORKERS}, or [fewest, most] of them"
        return [Problem(f"{key}.workers", f"given {given}; {allowed}")]
    problems = []
    if most > train.batch_size and train.batch_tokens is None:
        problems.append(
            Problem(
                f"{key}.workers",
                f"given {given}; allowed: at most {key}.batch_size ({train.batch_size}), "
                "which is divided among the workers",
            )
        )
    if train.launcher == "local" and most > 1:
        problems.append(
            Problem(
                f"{key}.launcher",
                f"given 'local' with {key}.workers={given}; `local` runs one worker, use 'ray' or 'auto'",
                "conflict",
            )
        )
    return problems
