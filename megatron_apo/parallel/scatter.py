"""From the controller to the ranks: token ids and scalars, as tensors plus JSON. Nothing is pickled, no pixels travel.

A payload is one safetensors byte string: its tensors, and its JSON in the header. The controller sends each replica's
payload to that replica's first rank, which broadcasts it to the ranks of its model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load, save

from megatron_apo.parallel.groups import Groups
from megatron_apo.records import PromptImage, ReplicaWork, TrainingSample

_SCALARS = ("advantage", "kl_weight", "policy_weight", "kl_token_weight")


def _joined(values: Sequence[Sequence[Any]], dtype: Any) -> torch.Tensor:
    if not values:
        return torch.zeros(0, dtype=torch.from_numpy(np.zeros(0, dtype=dtype)).dtype)
    return torch.from_numpy(np.concatenate([np.asarray(value, dtype=dtype) for value in values]))


def encode(work: ReplicaWork) -> bytes:
    """``work`` as safetensors bytes; floats travel as float64, so they arrive bit for bit."""
    samples = work.samples
    tensors = {
        "ids": _joined([ids for sample in samples for ids in (sample.prompt_ids, sample.response_ids)], np.int64),
        "lengths": torch.tensor(
            [[len(s.prompt_ids), len(s.response_ids), len(s.rollout_logprobs)] for s in samples], dtype=torch.int64
        ).reshape(-1, 3),
        "logprobs": _joined([sample.rollout_logprobs for sample in samples], np.float64),
        "scalars": torch.tensor([[getattr(s, name) for name in _SCALARS] for s in samples], dtype=torch.float64),
    }
    images = [
        [[image.path, image.sha256, list(image.grid_thw), image.seconds_per_grid] for image in sample.images]
        for sample in samples
    ]
    prompts = [sample.prompt_id for sample in samples]
    header = {
        "updates": work.updates,
        "scalars": work.scalars,
        "images": images,
        "prompts": prompts,
        "numbers": work.numbers,
    }
    return save(tensors, metadata={"work": json.dumps(header)})


def _header(payload: bytes) -> dict[str, Any]:
    length = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + length])["__metadata__"]
    decoded: dict[str, Any] = json.loads(metadata["work"])
    return decoded


def decode(payload: bytes) -> ReplicaWork:
    """``encode`` undone."""
    header, tensors = _header(payload), load(payload)
    ids, logprobs = tensors["ids"].tolist(), tensors["logprobs"].tolist()
    scalars = tensors["scalars"].tolist()
    samples, token, value = [], 0, 0
    for row, (prompt, response, known) in enumerate(tensors["lengths"].tolist()):
        samples.append(
            TrainingSample(
                prompt_ids=tuple(ids[token : token + prompt]),
                response_ids=tuple(ids[token + prompt : token + prompt + response]),
                images=tuple(PromptImage(path, sha, tuple(grid), s) for path, sha, grid, s in header["images"][row]),
                rollout_logprobs=tuple(logprobs[value : value + known]),
                prompt_id=header["prompts"][row],
                **dict(zip(_SCALARS, scalars[row], strict=True)),
            )
        )
        token += prompt + response
        value += known
    updates = tuple(tuple(tuple(batch) for batch in update) for update in header["updates"])
    return ReplicaWork(tuple(samples), updates, header["scalars"], tuple(header["numbers"]))


def _send(payload: bytes, destination: int, groups: Groups) -> None:
    dist.send(torch.tensor([len(payload)]), destination, group=groups.control)
    dist.send(torch.frombuffer(bytearray(payload), dtype=torch.uint8), destination, group=groups.control)


def _receive(source: int, groups: Groups) -> bytes:
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, source, group=groups.control)
    buffer = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(buffer, source, group=groups.control)
    return buffer.numpy().tobytes()


def _broadcast(payload: bytes | None, source: int, group: Any) -> bytes:
    """``payload``, given on rank ``source`` only, on every rank of ``group``."""
    length = torch.tensor([len(payload) if payload is not None else 0])
    dist.broadcast(length, source, group=group)
    buffer = torch.empty(int(length), dtype=torch.uint8)
    if payload:
        buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    dist.broadcast(buffer, source, group=group)
    return buffer.numpy().tobytes()


def share_images(images: Sequence[PromptImage] | None, groups: Groups) -> list[PromptImage]:
    """The controller's ``images`` on every rank, by reference; given on the controller only. Collective."""
    if groups.world_size == 1:
        assert images is not None
        return list(images)
    payload = None if images is None else json.dumps([asdict(image) for image in images]).encode()
    shared = json.loads(_broadcast(payload, 0, groups.control))
    return [PromptImage(**{**fields, "grid_thw": tuple(fields["grid_thw"])}) for fields in shared]


def scatter_work(works: Sequence[ReplicaWork] | None, groups: Groups) -> ReplicaWork:
    """Each rank's replica's work; ``works`` (one per data-parallel rank) is given on the controller only."""
    if groups.world_size == 1:
        assert works is not None
        return works[0]
    payload: bytes | None = None
    if groups.is_controller:
        assert works is not None and len(works) == groups.data_size
        for work, leader in zip(works, groups.replica_leaders, strict=True):
            if leader == groups.rank:
                payload = encode(work)
            else:
                _send(encode(work), leader, groups)
    elif groups.rank in groups.replica_leaders:
        payload = _receive(0, groups)
    return decode(_broadcast(payload, groups.model_ranks[0], groups.model_control))
