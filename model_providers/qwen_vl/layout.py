"""Which layouts can hold a model: the one place that knows what must divide what.

Knows neither torch nor Megatron, so that a planner without a GPU asks the same questions as the model's constructor.
"""

from __future__ import annotations

from dataclasses import dataclass

# Published vision FFNs are 3420, 3456 and 5120 wide. FP8 asks for 16 columns times the tensor ranks: 128 serves up to
# eight ranks, and makes 3456 of 3420.
VISION_FFN_MULTIPLE = 128


def padded_width(width: int, multiple: int) -> int:
    """``width`` rounded up to ``multiple``: how wide the vision FFN is built, whatever the layout."""
    return -(-width // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """Every factor that cuts a model or repeats it; the data-parallel size is what is left of the processes.

    ``world``: processes that train the model. ``first_stage_layers`` 0: as many as the other stages.
    """

    world: int
    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_pipeline: int = 1
    first_stage_layers: int = 0
    context: int = 1
    vision_ffn_multiple: int = VISION_FFN_MULTIPLE

    @property
    def model_parallel(self) -> int:
        """Processes of one replica."""
        return self.tensor * self.pipeline * self.context

    def __str__(self) -> str:
        data = "?" if self.model_parallel < 1 or self.world % self.model_parallel else self.world // self.model_parallel
        return (
            f"tensor {self.tensor} × pipeline {self.pipeline} × context {self.context} × data {data} = world "
            f"{self.world}, sequence {str(self.sequence).lower()}, virtual_pipeline {self.virtual_pipeline}, "
            f"first_stage_layers {self.first_stage_layers}, vision_ffn_multiple {self.vision_ffn_multiple}"
        )


@dataclass(frozen=True)
class Divided:
    """The sizes of a model that ranks share. ``vision_merger``: width of the patches that become one token."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    vision_heads: int
    vision_merger: int
    vision_ffn: int

    @property
    def cut(self) -> dict[str, int]:
        """Sizes that the tensor ranks must divide."""
        return {
            "heads": self.heads,
            "ffn": self.ffn,
            "qkv rows": (self.heads + 2 * self.kv_heads) * self.head_size,
            "vision heads": self.vision_heads,
            "vision merger": self.vision_merger,
        }


def stage_layers(layout: Layout, layers: int) -> list[int]:
    """Language layers of each pipeline stage; ValueError naming what is wrong when they cannot be dealt out."""
    stages, first, chunks = layout.pipeline, layout.first_stage_layers, layout.virtual_pipeline
    problems = []
    if stages == 1:
        if first:
            problems.append(f"first_stage_layers {first} needs pipeline above 1")
        if chunks > 1:
            problems.append(f"virtual_pipeline {chunks} needs pipeline above 1")
        counts = [layers]
    elif first:
        rest = layers - first
        if rest < stages - 1 or rest % (stages - 1):
            problems.append(
                f"layers {layers} less first_stage_layers {first} = {rest} cannot be shared by the other "
                f"{stages - 1} stages of pipeline {stages}"
            )
        counts = [first, *[rest // (stages - 1)] * (stages - 1)]
    else:
        if layers % stages:
            problems.append(f"layers {layers} is not a multiple of pipeline {stages} and first_stage_layers is not set")
        counts = [layers // stages] * stages
    if stages > 1 and not problems and any(count % chunks for count in counts):
        shown = " + ".join(str(count) for count in counts)
        problems.append(f"a stage of {shown} layers is not a multiple of virtual_pipeline {chunks}")
    if problems:
        raise ValueError("; ".join(problems))
    return counts


def _problems(layout: Layout, model: Divided) -> list[str]:
    tensor = layout.tensor
    found = []
    if layout.sequence and tensor == 1:
        found.append("sequence true needs tensor above 1: it splits the sequence over the tensor ranks")
    if layout.world % layout.model_parallel:
        found.append(f"world {layout.world} is not a multiple of tensor × pipeline × context = {layout.model_parallel}")
    for name, size in model.cut.items():
        if size % tensor:
            found.append(f"{name} {size} is not a multiple of tensor {tensor}")
    if (padded := padded_width(model.vision_ffn, layout.vision_ffn_multiple)) % tensor:
        found.append(f"vision ffn {model.vision_ffn} padded to {padded} is not a multiple of tensor {tensor}")
    if model.kv_heads % tensor and tensor % model.kv_heads:
        found.append(f"kv_heads {model.kv_heads} is neither a multiple of tensor {tensor} nor a divisor of it")
    try:
        stage_layers(layout, model.layers)
    except ValueError as error:
        found.append(str(error))
    return found


def _sizes(layout: Layout, model: Divided) -> str:
    """Every size of the model that the layout shares, and whether it can be shared."""
    tensor = layout.tensor
    told = [f"{name} {size} {'no' if size % tensor else 'yes'}" for name, size in model.cut.items()]
    kv_heads = "no" if model.kv_heads % tensor and tensor % model.kv_heads else "yes"
    padded = padded_width(model.vision_ffn, layout.vision_ffn_multiple)
    told.append(f"vision ffn {model.vision_ffn} padded to {padded} {'no' if padded % tensor else 'yes'}")
    return (
        f"divisible by tensor {tensor}: {', '.join(told)}, kv_heads {model.kv_heads} {kv_heads}; padded until it is: "
        f"vocabulary {model.vocab}; dealt out: layers {model.layers}"
    )


def check_layout(layout: Layout, model: Divided) -> int:
    """The data-parallel size; ValueError naming every factor, every size and everything wrong with the layout."""
    small = [
        f"{name} {getattr(layout, name)} must be at least {least}"
        for name, least in {
            **dict.fromkeys(("world", "tensor", "pipeline", "virtual_pipeline", "context", "vision_ffn_multiple"), 1),
            "first_stage_layers": 0,
        }.items()
        if getattr(layout, name) < least
    ]
    if problems := small or _problems(layout, model):
        sizes = "" if small else f" ({_sizes(layout, model)})"
        raise ValueError(
            f"layout: {layout}: {'; '.join(problems)}{sizes}; change the parallel settings or the number of processes"
        )
    return layout.world // layout.model_parallel


def check_group_sizes(layout: Layout, *, tensor: int, pipeline: int, context: int) -> None:
    """ValueError with every factor when the process groups that a model is built in are not those of ``layout``."""
    wrong = [
        f"{name} {getattr(layout, name)} but its process group has {size}"
        for name, size in {"tensor": tensor, "pipeline": pipeline, "context": context}.items()
        if getattr(layout, name) != size
    ]
    if wrong:
        raise ValueError(
            f"layout: {layout}: the settings say {'; '.join(wrong)}; give the sizes that "
            "parallel_state.initialize_model_parallel was given, or start its groups with these"
        )


def check_chunk(
    layout: Layout, *, pipeline_rank: int, vp_stage: int | None, pre_process: bool, post_process: bool
) -> None:
    """ValueError when a chunk is asked for that this rank does not have, or with the ends of another one.

    ``vp_stage``: which of the rank's ``virtual_pipeline`` chunks; None (or 0) where it has one.
    """
    chunks = layout.virtual_pipeline
    if vp_stage is None and chunks > 1:
        raise ValueError(
            f"vp_stage=None: must be 0 to {chunks - 1} with virtual_pipeline {chunks}; build each chunk of the rank"
        )
    if vp_stage is not None and not 0 <= vp_stage < chunks:
        raise ValueError(
            f"vp_stage={vp_stage}: must be 0 to {chunks - 1} with virtual_pipeline {chunks}; ask for as many chunks as "
            "the settings say"
        )
    ends = {
        "pre_process": (pre_process, pipeline_rank == 0 and not vp_stage),
        "post_process": (post_process, pipeline_rank == layout.pipeline - 1 and (vp_stage or 0) == chunks - 1),
    }
    for name, (given, expected) in ends.items():
        if given != expected:
            raise ValueError(
                f"{name}={given}: must be {expected} on pipeline rank {pipeline_rank} of {layout.pipeline}, chunk "
                f"{vp_stage or 0} of {chunks}; the first chunk of the first stage has the vision tower and the "
                "embedding, the last one of the last stage the output"
            )
