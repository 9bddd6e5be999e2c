"""`fastsimsiam pack SRC DST`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.config.location import spelled
from fastsimsiam.config.run import GRAY16_MAX, OnBadImage
from fastsimsiam.errors import UserError


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Arguments of `pack`."""

    source: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="SRC")] = None
    """A data set of any form, Parquet files too."""
    target: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DST.beton")] = None
    """File to write, NAME.beton; a folder with train.beton and val.beton is a data set."""
    split: Literal["train", "val"] | None = None
    """Split of a SRC that has both; None: the one that there is."""
    max_side: int | None = None
    """Longest side of an image in pixels; larger images are scaled down."""
    short_side: int | None = None
    """Shortest side of an image in pixels; larger images are scaled down."""
    quality: int = 90
    """JPEG quality, 1 to 100, of images that have to be encoded again."""
    workers: int | None = None
    """Threads; None: one per CPU core of this process."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: it is left out and listed in the manifest.
    error-strict, skip-strict: a JPEG is broken, too, if the decoder warns of the image's data."""
    gray16_max: int = GRAY16_MAX
    """Largest gray level of 16-bit grayscale images, which is shown as white: 4095 for 12-bit data."""
    verify: Path | None = None
    """Packed file to decode completely and to check against its manifest, if it has one, instead of
    packing."""


_NO_MANIFEST = "all can be decoded; without a manifest, checksums and names are not compared"


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Packs images into one file, FFCV's .beton, and decodes every image to check it."
    arguments = parse(_Pack, argv, "fastsimsiam pack", about=about)
    from fastsimsiam.loaders.dark_gray import dark_gray_warning
    from fastsimsiam.loaders.jpeg_warning import warned_line
    from fastsimsiam.storage.labels import NO_CLASSES
    from fastsimsiam.storage.manifest import manifest_path
    from fastsimsiam.storage.open import has_split, open_source
    from fastsimsiam.storage.passed_over import notes
    from fastsimsiam.system.progress import ImageProgress
    from fastsimsiam.system.text import printable
    from fastsimsiam.tools.pack import PackOptions, pack, require_target
    from fastsimsiam.tools.verify import verify

    if arguments.verify:
        with ImageProgress("verifying") as progress:
            verified = verify(
                arguments.verify,
                workers=arguments.workers,
                on_bad_image=arguments.on_bad_image,
                report=progress,
            )
        told = "complete and as packed" if verified.manifest else _NO_MANIFEST
        print(f"{printable(arguments.verify)}: {len(verified.beton)} images, {told}")
        packed = verified.manifest.warned if verified.manifest else {}
        for warned, when in ((packed, ", when they were packed"), (verified.warned_images, "")):
            if warned:
                print(f"{warned_line(warned)}{when}")
                for image, text in warned.items():
                    print(printable(f"  {image}: {text}"))
        return 0
    if arguments.source is None or arguments.target is None:
        raise UserError(
            "pack needs SRC and DST.beton, or --verify FILE; see fastsimsiam pack --help"
        )
    require_target(arguments.target)
    split: str | None = arguments.split
    if split is None:
        found = [name for name in ("train", "val") if has_split(arguments.source, name)]
        if len(found) > 1:
            raise UserError(
                f"{spelled(arguments.source)} has the splits train and val: pack each with --split, to "
                "a file of its own"
            )
        split = found[0] if found else None
    options = PackOptions(
        max_side=arguments.max_side,
        short_side=arguments.short_side,
        quality=arguments.quality,
        gray16_max=arguments.gray16_max,
    )
    with ImageProgress("opening the data", unit=None) as progress:
        storage = open_source(arguments.source, split, report=progress)
    for line in notes(storage):
        print(line, file=sys.stderr)
    if dark := dark_gray_warning(storage, options.gray16_max):
        print(f"WARNING: {dark}", file=sys.stderr)
    with ImageProgress("packing") as progress:
        manifest = pack(
            storage,
            arguments.target,
            options,
            workers=arguments.workers,
            on_bad_image=arguments.on_bad_image,
            report=progress,
        )
    target = printable(arguments.target)
    labeled = tuple(manifest["classes"]) != NO_CLASSES
    classes = f"of {len(manifest['classes'])} classes" if labeled else "without labels"
    print(
        f"{target}: {manifest['images_total']} images {classes}, "
        f"{manifest['bytes'] / 1e6:.1f} MB; {manifest['images_with_their_own_bytes']} images copied as "
        f"they are, {len(manifest['left_out'])} broken images left out"
    )
    if warned := manifest["warned"]:
        print(f"{warned_line(warned)}; {printable(manifest_path(arguments.target))} lists them")
    return 0
