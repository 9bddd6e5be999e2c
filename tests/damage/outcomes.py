"""What becomes of a folder of odd inputs: each goes through pretrain, knn and pack; prints a table.

    PYTHONPATH=tests python -m damage.outcomes CASES

CASES holds data sets (folders), a folder `odd` of single images, each of which is laid among good ones,
and a folder `ckpt` of weights for knn. A line that is not an answer (a traceback, a hang, another exit
code) is marked with !!, and the exit code is then 1.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from damage.warm import Warm
from fastsimsiam.doctor.synthetic import textured_image

OPTIONS = (
    "--epochs 1 --batch-size 4 --max-steps 2 --image-size 32 --device cpu --precision fp32 "
    "--compile off --workers 2 --arch tiny_resnet --method.projector-layers 2 "
    "--method.projector-dim 16 --method.predictor-dim 8 --knn.every-epochs 1"
).split()
ERROR = "fastsimsiam: error: "


class Outcomes:
    """Runs commands and keeps whether all of them answered."""

    def __init__(self, place: Path) -> None:
        self._warm = Warm({"XDG_CACHE_HOME": str(place / "cache")})
        self._place = place
        self._count = 0
        self.faults = 0

    def of(self, argv: list[object], case: Path) -> str:
        """`read`, or the line of the error; and what it warned of."""
        self._count += 1
        log = self._place / f"{self._count}.log"
        try:
            code = self._warm.run(argv, log, seconds=90)
        except AssertionError as hang:
            self.faults += 1
            return f"!! {hang}"
        text = log.read_text(errors="replace")
        lines = [line.removeprefix(ERROR) for line in text.splitlines() if line.startswith(ERROR)]
        if "Traceback" in text or code not in (0, 2) or len(lines) != (code == 2):
            self.faults += 1
            return f"!! {code} {text.splitlines()[-1:]}"
        notes = [line for line in text.splitlines() if line.startswith("WARNING")]
        answer = "; ".join([*(lines or ["read"]), *notes])
        return answer.replace(f"{case}/", "").replace(str(case), "DATA").replace("|", "/")

    def data(self, case: Path, name: str) -> str:
        """The row of a data set."""
        out = self._place / f"run-{self._count}"
        cells = [self.of(["pretrain", "imagenette", "--data", case, "--out", out, *OPTIONS], case)]
        knn = ["knn", self._place / "good-run", "--data", case, "--device", "cpu", "--json"]
        cells.append(self.of([*knn, out.with_suffix(".json")], case))
        split = case / "train" if (case / "train").is_dir() else case
        cells.append(self.of(["pack", split, out.with_suffix(".beton")], case))
        return f"| {name} | " + " | ".join(cells) + " |"

    def weights(self, file: Path, data: Path) -> str:
        """The row of a file of weights."""
        knn = ["knn", file, "--data", data, "--image-size", 32, "--device", "cpu"]
        return f"| {file.name} | {self.of(knn, file.parent)} |"


def good_images(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                textured_image(rng, 40, 48).save(root / split / name / f"{number}.jpg")
    return root


def main(cases: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        good = good_images(place / "good")
        outcomes = Outcomes(place)
        start = ["pretrain", "imagenette", "--data", good, "--out", place / "good-run", *OPTIONS]
        assert outcomes.of(start, good).startswith("read")
        print("| data set | pretrain | knn | pack |\n|---|---|---|---|")
        for case in sorted(path for path in cases.iterdir() if path.name not in ("odd", "ckpt")):
            print(outcomes.data(case, case.name), flush=True)
        for image in sorted((cases / "odd").iterdir()):
            case = place / "odd" / image.name / "data"
            shutil.copytree(good, case)
            for split in ("train", "val"):
                shutil.copy(image, case / split / "ant" / image.name)
            print(outcomes.data(case, f"odd/{image.name}"), flush=True)
        print("\n| weights | knn |\n|---|---|")
        for file in sorted((cases / "ckpt").iterdir()):
            print(outcomes.weights(file, good), flush=True)
    return int(outcomes.faults > 0)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
