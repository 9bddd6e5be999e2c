"""The DALI pipeline of the loader `dali`. Imports DALI, so it is imported only when it is used.

Shapes: B batch, V views, S crop side.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import backend, fn, pipeline_def, types

from fastsimsiam.config.views import Interpolation
from fastsimsiam.system.malloc import return_large_blocks

Bytes = npt.NDArray[np.uint8]
_FILTERS: dict[Interpolation, Any] = {
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
}


@pipeline_def  # type: ignore[untyped-decorator]
def _decode_once(
    source: Callable[[], list[Any]],
    view_sizes: tuple[int, ...],
    interpolations: tuple[Interpolation, ...],
    decoder: str,
    crop: bool,
    hw_decoder_load: float,
) -> Any:
    """Decodes once; returns a crop (S, S, 3) per view, or the frame (H, W, 3) without `crop`."""
    count = len(view_sizes) if crop else 0
    files, *corners = fn.external_source(
        source=source,
        num_outputs=1 + 2 * count,
        dtype=[types.UINT8] + [types.FLOAT] * (2 * count),
        ndim=1,
        batch=True,
    )
    options = {"hw_decoder_load": hw_decoder_load} if decoder == "mixed" else {}
    frames = fn.decoders.image(
        files,
        device=decoder,
        output_type=types.RGB,
        use_fast_idct=False,
        jpeg_fancy_upsampling=True,
        adjust_orientation=False,  # images that have to be turned come as upright pixels
        **options,
    )
    if not crop:
        return frames
    return tuple(
        fn.resize(
            frames,
            size=[side, side],
            roi_start=corners[2 * view],
            roi_end=corners[2 * view + 1],
            interp_type=_FILTERS[interpolation],
            antialias=True,
        )
        for view, (side, interpolation) in enumerate(zip(view_sizes, interpolations, strict=True))
    )


class DaliPipeline:
    """A built pipeline for one batch size and one set of views."""

    def __init__(
        self,
        batch_size: int,
        view_sizes: tuple[int, ...],
        interpolations: tuple[Interpolation, ...],
        *,
        crop: bool,
        device_id: int | None,
        workers: int,
        prefetch: int,
        hw_decoder_load: float,
    ) -> None:
        """Builds the pipeline.

        Args:
            batch_size: samples per batch.
            view_sizes: side of each view's crop in pixels.
            interpolations: filter of each view.
            crop: output crops rather than whole frames.
            device_id: the GPU that decodes; None: the CPU decodes.
            workers: DALI's threads.
            prefetch: batches that DALI prepares ahead of use.
            hw_decoder_load: share of images for the GPU's JPEG engine.
        """
        if device_id is None:
            return_large_blocks()
        self._crop = crop
        self._feeds: Iterator[tuple[list[Bytes], npt.NDArray[np.int32]]] = iter(())
        self._pipeline = _decode_once(
            self._source,
            view_sizes,
            interpolations,
            "cpu" if device_id is None else "mixed",
            crop,
            hw_decoder_load,
            batch_size=batch_size,
            num_threads=workers,
            device_id=device_id,
            prefetch_queue_depth=prefetch,
            # Outputs stay valid while they are held, as torch's tensors do.
            exec_dynamic=True,
        )
        self._pipeline.build()

    def close(self) -> None:
        """Ends DALI's threads and frees its memory."""
        self._pipeline = None
        # DALI's objects refer to each other. A forked process that collected them later would wait
        # forever for threads that it does not have.
        gc.collect()
        backend.ReleaseUnusedMemory()

    def _source(self) -> list[Any]:
        files, boxes = next(self._feeds)
        corner = boxes.astype(np.float32)
        inputs: list[Any] = [files]
        for view in range(boxes.shape[1] if self._crop else 0):
            start = corner[:, view, :2]
            inputs += [np.ascontiguousarray(start), start + corner[:, view, 2:]]
        return inputs

    def run(
        self, feeds: Iterator[tuple[list[Bytes], npt.NDArray[np.int32]]]
    ) -> Iterator[list[Any]]:
        """Makes a batch of each of `feeds`.

        Args:
            feeds: B encoded images and the boxes (B, V, 4) of every batch.

        Yields:
            A DALI list of B crops (S, S, 3) per view, or one list of B frames (H, W, 3).

        Raises:
            RuntimeError: DALI cannot decode an image; the pipeline cannot be used any more.
        """
        self._feeds = feeds
        while True:
            try:
                outputs = self._pipeline.run()
            except StopIteration:
                self._pipeline.reset()
                return
            yield list(outputs)
