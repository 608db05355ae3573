"""A process that examines pictures: ``python -m megatron_apo.data.image_worker``, JSON lines in, JSON lines out.

Writes an empty line when it is up, then reads ``{"paths": […]}`` and writes a line for every path: the fields of its
``ExaminedImage``, or the text of what is wrong. It ends when its input does. A process of its own because a file nobody
has looked at yet may take all memory, or end the process inside a codec: here neither costs more than one row.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_apo.data.image_process import open_replies
from megatron_apo.data.images import examine_image


def _examined(path: str) -> dict[str, object] | str:
    try:
        found = examine_image(path)
    except ValueError as error:
        return str(error)
    except MemoryError:  # of the file itself; the decoder speaks for what it makes of it
        return f"image {path}: more memory is needed than a picture may take; shrink it"
    return asdict(found)


def _address_space() -> int:
    """Bytes that this process has mapped (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    """Serves until the end of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, required=True, help="that a picture may take beside the process")
    limit = _address_space() + parser.parse_args().memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = open_replies()
    for line in sys.stdin:
        for path in json.loads(line)["paths"]:
            print(json.dumps(_examined(path)), file=replies, flush=True)


if __name__ == "__main__":
    main()
