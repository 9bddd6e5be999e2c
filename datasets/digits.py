"""Writes the handwritten digits that ship with scikit-learn as class folders: no download.

1,797 scans of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"; Alpaydin and Kaynak,
1998), each enlarged and moved to a place of its own, in a color of its own, on a dark ground of its
own. As they are, digits are told apart by their pixels alone; so made, an untrained network's
features are near chance, and what a trained one knows it has learned.
"""

import argparse
import colorsys
import shutil
import sys
from pathlib import Path

SIDE = 32
DIGIT_SIDES = (20, 28)
TRAIN_SHARE = 0.8


def write_digits(dest: Path, seed: int = 0) -> int:
    """Writes DEST/train/<digit>/*.png and DEST/val/<digit>/*.png; returns how many."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target)
    random = np.random.default_rng(seed)
    split = np.where(random.permutation(count) < TRAIN_SHARE * count, "train", "val")
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for number, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        ground = random.uniform(0, 80, size=3)
        ink = np.array(colorsys.hsv_to_rgb(random.uniform(), random.uniform(0.3, 1.0), 1.0)) * 255
        side = int(random.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        gray = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
        enlarged = gray.resize((side, side), Image.Resampling.BICUBIC)
        strength = np.asarray(enlarged, dtype=np.float64)[..., None] / 255
        y, x = random.integers(SIDE - side + 1, size=2)
        image = np.broadcast_to(ground, (SIDE, SIDE, 3)).copy()
        image[y : y + side, x : x + side] = ground * (1 - strength) + ink * strength
        folder = partial / str(split[number]) / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    partial.rename(dest)
    return count


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        print("digits.py needs scikit-learn: pip install 'fastsimsiam[demo]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot write {dest} ({error.strerror}): give another --dest", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
