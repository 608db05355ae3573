"""``python -m megatron_apo.rollout.vllm.server --model DIR [options]``: vLLM's OpenAI-compatible server.

What a machine needs before vLLM can be imported (torchvision without its operators, an unloadable torchcodec) is done
first, here and in the processes that vLLM spawns: those import the program that spawned them under another name.
"""

from __future__ import annotations

import argparse
import runpy

from megatron_apo.platform.torchvision_cpu import register_missing_operators
from megatron_apo.rollout.vllm.engine import architectures_of, inspect_models_here
from megatron_apo.rollout.vllm.environment import prepare_environment


def prepare() -> None:
    """Makes vLLM importable, and its registry know the model's class; of the options it reads --model alone."""
    options = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    options.add_argument("--model", required=True)
    model = options.parse_known_args()[0].model
    prepare_environment()
    register_missing_operators()
    inspect_models_here(architectures_of(model))


def main() -> None:
    """Serves until it is told to end; every option is vLLM's."""
    # Not the command vllm itself: it asks for a distribution of that name, and the one for CPUs has another.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ in ("__main__", "__mp_main__"):
    prepare()
if __name__ == "__main__":
    main()
