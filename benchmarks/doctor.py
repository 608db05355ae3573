"""How long ``doctor`` takes for 10,000 rows, beside decoding their pictures in a bare loop.

    python benchmarks/doctor.py --model DIRECTORY [--rows 10000] [--directory DIR] [--workers 2]

Each row has a picture and a question of its own: a crop of scikit-learn's two sample photographs, enlarged to 640 x 480
and saved as JPEG, and its number. ``--directory`` keeps them for the next time. Exit status 1 above two minutes for
10,000 rows.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from megatron_apo.data.decoding import decode  # noqa: E402

LIMIT_SECONDS, LIMIT_ROWS = 120.0, 10_000


def make_rows(directory: Path, rows: int) -> Path:
    """``rows.jsonl`` and its pictures, where they are not there yet."""
    path = directory / f"rows_{rows}.jsonl"
    if path.is_file():
        return path
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    dice, lines = random.Random(0), []
    for number in tqdm(range(rows), desc="making rows", unit="row"):
        photograph = photographs[number % 2]
        x, y = dice.randrange(photograph.width - 320), dice.randrange(photograph.height - 240)
        name = f"{number}.jpg"
        photograph.crop((x, y, x + 320, y + 240)).resize((640, 480)).save(directory / name, quality=85)
        row = {"images": [name], "question": f"What is at place {number}?", "answer": str(number % 10)}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def decode_all(path: Path) -> float:
    """Seconds to decode every picture to RGB, one after another."""
    start = time.perf_counter()
    for line in path.read_text().splitlines():
        name = path.parent / json.loads(line)["images"][0]
        decode(name.read_bytes(), name)
    return time.perf_counter() - start


def examine_all(path: Path, model: str, workers: int, output: Path) -> float:
    """Seconds of the command, its start included."""
    words = ["doctor", str(path), "--model", model, "--output", str(output), f"--data.workers={workers}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "megatron_apo", *words], check=False, timeout=3600, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint whose processor counts tokens")
    parser.add_argument("--rows", type=int, default=LIMIT_ROWS)
    parser.add_argument("--directory", type=Path, help="keeps rows and pictures")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        path = make_rows(directory, options.rows)
        bare = decode_all(path)
        ours = examine_all(path, options.model, options.workers, Path(temporary) / "found")
    print(
        f"{options.rows:,} rows: doctor {ours:.1f} s with {options.workers} processes; decoding alone in a "
        f"bare loop of one process, {bare:.1f} s: {ours / bare:.2f}"
    )
    if ours > LIMIT_SECONDS * options.rows / LIMIT_ROWS:
        raise SystemExit(f"above {LIMIT_SECONDS:.0f} s for {LIMIT_ROWS:,} rows")


if __name__ == "__main__":
    main()
