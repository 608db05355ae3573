"""``python -m megatron_apo.rollout.vllm.server MODEL [options of vllm serve]``: vLLM's own server, prepared as ours.

What a machine needs before vLLM can be imported (torchvision without its operators, an unloadable torchcodec) is done
first, in the processes that vLLM starts too.
"""

from __future__ import annotations

import os
import sys

from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.rollout.vllm.environment import prepare_environment


def main() -> None:
    """Serves until it is told to end."""
    # The engine's core inherits what is prepared here only if it is forked.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    prepare_environment()
    register_missing_operators()
    from vllm.entrypoints.cli.main import main as serve

    sys.argv = ["vllm", "serve", *sys.argv[1:]]
    serve()


if __name__ == "__main__":
    main()
