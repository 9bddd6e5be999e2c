"""Writes scikit-learn's handwritten digits as class folders, without a download.

1,797 scans of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits"; Alpaydin and Kaynak,
1998), each enlarged, placed and colored at random on a random dark background. The raw scans can be
classified by comparing pixels. On these images the features of an untrained network score near chance,
so a trained network's score is due to its training.
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
    """Writes DEST/train/<digit>/*.png and DEST/val/<digit>/*.png; returns the number of images."""
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
        background = random.uniform(0, 80, size=3)
        ink = np.array(colorsys.hsv_to_rgb(random.uniform(), random.uniform(0.3, 1.0), 1.0)) * 255
        side = int(random.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        gray = Image.fromarray((scan * (255 / 16)).astype(np.uint8))
        enlarged = gray.resize((side, side), Image.Resampling.BICUBIC)
        strength = np.asarray(enlarged, dtype=np.float64)[..., None] / 255
        y, x = random.integers(SIDE - side + 1, size=2)
        image = np.broadcast_to(background, (SIDE, SIDE, 3)).copy()
        image[y : y + side, x : x + side] = background * (1 - strength) + ink * strength
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
        print(f"cannot write {dest} ({error.strerror}): pass another --dest", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
