"""Random models, inputs and layouts: everything of a draw follows from its number."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron_apo.config import ParallelConfig

IMAGE, VIDEO, START, END = 290, 291, 292, 293
TEXT_TOKENS = 280  # ids below it are text
MERGE = 2
PRIMES = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}
Grid = tuple[int, int, int]


# What a draw's layout is at least, by its number: rare combinations would else hardly occur.
KINDS: tuple[str, ...] = (
    *("any", "pipeline", "interleaved", "uneven first stage", "tensor and sequence", "tensor and pipeline"),
    *("context and pipeline", "tensor 4", "data and pipeline", "several"),
)
_HEADS = {"tensor 4": [4, 8], "tensor 8": [8]}  # attention heads that such ranks can divide


@dataclass(frozen=True)
class Visual:
    """An image, or a video when ``seconds`` is not 0; of the same ``name``, the same pixels."""

    name: str
    grid: Grid
    seconds: float = 0.0


@dataclass(frozen=True)
class Sequence:
    """One prompt and its response; ids and pixels are drawn from its place."""

    visuals: tuple[Visual, ...]
    text: int  # tokens between two images
    response: int


@dataclass(frozen=True)
class Draw:
    """``form``: "packed", "padded" (every sequence to a multiple of 16 tokens more than it needs) or "alone" (a
    microbatch each). ``microbatches[d][m]``: sequences of microbatch m on data rank d. ``head``: "model" compares its
    logits, "trainer" the log-probabilities and entropies of the responses as the trainer computes them, at
    ``temperature`` and ``chunk`` tokens at a time. ``pixel_scale``: a small one shows the norms' epsilon."""

    number: int
    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    world: int
    parallel: ParallelConfig
    recompute: str
    vision_ffn_multiple: int
    form: str
    head: str
    temperature: float
    chunk: int
    pixel_scale: float
    sequences: tuple[Sequence, ...]
    microbatches: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def data(self) -> int:
        parallel = self.parallel
        return self.world // (parallel.tensor * parallel.pipeline * parallel.context)

    def outlasts(self, visual: Visual) -> bool:
        """Whether a video's last time position lies beyond its height and width, so that the text after it counts on
        from its time: transformers lets it count on from height and width alone (mrope.py)."""
        time, height, width = visual.grid
        rate = self.vision.get("tokens_per_second", 0)
        last = int((time - 1) * (visual.seconds * rate if rate else 1.0))
        return bool(visual.seconds) and last >= max(height, width) // MERGE

    @property
    def vision_ffn(self) -> int:
        """Rows of the vision tower's feed-forward in the checkpoint."""
        if self.family == "qwen2_vl":
            return int(self.vision["embed_dim"] * self.vision["mlp_ratio"])
        return int(self.vision["intermediate_size"])

    def factors(self) -> list[str]:
        """What a sweep counts its draws by."""
        parallel, visuals = self.parallel, [v for s in self.sequences for v in s.visuals]
        sizes = {"TP": parallel.tensor, "PP": parallel.pipeline, "CP": parallel.context, "DP": self.data}
        found = [self.family, self.form, f"recompute {self.recompute}", f"world {self.world}", f"{self.head}'s head"]
        found += [f"{name} {size}" for name, size in sizes.items() if size > 1]
        told = {
            "interleaved": parallel.virtual_pipeline > 1,
            "uneven first stage": parallel.first_stage_layers > 0,
            "sequence parallelism": parallel.sequence,
            "KV heads < TP": self.text["num_key_value_heads"] < parallel.tensor,
            "vision FFN padded": self.vision_ffn % self.vision_ffn_multiple > 0,
            "video": any(v.seconds for v in visuals),
            "video longer than wide": any(self.outlasts(v) for v in visuals),
            "still image": any(not v.seconds for v in visuals),
            "28 x 28 image": any(v.grid == (1, MERGE, MERGE) for v in visuals),
            "aspect ratio 20 or more": any(max(v.grid[1:]) >= 20 * min(v.grid[1:]) for v in visuals),
            "no image at all": not visuals,
            "empty microbatch": any(not batch for rank in self.microbatches for batch in rank),
            "data rank without a response token": any(not any(rank) for rank in self.microbatches),
            "several layouts at once": sum(size > 1 for size in sizes.values()) > 1,
        }
        return found + [name for name, holds in told.items() if holds]

    def __str__(self) -> str:
        parallel = {key: value for key, value in asdict(self.parallel).items() if value not in (1, 0, False, 1800)}
        grids = [[(*v.grid, v.seconds) if v.seconds else v.grid for v in s.visuals] for s in self.sequences]
        return (
            f"draw {self.number}: {self.family} {self.text} {self.vision} tied={self.tied} world={self.world} "
            f"{parallel} recompute={self.recompute} vision_ffn_multiple={self.vision_ffn_multiple} {self.form} "
            f"head={self.head} temperature={self.temperature} chunk={self.chunk} pixels={self.pixel_scale} "
            f"images={grids} microbatches={self.microbatches}"
        )


def _text(dice: random.Random, kind: str) -> dict[str, Any]:
    heads, size = dice.choice(_HEADS.get(kind, [2, 4, 4, 8])), dice.choice([8, 16, 32])
    if heads * size > 128:
        size = 16
    sections = {8: [1, 1, 2], 16: [2, 3, 3], 32: [4, 6, 6]}[size]
    return dict(
        vocab_size=dice.choice([301, 304, 323]),
        hidden_size=heads * size,
        num_hidden_layers=dice.choice([2, 3, 4, 4, 6, 8] if kind in ("any", *_HEADS) else [4, 6, 8]),
        num_attention_heads=heads,
        num_key_value_heads=dice.choice([n for n in (1, 2, 4, 8) if heads % n == 0]),
        intermediate_size=dice.choice([48, 88, 184] if kind in _HEADS else [48, 88, 90, 184]),
        max_position_embeddings=2048,
        rms_norm_eps=dice.choice([1e-6, 1e-5]),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": dice.choice([1e4, 1e6]),
            "mrope_section": sections,
        },
    )


def _vision(dice: random.Random, family: str, hidden: int, kind: str) -> dict[str, Any]:
    heads, size = dice.choice(_HEADS.get(kind, [2, 4, 4, 8])), dice.choice([8, 16])
    depth, patch = dice.choice([2, 3, 4]), dice.choice([4, 14])
    common = dict(
        depth=depth, num_heads=heads, patch_size=patch, spatial_merge_size=MERGE, in_channels=3, temporal_patch_size=2
    )
    if family == "qwen2_vl":
        return common | dict(embed_dim=heads * size, mlp_ratio=dice.choice([2, 3]), hidden_size=hidden)
    return common | dict(
        hidden_size=heads * size,
        intermediate_size=dice.choice([36, 50, 60]),
        out_hidden_size=hidden,
        tokens_per_second=dice.choice([1, 2, 4]),
        window_size=patch * MERGE * dice.choice([1, 2, 3, 4]),
        fullatt_block_indexes=sorted(dice.sample(range(depth), dice.randint(0, depth))),
    )


def _visual(dice: random.Random, name: str) -> Visual:
    height, width = (MERGE * dice.randint(1, 6) for _ in range(2))
    kind = dice.random()
    if kind < 0.15:
        height = width = MERGE
    elif kind < 0.3:
        height, width = dice.choice([(MERGE, MERGE * 100), (MERGE * 40, MERGE)])
    if dice.random() > 0.3:
        return Visual(name, (1, height, width))
    return Visual(name, (dice.randint(1, 4), height, width), dice.choice([0.1, 0.5, 0.75, 1.0, 2.0]))


def _sequences(dice: random.Random) -> tuple[Sequence, ...]:
    known = [_visual(dice, f"visual {number}") for number in range(dice.randint(1, 5))]
    most = 0 if dice.random() < 0.1 else 3
    sequences = []
    for _ in range(dice.randint(2, 6)):
        count = dice.randint(min(1, most), most) if dice.random() < 0.7 else 0
        sequences.append(Sequence(tuple(dice.choices(known, k=count)), dice.randint(1, 5), dice.randint(1, 20)))
    return tuple(sequences)


def _is_of(kind: str, world: int, parallel: ParallelConfig) -> bool:
    pipeline, tensor, context = parallel.pipeline, parallel.tensor, parallel.context
    data = world // (pipeline * tensor * context)
    interleaved, uneven = parallel.virtual_pipeline > 1, parallel.first_stage_layers > 0
    return {
        "any": True,
        "pipeline": pipeline > 1 and not interleaved,
        "interleaved": interleaved,
        "uneven first stage": uneven,
        "tensor and sequence": parallel.sequence,
        "tensor and pipeline": tensor > 1 and pipeline > 1,
        "context and pipeline": context > 1 and pipeline > 1,
        "tensor 4": tensor == 4,
        "tensor 8": tensor == 8,
        "data and pipeline": data > 1 and pipeline > 1,
        "several": sum(size > 1 for size in (pipeline, tensor, context, data)) > 1,
    }[kind]


def layout_of(dice: random.Random, largest_world: int) -> tuple[int, ParallelConfig]:
    """Any layout of up to ``largest_world`` processes, possible or not; often one size has several of their primes."""
    world = dice.choice([size for size in (1, 2, 2, 3, 4, 4, 4, 6, 8, 8, 8, 8, 8) if size <= largest_world])
    sizes, kind = {"tensor": 1, "pipeline": 1, "context": 1, "data": 1}, ""
    for prime in PRIMES[world]:
        if not kind or dice.random() > 0.4:
            kind = dice.choice(list(sizes))
        sizes[kind] *= prime
    tensor, pipeline = sizes["tensor"], sizes["pipeline"]
    parallel = ParallelConfig(
        tensor=tensor,
        pipeline=pipeline,
        context=sizes["context"],
        sequence=tensor > 1 and dice.random() < 0.5,
        virtual_pipeline=dice.choice([1, 2, 2, 3]) if pipeline > 1 else 1,
        first_stage_layers=dice.choice([0, 0, 1, 2]) if pipeline > 1 else 0,
    )
    return world, parallel


def _deal(dice: random.Random, draw: Draw) -> Draw:
    """The sequences over data ranks and microbatches: some may stay empty, all ranks have as many."""
    ranks, multiple = draw.data, draw.parallel.microbatch_multiple
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    bins = dice.randint(1, 3)
    if draw.form != "alone":
        dealt = [[[] for _ in range(bins)] for _ in range(ranks)]
    for index in range(len(draw.sequences)):
        rank = dealt[dice.randrange(ranks)]
        if draw.form == "alone":
            rank.append([index])
        else:
            dice.choice(rank).append(index)
    count = max(1, *(len(rank) for rank in dealt))
    count += -count % multiple
    filled = (rank + [[] for _ in range(count - len(rank))] for rank in dealt)
    return replace(draw, microbatches=tuple(tuple(tuple(batch) for batch in rank) for rank in filled))


def kind_of(number: int, largest_world: int) -> str:
    """What the layout of draw ``number`` must have: so that a few draws have every kind, and rare ones do come."""
    if largest_world < 4:
        return "any"
    kind, rounds = KINDS[number % len(KINDS)], number // len(KINDS)
    return "tensor 8" if kind == "tensor 4" and largest_world >= 8 and rounds % 2 else kind


def draw_case(number: int, *, largest_world: int = 4, attempt: int = 0) -> Draw:
    """The draw of this number; another ``attempt`` draws another layout for the same model and inputs."""
    dice = random.Random(f"case {number}")
    kind = kind_of(number, largest_world)
    family = dice.choice(["qwen2_5_vl", "qwen2_vl"])
    text = _text(dice, kind)
    vision = _vision(dice, family, text["hidden_size"], kind)
    draw = Draw(
        number=number,
        family=family,
        text=text,
        vision=vision,
        tied=dice.random() < 0.5,
        world=1,
        parallel=ParallelConfig(),
        recompute=dice.choice(["none", "none", "selective", "full"]),
        vision_ffn_multiple=dice.choice([8, 8, 16, 128]),
        form=dice.choice(["packed", "packed", "padded", "alone"]),
        head=dice.choice(["model", "trainer"]),
        temperature=dice.choice([0.7, 1.0, 1.3]),
        chunk=dice.choice([1, 7, 1024]),
        pixel_scale=dice.choice([1.0, 1.0, 0.01]),
        sequences=_sequences(dice),
        microbatches=(),
    )
    layouts = random.Random(f"layout {number} {largest_world} {attempt}")
    while True:
        world, parallel = layout_of(layouts, largest_world)
        if _is_of(kind, world, parallel):
            break
    return _deal(layouts, replace(draw, world=world, parallel=parallel))
