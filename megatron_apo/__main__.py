"""python -m megatron_apo …"""

from megatron_apo.cli import main
from megatron_apo.platform import program


def run() -> None:
    """The program, also installed as ``megatron-apo``."""
    program.run(main)


if __name__ == "__main__":
    run()
