from __future__ import annotations

import torch

from megatron_apo.parallel.greedy import vocab_parallel_argmax


def test_the_likeliest_allowed_token_of_each_row() -> None:
    # Columns are ids; 5 and 6 are padding, 3 is forbidden; the last row has two equal ones.
    logits = torch.tensor(
        [
            [1.0, 4.0, 2.0, 9.0, 3.0, 8.0, 9.0],
            [-5.0, -4.0, -3.0, 0.0, -2.5, 1.0, 1.0],
            [7.0, 0.0, 7.0, 8.0, 0.0, 9.0, 9.0],
        ]
    )
    weight, hidden = logits.t().contiguous(), torch.eye(3)
    for chunk in (1, 2, 1024):
        found = vocab_parallel_argmax(hidden, weight, vocab_size=5, forbidden_token_ids=(3,), chunk_tokens=chunk)
        assert found.tolist() == [1, 4, 0]
    assert vocab_parallel_argmax(hidden[:0], weight, vocab_size=5).tolist() == []
    assert vocab_parallel_argmax(hidden, weight, vocab_size=7).tolist() == [3, 5, 5]
