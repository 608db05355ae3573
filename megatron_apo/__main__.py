"""python -m megatron_apo …"""

import sys

from megatron_apo.cli import main

if __name__ == "__main__":
    sys.exit(main())
