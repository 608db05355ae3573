"""Every setting: one tree of frozen dataclasses, read from a YAML file plus dotted overrides.

Nothing else in the package reads files or the environment for settings. ``load_config`` names the key, its value and
the remedy for everything it refuses; an unknown key gets the nearest known one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Layout = dict[str, int]


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how long it is."""

    directory: str = "runs/run"  # everything the run writes
    steps: int = 100  # rollout steps (RL) or optimizer updates (SFT)
    seed: int = 0  # data order, sampling, initialisation
    save_every: int = 50  # steps between checkpoints; 0: only at the end
    keep_checkpoints: int = 2  # the newest N are kept
    evaluate_every: int = 0  # steps between evaluations of data.validation; 0: never
    threads: int = 0  # torch's CPU threads; 0: torch's own choice


@dataclass(frozen=True)
class ModelConfig:
    """The policy: a Hugging Face checkpoint directory."""

    path: str = ""
    dtype: str = "float32"  # float32 | bfloat16
    layer_spec: str = "local"  # local | transformer_engine
    recompute: str = "none"  # none | selective | full
    reference: str = "resident"  # resident | host: the initial policy for KL, on the device or swapped in to score
    freeze_vision: bool = False  # the vision tower without its merger
    freeze_merger: bool = False  # what turns image patches into tokens of the language model
    freeze_language: bool = False  # the language model with its embedding and output projection
    vision_ffn_multiple: int = 128  # the vision FFN is padded with zeros to this multiple (FP8: 16 x tensor ranks)


@dataclass(frozen=True)
class ParallelConfig:
    """The layout; the data-parallel size is world size / (tensor * pipeline * context)."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1  # model chunks per pipeline stage, interleaved: a smaller bubble for more messages
    first_stage_layers: int = 0  # language layers of the first stage, which has the vision tower too; 0: as the others
    context: int = 1  # ranks that share each sequence
    sequence: bool = False  # Megatron's sequence parallelism, with tensor > 1
    distributed_optimizer: bool = False  # optimizer state sharded over the data-parallel ranks
    timeout_seconds: int = 1800  # of every collective

    @property
    def sequence_multiple(self) -> int:
        """Tokens that each packed sequence is padded to a multiple of: two equal pieces for every context rank."""
        return 2 * self.context if self.context > 1 else 1

    @property
    def microbatch_multiple(self) -> int:
        """The interleaved schedule takes microbatches in groups of as many as there are stages."""
        return self.pipeline if self.virtual_pipeline > 1 else 1


@dataclass(frozen=True)
class DataConfig:
    """Rows on disk (JSON lines, a JSON list, parquet or saved datasets; docs/data.md) and how their images are cut."""

    train: tuple[str, ...] = ()  # a file, or a list of them
    weights: tuple[
        float, ...
    ] = ()  # one for each file of train: its share of the prompts; none: every row counts alike
    validation: str = ""  # evaluated during training (sft: its demonstrations), never the held-out rows
    test: str = ""  # the held-out rows: before and after
    format: str = ""  # of all these files: r1v_counting | r1v_geoqa | mmk12 (as published); empty: rows of docs/data.md
    formats: dict[str, str] = field(default_factory=dict)  # by file, as it is named here: where it has another
    image_root: str = ""  # images must lie under it; empty: the data file's directory
    cache: str = "runs/data_cache"  # where pictures that come as bytes are kept; every rank must see it
    max_bad_share: float = 0.01  # bad rows are skipped; a larger share of them stops the start
    workers: int = 0  # processes that examine pictures at the start; 0: one for each core, eight at most
    pixel_workers: int = 2  # processes of each rank that decode and cut pictures ahead of need; 0: the rank itself
    system_prompt: str = ""  # empty: none
    instruction: str = ""  # appended to every question
    min_pixels: int = 0  # 0: the processor's own
    max_pixels: int = 0
    shuffle: bool = True
    max_prompt_tokens: int = 4096  # a row with a longer prompt is bad; none is cut


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn."""

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024  # of a response


@dataclass(frozen=True)
class RolloutConfig:
    """Who draws them."""

    engine: str = "vllm"  # vllm | transformers
    placement: str = "auto"  # auto | in_process | process: auto is in_process on one rank
    prompts_per_step: int = 32
    refill_rounds: int = 0  # further draws a step for groups dropped by objective.drop_zero_variance; 0: none
    replay: str = ""  # a run's rollouts/ directory: train on those instead of generating
    kv_cache_gib: float = 1.0  # on a CPU
    gpu_memory_utilization: float = 0.4  # on a GPU
    max_num_sequences: int = 256
    timeout_seconds: int = 1800  # of one call to an engine process


@dataclass(frozen=True)
class RewardConfig:
    """The parts of the reward and their weights."""

    accuracy: float = 1.0
    format: float = 0.5
    user: dict[str, float] = field(default_factory=dict)  # weights by module:function or path/to/file.py:function
    tolerance: float = 0.0  # relative, of measured answers (decimals, values with a unit); 0: exact
    workers: int = 1  # grader processes
    timeout_seconds: float = 10.0  # of one answer; then the worker is killed
    memory_mib: int = 4096  # address space of one worker
    max_error_rate: float = 0.01  # share of grader errors in a step above which the run stops


@dataclass(frozen=True)
class AdvantageConfig:
    """Group-relative advantage (r - baseline) / (std + epsilon)."""

    baseline: str = "group"  # group: the mean of all | leave_one_out: the mean of the others (RLOO)
    scale: bool = True  # divide by the standard deviation
    unbiased: bool = True  # ddof 1
    epsilon: float = 1e-9


@dataclass(frozen=True)
class StcrConfig:
    """Suboptimal-trajectory complexity regularisation: w = 1 - base ** -(excess length of a wrong response)."""

    enabled: bool = False
    base: float = 1.00001
    only_negative: bool = False  # apply only where the advantage is negative


@dataclass(frozen=True)
class DadsConfig:
    """Difficulty-adaptive divergence shaping of the KL weight of positive responses."""

    enabled: bool = False
    curve: str = "one_minus_exp"  # one_minus_exp | exp


@dataclass(frozen=True)
class KlConfig:
    """KL against the initial policy. coefficient 0 with a constant schedule: none, and no reference model."""

    estimator: str = "k3"  # k1 | k2 | k3
    schedule: str = "constant"  # constant | grpo_d
    coefficient: float = 0.0  # constant
    minimum: float = 0.0  # grpo_d
    maximum: float = 0.0  # grpo_d
    exploration_steps: int = 0  # grpo_d: steps of falling coefficient
    exploration_share: float = 0.0  # grpo_d: the same as a share of run.steps; instead of exploration_steps
    placement: str = "loss"  # loss | reward: subtracted from each response's reward, summed over its tokens
    reduction: str = "sequence_mean"  # sequence_mean | token_mean; in the loss


@dataclass(frozen=True)
class MismatchConfig:
    """Importance weights trainer / engine of the sampled tokens, for what the engine's own arithmetic changed."""

    correction: str = "none"  # none | truncate: weights up to ``upper`` | mask: none outside [lower, upper]
    level: str = "token"  # token | sequence: the product over a response's tokens; of the metrics too
    upper: float = 2.0
    lower: float = 0.0  # mask only


@dataclass(frozen=True)
class OverlongConfig:
    """What becomes of responses that sampling.max_tokens cut off, and of those that came near it."""

    policy: str = "train"  # train: nothing | mask: cut ones are left out of the loss | punish: a part of the reward
    buffer: float = 0.2  # punish: share of sampling.max_tokens, before that cap, over which the part falls from 0 to -1
    weight: float = 1.0  # punish: of the part in the reward


@dataclass(frozen=True)
class ObjectiveConfig:
    """One objective; ``name`` picks a preset whose settings the other keys override."""

    name: str = "apo"
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    stcr: StcrConfig = field(default_factory=StcrConfig)
    dads: DadsConfig = field(default_factory=DadsConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    mismatch: MismatchConfig = field(default_factory=MismatchConfig)
    importance: str = "token"  # ratio of the clipped loss: of a token | sequence: geometric mean of a response (GSPO)
    clip_low: float = 0.2
    clip_high: float = 0.2
    # Of the policy loss: token_mean | sequence_mean | sequence_sum | constant (sequence_sum / sampling.max_tokens) |
    # microbatch_token_mean (mean over microbatches of their token means).
    reduction: str = "token_mean"
    microbatch_sequences: int = 2  # microbatch_token_mean: responses of a microbatch, in their order; no matter how cut
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    drop_zero_variance: bool = False  # leave groups without a trained response whose advantage is not 0 out of the loss
    old_logprobs: str = "trainer"  # trainer | engine


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1e-6
    minimum_learning_rate: float = 0.0
    schedule: str = "cosine"  # constant | linear | cosine
    warmup_steps: int = 0  # optimizer updates
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_gradient: float = 1.0  # global norm; 0: no clipping


@dataclass(frozen=True)
class TrainingConfig:
    """How a step's samples become optimizer updates."""

    updates_per_rollout: int = 1
    epochs_per_rollout: int = 1
    tokens_per_microbatch: int = 16384  # a microbatch packs sequences up to this many tokens
    logits_chunk_tokens: int = 512  # rows of [tokens, vocabulary] in memory at a time
    batch_size: int = 64  # sft: sequences per update
    max_skipped_in_a_row: int = 3  # updates with a NaN or an infinity are skipped; so many in a row stop the run


@dataclass(frozen=True)
class SyncConfig:
    """Trainer -> engine weights, and the gates that prove it."""

    logprob_gate: float = 1e-4  # largest mean |trainer - engine| log-probability (fp32; about 0.05 for bf16)
    verify: bool = True  # hash every tensor received


@dataclass(frozen=True)
class EvaluationConfig:
    """python -m megatron_apo evaluate, and the evaluations before, during and after training."""

    samples: int = 1  # responses per row; more than one needs temperature > 0
    temperature: float = 0.0  # 0: greedy
    limit: int = 0  # rows; 0: all
    batch: int = 256  # rows drawn at a time; evaluate keeps each batch's responses as soon as it is graded


@dataclass(frozen=True)
class AlarmLimits:
    """A limit for each watched metric (observability/alarms.py); 0: none."""

    entropy: float = 0.0  # policy/entropy below it, nats
    zero_variance_groups: float = 0.0  # apo/zero_variance_groups above it, a share
    clip_fraction: float = 0.0  # policy/clip_fraction above it, a share
    truncated: float = 0.0  # rollout/truncated above it, a share
    kl: float = 0.0  # kl/raw above it, nats
    kl_old: float = 0.0  # policy/kl_old above it, nats
    logprob_difference: float = 0.0  # sync/logprob_difference_mean above it, nats
    logprob_difference_max: float = 0.0  # sync/logprob_difference_max above it, nats
    weight_mean: float = 0.0  # mismatch/weight_mean farther from 1 than it
    effective_sample_size: float = 0.0  # mismatch/effective_sample_size below it, a share
    corrected: float = 0.0  # mismatch/corrected_share above it, a share


@dataclass(frozen=True)
class WarningLimits(AlarmLimits):
    """The limits beyond which the run says so and goes on."""

    entropy: float = 0.01
    zero_variance_groups: float = 0.95
    clip_fraction: float = 0.3
    truncated: float = 0.5
    kl: float = 1.0
    kl_old: float = 0.1
    logprob_difference: float = 0.02
    weight_mean: float = 0.2
    effective_sample_size: float = 0.5
    corrected: float = 0.2


@dataclass(frozen=True)
class AlarmsConfig:
    """Metrics that stay beyond a limit for ``steps`` steps in a row warn, or save and stop the run; train only."""

    steps: int = 3
    warn: WarningLimits = field(default_factory=WarningLimits)
    stop: AlarmLimits = field(default_factory=AlarmLimits)


@dataclass(frozen=True)
class LoggingConfig:
    """Where the numbers go beside metrics.jsonl."""

    tensorboard: bool = True
    wandb: str = "disabled"  # disabled | offline | online
    wandb_project: str = "megatron_apo"
    progress: bool = True
    report_samples: int = 12  # responses shown in report.html


@dataclass(frozen=True)
class Config:
    """The whole tree; section and field names are the YAML keys."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
