"""Writes the handwritten digits that ship with scikit-learn as class folders: no download.

1,797 scans of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"; Alpaydin and Kaynak,
1998), each enlarged and pasted, in a colour of its own and at a place of its own, onto a piece of one
of scikit-learn's two photographs. Plain digits tell an untrained network's features apart
almost as well as a trained one's; colour, place and clutter make the task an honest one.
"""

import argparse
import shutil
import sys
from pathlib import Path

SIDE = 40
DIGIT_SIDE = (20, 32)
TRAIN_SHARE = 0.8


def write_digits(dest: Path, seed: int = 0) -> int:
    """Writes DEST/train/<digit>/*.png and DEST/val/<digit>/*.png; returns how many."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    photographs = load_sample_images().images
    random = np.random.default_rng(seed)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    split = np.where(
        random.permutation(len(digits.target)) < TRAIN_SHARE * len(digits.target), "train", "val"
    )
    for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        photograph = photographs[random.integers(len(photographs))]
        height, width = photograph.shape[:2]
        top, left = random.integers(height - SIDE), random.integers(width - SIDE)
        canvas = photograph[top : top + SIDE, left : left + SIDE].astype(np.float64)
        side = int(random.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1))
        ink = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        mask = np.asarray(ink, dtype=np.float64)[..., None] / 255
        y, x = random.integers(SIDE - side + 1, size=2)
        under = canvas[y : y + side, x : x + side]
        # A colour far from what lies under it, or nobody could read the digit.
        colour = (under.mean(axis=(0, 1)) + random.uniform(90, 165, size=3)) % 256
        canvas[y : y + side, x : x + side] = under * (1 - mask) + colour * mask
        folder = partial / split[number] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas.round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    partial.rename(dest)
    return len(digits.target)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--dest", type=Path, default=Path("data/digits"), help="default: %(default)s"
    )
    dest: Path = parser.parse_args().dest
    if dest.exists():
        print(f"{dest} is complete")
        return 0
    try:
        print(f"{dest}: {write_digits(dest)} images")
    except ImportError:
        print("digits need scikit-learn: pip install 'fastsimsiam[demo]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {dest} ({error.strerror}): give another --dest", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
