"""The pixels of a run's pictures: cut into patches by processes of their own, before the trainer asks for them.

Shape suffixes: L patches, H channels (3), P pixels of a patch, C values per patch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import torch

from megatron_apo.data.costs import image_key
from megatron_apo.data.examiners import START_SECONDS
from megatron_apo.data.image_process import KEEP_MEMORY, ImageProcess, ImageProcessError, ProcessEnded
from megatron_apo.data.images import load_image
from megatron_apo.data.patches import CHANNELS, PatchFormat, cut_patches, normalise
from megatron_apo.data.shared_bytes import SharedBytes
from megatron_apo.records import PromptImage, ReplicaWork

SECONDS = 300.0  # of one picture; all were decoded once, none takes long
_AHEAD_BYTES = 256 * 1024 * 1024  # of patches not asked for yet
_KEPT_BYTES = 256 * 1024 * 1024  # of those that were, the latest
_WAIT_SECONDS = 1.0  # between looks at what has become of the processes

_Key = tuple[str, tuple[int, int, int], float]
_Cut = torch.Tensor | str  # uint8 [L, H, P], or what is wrong


class PixelSource:
    """Normalised patches by image; the files are read, hashed, decoded and resized by ``workers`` processes (0: none).

    ``ahead(images)`` says what comes next, and calling it with an image gives its pixels: at once when a worker has
    them, after a wait when one is at it, and cut by the caller when none has begun. ``grid_of(height, width)`` is the
    patch grid of a picture of so many pixels, and ``device`` where pixels go and are normalised.
    Close it, or use it in a ``with``; ask it from one thread only.
    """

    def __init__(
        self,
        made_by: PatchFormat,
        grid_of: Callable[[int, int], tuple[int, int, int]],
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._format = made_by
        self._grid_of = grid_of
        self._device = torch.device(device)
        self._changed = threading.Condition()  # guards all below
        self._wanted: deque[PromptImage] = deque()
        self._under_way: set[_Key] = set()
        self._ahead: dict[_Key, _Cut] = {}
        self._ahead_bytes = 0
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()
        self._kept_bytes = 0
        self._closed = False
        self._failure = ""
        self._processes: list[ImageProcess | None] = [None] * workers
        self._shared = [SharedBytes() for _ in range(workers)]
        self._seconds = 0.0
        self._threads = [
            threading.Thread(target=self._work, args=(place,), name=f"pixels-{place}", daemon=True)
            for place in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> PixelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ahead(self, images: Iterable[PromptImage]) -> None:
        """These come next, in this order; what was said before and has not begun is forgotten."""
        if not self._threads:
            return
        wanted = {image_key(image): image for image in images if not image.seconds_per_grid}
        with self._changed:
            for key in [key for key in self._ahead if key not in wanted]:
                cut = self._take(key)
                if isinstance(cut, torch.Tensor):
                    self._keep(key, cut)
            for key in wanted:
                if key in self._kept:
                    self._kept.move_to_end(key)
            self._wanted = deque(image for key, image in wanted.items() if not self._known(key))
            self._changed.notify_all()

    def __call__(self, image: PromptImage) -> torch.Tensor:
        """Normalised patches float32 [L, H, frames, P] of one image, as the processor cuts them; see ``normalise``.

        ValueError when the file changed, when its grid is not the recorded one (then the rollout was made with other
        pixel limits), and for a video.
        """
        if image.seconds_per_grid:
            raise ValueError(
                f"{image.path} is a video (seconds_per_grid={image.seconds_per_grid:g}): rows are images; give the "
                "trainer a pixel_values of your own that decodes it"
            )
        return normalise(self._patches(image).to(self._device), self._format)

    def take_seconds(self) -> float:
        """How long callers waited for pictures, or read and cut them themselves, since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        """Ends the processes."""
        with self._changed:
            self._closed = True
            for process in self._processes:
                if process is not None:
                    process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for shared in self._shared:
            shared.close()
        self._shared = []

    def _patches(self, image: PromptImage) -> torch.Tensor:
        key = image_key(image)
        with self._changed:
            if self._failure and not self._closed:
                raise ImageProcessError(self._failure)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            started = time.perf_counter()
            while key in self._under_way:
                self._changed.wait(_WAIT_SECONDS)
            cut: _Cut | None = self._take(key) if key in self._ahead else None
            if cut is None:  # no worker is at it, nor shall one be
                self._wanted = deque(other for other in self._wanted if image_key(other) != key)
            self._changed.notify_all()
        if cut is None:
            cut = self._cut_here(image)
        self._seconds += time.perf_counter() - started
        if isinstance(cut, str):
            raise ValueError(cut)
        with self._changed:
            self._keep(key, cut)
        return cut

    def _cut_here(self, image: PromptImage) -> _Cut:
        picture = load_image(image.path, sha256=image.sha256, keep=False)
        wrong = self._wrong_grid(image, picture.height, picture.width)
        sizes = dict(patch_size=self._format.patch_size, merge_size=self._format.merge_size)
        return wrong or cut_patches(picture, image.grid_thw, **sizes)  # type: ignore[arg-type]

    def _wrong_grid(self, image: PromptImage, height: int, width: int) -> str:
        grid = self._grid_of(height, width)
        if grid == tuple(image.grid_thw):
            return ""
        return (
            f"image {image.path}: its patch grid is {grid}, recorded was {tuple(image.grid_thw)}; use the "
            "data.min_pixels, data.max_pixels and model.path that the prompt was made with"
        )

    # What follows, up to _work, is called with the lock held.

    def _known(self, key: _Key) -> bool:
        return key in self._kept or key in self._ahead or key in self._under_way

    def _take(self, key: _Key) -> _Cut:
        cut = self._ahead.pop(key)
        self._ahead_bytes -= _bytes(cut)
        return cut

    def _keep(self, key: _Key, patches: torch.Tensor) -> None:
        self._kept[key] = patches
        self._kept_bytes += _bytes(patches)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _bytes(self._kept.popitem(last=False)[1])

    def _has_work(self) -> bool:
        return bool(self._wanted) and self._ahead_bytes < _AHEAD_BYTES

    def _work(self, place: int) -> None:
        """Thread ``place``: hands its process one picture after the other."""
        try:
            self._process(place)  # before there is work: until it is up, the trainer had better cut its pictures itself
            while self._work_once(place):
                continue
        except (ImageProcessError, OSError) as error:
            with self._changed:
                self._failure = self._failure or f"pictures cannot be cut ahead of need: {error}"
        finally:
            self._end(place)

    def _work_once(self, place: int) -> bool:
        """One picture; False when the source is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_work())
            if self._closed:
                return False
            image = self._wanted.popleft()
            key = image_key(image)
            self._under_way.add(key)
        cut: _Cut = f"image {image.path}: cutting it into patches failed"
        try:
            cut = self._cut_by_process(place, image)
        except (ImageProcessError, OSError) as error:
            cut = f"{cut}: {error}"
            raise
        finally:  # whatever happens, nobody waits for it
            with self._changed:
                self._under_way.discard(key)
                self._ahead[key] = cut
                self._ahead_bytes += _bytes(cut)
                self._changed.notify_all()
        return True

    def _cut_by_process(self, place: int, image: PromptImage) -> _Cut:
        for _ in range(2):  # one may be ended for reasons of the machine's
            try:
                return self._ask(self._process(place), self._shared[place], image)
            except ProcessEnded:
                self._end(place)
                if self._closed:
                    break
        return (
            f"image {image.path}: the process that cut it into patches was ended twice over it, or took {SECONDS:g} s; "
            "where memory is short lower data.pixel_workers (0: the trainer cuts pictures itself)"
        )

    def _ask(self, process: ImageProcess, shared: SharedBytes, image: PromptImage) -> _Cut:
        time_steps, rows, columns = image.grid_thw
        pixels = self._format.patch_size**2
        count = time_steps * rows * columns * CHANNELS * pixels
        shared.grow(count)
        asked = {"path": image.path, "sha256": image.sha256, "grid": list(image.grid_thw), "bytes": count}
        process.send(asked)
        answer = json.loads(process.line(SECONDS))
        if "error" in answer:
            return str(answer["error"])
        wrong = self._wrong_grid(image, answer["height"], answer["width"])
        return wrong or torch.frombuffer(shared.first(count), dtype=torch.uint8).view(-1, CHANNELS, pixels).clone()

    def _process(self, place: int) -> ImageProcess:
        return self._processes[place] or self._start(place, again=True)

    def _start(self, place: int, *, again: bool) -> ImageProcess:
        sizes = (f"--patch-size={self._format.patch_size}", f"--merge-size={self._format.merge_size}")
        shared = self._shared[place].descriptor
        words = ("megatron_apo.data.patch_worker", f"--shared={shared}", *sizes)
        process = ImageProcess(*words, pass_fds=(shared,), environment=KEEP_MEMORY)
        with self._changed:
            self._processes[place] = process
            if self._closed:
                process.kill()
        try:
            process.wait_until_up(START_SECONDS)
        except ImageProcessError:
            self._end(place)
            if not again or self._closed:
                raise
            return self._start(place, again=False)  # somebody may have ended it
        return process

    def _end(self, place: int) -> None:
        with self._changed:
            process, self._processes[place] = self._processes[place], None
        if process is not None:
            process.end()


def images_of(work: ReplicaWork) -> list[PromptImage]:
    """The different images of a replica's work, in the order in which its microbatches need them."""
    samples = (work.samples[index] for update in work.updates for batch in update for index in batch)
    return list({image_key(image): image for sample in samples for image in sample.images}.values())


def _bytes(cut: _Cut) -> int:
    return cut.nbytes if isinstance(cut, torch.Tensor) else 0
