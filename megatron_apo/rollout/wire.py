"""Messages between a trainer and its engine process: a JSON header, then the bytes of tensors. Never pickle.

A message is: length of the header (8 bytes, little-endian), the header (UTF-8 JSON), then each tensor's bytes,
row-major and little-endian, in the order in which the header's ``tensors`` lists their names, dtypes and shapes.
"""

from __future__ import annotations

import json
import math
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from megatron_apo.records import Prompt, PromptImage, Rollout

_DTYPES = {"int64": torch.int64, "float64": torch.float64}
_LENGTH_BYTES = 8
_HEADER_LIMIT = 1 << 30  # bytes; what is longer is no header of ours

assert sys.byteorder == "little", "messages carry tensors in this machine's byte order, which must be little-endian"


class ConnectionLost(RuntimeError):
    """The other side closed the connection."""


def send(
    connection: socket.socket, body: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], seconds: float
) -> None:
    """Sends one message within ``seconds``; raises TimeoutError or ConnectionLost."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    described = [{"name": name, "dtype": names[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()]
    header = json.dumps({"body": body, "tensors": described}, allow_nan=False).encode()
    parts = [len(header).to_bytes(_LENGTH_BYTES, "little"), header]
    parts += [tensor.contiguous().numpy().tobytes() for tensor in tensors.values()]
    connection.settimeout(max(seconds, 1e-3))
    try:
        connection.sendall(b"".join(parts))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ConnectionLost("the connection was closed while sending") from error


def receive(connection: socket.socket, seconds: float | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One message, waiting at most ``seconds`` (None: as long as it takes); raises TimeoutError or ConnectionLost."""
    deadline = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_read(connection, _LENGTH_BYTES, deadline), "little")
    if length > _HEADER_LIMIT:
        raise ConnectionLost(f"the other side sent a header of {length:,} bytes, which no engine does")
    message = json.loads(_read(connection, length, deadline))
    tensors = {}
    for entry in message["tensors"]:
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        data = _read(connection, math.prod(shape) * dtype.itemsize, deadline)
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensors[entry["name"]] = flat.reshape(shape)
    return message["body"], tensors


def _read(connection: socket.socket, count: int, deadline: float | None) -> bytearray:
    buffer = bytearray(count)
    view, filled = memoryview(buffer), 0
    while filled < count:
        connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
        try:
            got = connection.recv_into(view[filled:])
        except ConnectionResetError as error:
            raise ConnectionLost("the connection was closed while receiving") from error
        if got == 0:
            raise ConnectionLost("the connection was closed")
        filled += got
    return buffer


def pack_prompts(prompts: Sequence[Prompt]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Prompts as JSON values and tensors: the ids of all prompts joined, with the count of each."""
    plain = []
    for prompt in prompts:
        value = asdict(prompt)
        del value["token_ids"], value["collapsed_ids"]
        plain.append(value)
    ids = _joined("token_ids", [prompt.token_ids for prompt in prompts])
    return plain, ids | _joined("collapsed_ids", [prompt.collapsed_ids for prompt in prompts])


def unpack_prompts(plain: Sequence[Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> list[Prompt]:
    """The inverse of ``pack_prompts``."""
    expanded, collapsed = _split("token_ids", tensors), _split("collapsed_ids", tensors)
    prompts = []
    for value, token_ids, collapsed_ids in zip(plain, expanded, collapsed, strict=True):
        images = tuple(PromptImage(**{**image, "grid_thw": tuple(image["grid_thw"])}) for image in value["images"])
        ids = {"token_ids": token_ids, "collapsed_ids": collapsed_ids, "choices": tuple(value["choices"])}
        prompts.append(Prompt(**{**value, **ids, "images": images}))
    return prompts


def pack_rollouts(groups: Sequence[Sequence[Rollout]]) -> tuple[list[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Rollouts as JSON values and tensors; log-probabilities travel in float64, to the last bit."""
    plain = []
    for group in groups:
        values = [asdict(rollout) for rollout in group]
        for value in values:
            del value["token_ids"], value["logprobs"]
        plain.append(values)
    flat = [rollout for group in groups for rollout in group]
    tensors = _joined("token_ids", [rollout.token_ids for rollout in flat])
    logprobs = [value for rollout in flat for value in rollout.logprobs]
    return plain, tensors | {"logprobs": torch.tensor(logprobs, dtype=torch.float64)}


def unpack_rollouts(
    plain: Sequence[Sequence[Mapping[str, Any]]], tensors: Mapping[str, torch.Tensor]
) -> list[list[Rollout]]:
    """The inverse of ``pack_rollouts``."""
    ids = _split("token_ids", tensors)
    logprobs = tensors["logprobs"].tolist()
    groups: list[list[Rollout]] = []
    at = start = 0
    for values in plain:
        groups.append([])
        for value in values:
            stop = start + len(ids[at])
            groups[-1].append(Rollout(**{**value, "token_ids": ids[at], "logprobs": tuple(logprobs[start:stop])}))
            at, start = at + 1, stop
    return groups


def _joined(name: str, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        f"{name}_counts": torch.tensor([len(row) for row in rows], dtype=torch.int64),
    }


def _split(name: str, tensors: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
    joined, rows, start = tensors[name].tolist(), [], 0
    for count in tensors[f"{name}_counts"].tolist():
        rows.append(tuple(joined[start : start + count]))
        start += count
    return rows
