"""Damaged and forged checkpoints, by the hundred: each is read, or refused in one line.

    python tests/damage_checkpoints.py [SEED [NUMBER]]

prints what the mutants came to; anything but a `UserError` ends in its traceback.
"""

import io
import math
import random
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_backbone  # noqa: F401
import torch

from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.registry import build_method
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.runs.archive import DamagedCheckpointError
from fastsimsiam.runs.checkpoint import Checkpoint, load, save
from fastsimsiam.train.resume import require_restorable

Mutate = Callable[[random.Random, bytes], bytes]


def intact(path: Path) -> bytes:
    """A small checkpoint of a run, after a step."""
    config = Config(
        recipe="imagenette",
        arch="micro_resnet",
        method=SimSiamConfig(projector_layers=2, projector_dim=16, predictor_dim=8),
    )
    method = build_method(config)
    cpu = torch.device("cpu")
    optimizer = build_optimizer(method.parameter_groups(), OptimizerConfig(), cpu)
    sum(p.sum() for p in method.parameters()).backward()
    optimizer.set_lr(0.1, 0.1)
    optimizer.step(Progress(step=0, steps_per_epoch=1, total_steps=1))
    save(
        path,
        Checkpoint(
            config=config,
            step=7,
            data="96 images, 0123456789ab",
            method=method.state_dict(),
            optimizer=optimizer.state_dict(),
            rng={"cpu": torch.get_rng_state()},
            seconds=1.5,
        ),
    )
    return path.read_bytes()


def flip(chance: random.Random, data: bytes) -> bytes:
    """Changes some bits."""
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 4, 64))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(chance: random.Random, data: bytes) -> bytes:
    """Cuts the file off, or cuts a piece out of it."""
    first, last = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:first] + (data[last:] if chance.random() < 0.5 else b"")


def overwrite(chance: random.Random, data: bytes) -> bytes:
    """Overwrites a block by zeros, noise, or another part of the file."""
    length = chance.choice((16, 512, 4096))
    first, other = (chance.randrange(len(data)) for _ in range(2))
    noise = bytes(length), chance.randbytes(length), data[other : other + length]
    return data[:first] + chance.choice(noise) + data[first + length :]


def directory(chance: random.Random, data: bytes) -> bytes:
    """Gives an entry of the archive's table another number: a size, an offset, a method."""
    damaged = bytearray(data)
    start = data.index(b"PK\x01\x02")
    entries = [i for i in range(start, len(data) - 46) if data[i : i + 4] == b"PK\x01\x02"]
    field = chance.choice((8, 10, 16, 20, 24, 28, 30, 42))
    value = chance.choice((0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
    struct.pack_into("<I", damaged, chance.choice(entries) + field, value)
    return bytes(damaged)


def forged(chance: random.Random, data: bytes) -> bytes:
    """Writes the archive again with right checksums, after changing the pickle in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    mutate = chance.choice((flip, cut, overwrite))
    records[pickled] = mutate(chance, records[pickled])
    if chance.random() < 0.2:
        del records[chance.choice(sorted(records.keys() - {pickled}))]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    0.5,
    math.nan,
    math.inf,
    "text",
    b"bytes",
    [],
    {},
    (),
    {"a": 1},
    {1: torch.zeros(1)},
    [1, "2", None],
    torch.zeros(0),
    torch.full((3,), math.nan),
    torch.zeros(2, dtype=torch.bool),
    torch.zeros(1).expand(1 << 40),
    torch.zeros(3).to_sparse(),
)


def content(chance: random.Random, data: bytes) -> bytes:
    """Replaces a value anywhere in the content by a strange one, or removes or adds a key."""
    stored = torch.load(io.BytesIO(data), weights_only=True)
    place: Any = stored
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        deeper = isinstance(place[key], (dict, list)) and len(place[key])
        if not deeper or chance.random() < 0.3:
            break
        place = place[key]
    action = chance.random()
    if action < 0.7:
        place[key] = chance.choice(STRANGE)
    elif action < 0.9:
        del place[key]
    elif isinstance(place, dict):
        place[chance.choice(("x", 3, "backbone.y"))] = chance.choice(STRANGE)
    out = io.BytesIO()
    torch.save(stored, out)
    return out.getvalue()


MUTATIONS: tuple[Mutate, ...] = (flip, cut, overwrite, directory, forged, content)


def outcome(path: Path) -> str:
    """What a run that resumes and an evaluation make of a file; they agree that it is damaged."""
    try:
        checkpoint = load(path)
        require_restorable(path, checkpoint)
        load_pretrained(path)
    except DamagedCheckpointError as error:
        result, text = "damaged", str(error)
    except UserError as error:
        result, text = "refused", str(error)
    else:
        return "read"
    assert str(path) in text, text
    assert "0x" not in text, text
    return result


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints have the same weights."""
    return one.method.keys() == other.method.keys() and all(
        torch.equal(value, other.method[name]) for name, value in one.method.items()
    )


def damage(folder: Path, *, seed: int, number: int) -> Counter[tuple[str, str]]:
    """Reads mutants of a checkpoint.

    Args:
        folder: where they are written.
        seed: chooses the mutants.
        number: of mutants.

    Returns:
        (mutation, outcome) -> number.
    """
    path = folder / "step-00000007.pt"
    data = intact(path)
    whole = load(path)
    assert outcome(path) == "read"
    counts: Counter[tuple[str, str]] = Counter()
    chance = random.Random(seed)
    for index in range(number):
        mutate = MUTATIONS[index % len(MUTATIONS)]
        path.write_bytes(mutate(chance, data))
        result = outcome(path)
        if result == "read" and mutate in (flip, cut, overwrite, directory):
            assert same(load(path), whole), "damage passed unnoticed"
        counts[mutate.__name__, result] += 1
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        seed, number = (int(text) for text in (*sys.argv[1:], "0", "1000")[:2])
        if len(sys.argv) == 2:
            seed, number = int(sys.argv[1]), 1000
        for (name, result), count in sorted(
            damage(Path(temporary), seed=seed, number=number).items()
        ):
            print(f"{name:12} {result:8} {count:5}")
