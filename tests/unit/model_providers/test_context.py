"""Which tokens each context rank holds, and what each of them may attend to: worked out position by position."""

from __future__ import annotations

import pytest
import torch

from model_providers.qwen_vl.context import context_layout, context_rows


def boundaries(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def test_rows_of_each_rank_by_hand() -> None:
    cu_seqlens = boundaries(8, 4)  # pieces of two tokens, and of one
    assert context_rows(cu_seqlens, 0, 2).tolist() == [0, 1, 6, 7, 8, 11]
    assert context_rows(cu_seqlens, 1, 2).tolist() == [2, 3, 4, 5, 9, 10]


def test_a_sequence_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sequences of \[8, 6\] tokens; with 2 context ranks .* multiple of 4"):
        context_rows(boundaries(8, 6), 0, 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        context_layout(boundaries(8, 6), 0, 2)


@pytest.mark.parametrize(("size", "unit", "buckets"), [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 40, 3)])
def test_a_token_sees_its_own_sequence_up_to_itself(size: int, unit: int, buckets: int) -> None:
    """Units of pieces 3, 1, 5 and 4: all short, or of 480, 160, 800 and 640 tokens in buckets of their own."""
    lengths = [2 * size * count * unit for count in (3, 1, 5, 4)]
    cu_seqlens = boundaries(*lengths)
    starts = cu_seqlens.tolist()
    rows = [context_rows(cu_seqlens, rank, size) for rank in range(size)]
    gathered = torch.cat(rows)
    assert sorted(gathered.tolist()) == list(range(sum(lengths)))
    for rank in range(size):
        layout = context_layout(cu_seqlens, rank, size)
        assert len(layout.buckets) == buckets
        seen: list[list[int]] = []
        asked: list[int] = []
        for bucket in layout.buckets:
            for half in (0, 1):
                columns = bucket.key_columns[half]
                for sequence in range(bucket.query_index_2NQ.shape[1]):
                    for column in range(bucket.query_index_2NQ.shape[2]):
                        visible = bucket.masks[half][sequence, 0, column]
                        keys = bucket.key_index_NS[sequence, :columns][visible]
                        seen.append(sorted(gathered[keys].tolist()))
                        asked.append(int(bucket.query_index_2NQ[half, sequence, column]))
        real = layout.unpad_index_R.tolist()
        assert [asked[index] for index in real] == list(range(len(rows[rank])))
        for local, index in enumerate(real):
            place = int(rows[rank][local])
            start = max(start for start in starts if start <= place)
            assert seen[index] == list(range(start, place + 1))
        assert all(seen), "a padded query that sees nothing would make NaN"
