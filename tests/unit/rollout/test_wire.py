"""Messages over a socket: exact values, deadlines, and a peer that goes away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from megatron_apo.records import Prompt, PromptImage, Rollout
from megatron_apo.rollout import wire


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_a_message_arrives_as_it_was_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    big = torch.arange(300_000, dtype=torch.int64).reshape(3, -1)  # larger than a socket's buffer
    sent = {
        "big": big,
        "empty": torch.empty(0, dtype=torch.float64),
        "third": torch.tensor(-1 / 3, dtype=torch.float64),
    }
    sender = threading.Thread(target=wire.send, args=(ends[0], {"call": "é", "n": [1, None]}, sent, 5.0))
    sender.start()
    body, tensors = wire.receive(ends[1], 5.0)
    sender.join()
    assert body == {"call": "é", "n": [1, None]}
    assert tensors.keys() == sent.keys()
    assert all(torch.equal(tensors[name], sent[name]) and tensors[name].dtype == sent[name].dtype for name in sent)


def test_a_silent_peer_costs_the_deadline_and_no_more(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall((100).to_bytes(8, "little") + b"half a header")
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(ends[1], 0.2)
    assert 0.15 < time.monotonic() - started < 2.0


def test_a_peer_that_is_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()
    with pytest.raises(wire.ConnectionLost):
        wire.receive(ends[1], 5.0)
    with pytest.raises(wire.ConnectionLost):
        wire.send(ends[1], {}, {"x": torch.zeros(1000, dtype=torch.float64)}, 5.0)


def test_a_header_that_nobody_sends(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(b"\xff" * 8)
    with pytest.raises(wire.ConnectionLost, match="which no engine does"):
        wire.receive(ends[1], 5.0)


def test_prompts_and_rollouts_survive_the_crossing(ends: tuple[socket.socket, socket.socket]) -> None:
    image = PromptImage(path="/a.png", sha256="ab", grid_thw=(2, 4, 6), seconds_per_grid=0.1)
    prompts = [
        Prompt(
            id="p",
            token_ids=(1, 7, 7),
            collapsed_ids=(1, 7),
            images=(image,),
            question="?",
            gold="4",
            choices=("a", "b"),
        ),
        Prompt(id="q", token_ids=(), collapsed_ids=(), images=(), question="", gold=""),
    ]
    groups = [
        [Rollout("p", 0, (5, 6), (-0.1, -1e-300), "a", "stop", 2), Rollout("p", 1, (), (), "", "abort", 2)],
        [Rollout("q", 0, (8,), (-2.5,), "b", "length", 2)],
    ]
    plain, tensors = wire.pack_prompts(prompts)
    wire.send(ends[0], {"prompts": plain}, tensors, 5.0)
    body, arrived = wire.receive(ends[1], 5.0)
    assert wire.unpack_prompts(body["prompts"], arrived) == prompts
    values, tensors = wire.pack_rollouts(groups)
    wire.send(ends[1], {"rollouts": values}, tensors, 5.0)
    body, arrived = wire.receive(ends[0], 5.0)
    assert wire.unpack_rollouts(body["rollouts"], arrived) == groups
