"""A process that cuts pictures into patches: ``python -m megatron_apo.data.patch_worker``.

Writes an empty line when it is up, and then reads JSON lines ``{"path", "sha256", "grid", "bytes"}``. For each it puts
so many bytes of patches (uint8, [L, 3, patch_size squared]) into the memory that it shares with its parent, and writes
a line ``{"width", "height"}`` of the picture; or ``{"error"}``. It ends when its input does.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from megatron_apo.data.image_process import open_replies
from megatron_apo.data.images import load_image
from megatron_apo.data.patches import cut_patches
from megatron_apo.data.shared_bytes import SharedBytes


def answer(request: dict[str, Any], shared: SharedBytes, patch_size: int, merge_size: int) -> dict[str, object]:
    """Cuts one picture; what is to be said of it."""
    try:
        picture = load_image(request["path"], sha256=request["sha256"], keep=False)
    except ValueError as error:
        return {"error": str(error)}
    out = shared.first(request["bytes"])
    cut_patches(picture, tuple(request["grid"]), patch_size=patch_size, merge_size=merge_size, out=out)
    return {"width": picture.width, "height": picture.height}


def main() -> None:
    """Serves until the end of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=int, required=True, help="file descriptor of the memory for patches")
    parser.add_argument("--patch-size", type=int, required=True, help="pixels a side of a patch")
    parser.add_argument("--merge-size", type=int, required=True, help="patches a side of an image token")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the other cores have workers of their own
    shared = SharedBytes(arguments.shared)
    replies = open_replies()
    for line in sys.stdin:
        found = answer(json.loads(line), shared, arguments.patch_size, arguments.merge_size)
        print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
    main()
