"""What the phases of a run found: one result file, a table for documents, lines for the terminal."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.files import results

Result = dict[str, Any]
_SHOWN_KERNELS = 40


def collect(out: Path) -> Result:
    """The results of a folder as one: the machine once, and of each profile what costs most."""
    phases, machine = {}, None
    for name, phase in results(out).items():
        machine = phase.pop("machine", machine)
        if "kernels" in phase:
            phase["kernels"] = phase["kernels"][:_SHOWN_KERNELS]
        phases[name] = phase
    return {"regime": "gpu", "machine": machine, "phases": phases}


def table(result: Result) -> str:
    """The result as Markdown."""
    phases = {k: v for k, v in result["phases"].items() if "failed" not in v}
    versions = result["machine"]["versions"]
    build = phases.get("build", {})
    rows = [
        f"{result['machine']['gpu']}, torch {versions['torch']}, ResNet-50, 224 pixels, bfloat16, "
        f"batch {build.get('batch_size', '?')}:",
        "",
        "| | ms | images/s |",
        "|---|---:|---:|",
    ]

    def row(what: str, milliseconds: float, images: int) -> None:
        rows.append(f"| {what} | {milliseconds:,.1f} | {images / milliseconds * 1e3:,.0f} |")

    if "limits" in phases:
        parts = phases["limits"]["convolutions_ms_of_both_views"]
        row("its convolutions alone, cuDNN", sum(parts.values()), phases["limits"]["images"])
    for name, milliseconds in phases.get("eager-steps", {}).get("step_ms", {}).items():
        row(f"step, {name}", milliseconds, phases["eager-steps"]["batch_size"])
    for name, phase in phases.items():
        if name == "step" or name.startswith("step-"):
            fuse = "" if phase["fuse"] == "off" else f", --fuse {phase['fuse']}"
            row(
                f"step, compiled{fuse}",
                phase["batch_size"] / phase["images_per_second"] * 1e3,
                phase["batch_size"],
            )
    for name, phase in phases.items():
        if not name.startswith("loaders"):
            continue
        for label, loader in phase["loaders"].items():
            if isinstance(loader, dict) and "train_images_per_second" in loader:
                rate = loader["train_images_per_second"]
                share = f"{loader['share_of_step']:.2f} of the step"
                rows.append(f"| training from JPEG, {label} ({share}) | | {rate:,.0f} |")
    for name, phase in phases.items():
        if name.startswith("profile"):
            kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in phase["kinds_ms"].items())
            rows += ["", f"Of a step's {phase['busy_ms']:.1f} ms of kernels, in ms: {kinds}."]
    if "color" in phases:
        color = phases["color"]
        rows += [
            "",
            f"Color: {color['compiled']:.2f} ms compiled, {color['kernel']:.2f} ms by kernels.",
        ]
    views = {k[5:]: v for k, v in phases.items() if k.startswith("view-")}
    if views:
        rows += ["", "| one view, forward and backward | ms |", "|---|---:|"]
        rows += [f"| {name} | {min(view['ms']):.1f} |" for name, view in views.items()]
    return "\n".join(rows)


def summary(out: Path) -> str:
    """The results of a folder as text."""
    files = results(out)
    lines = []
    for name, file in files.items():
        if "failed" in file:
            lines.append(f"{name:28} FAILED: {file['failed'][:300]}")
    done = {name: file for name, file in files.items() if "failed" not in file}
    if "software" in done:
        file = done["software"]
        lines.append(f"{'software':28} {file['nvidia_smi'].strip()}")
        lines.append(
            f"{'':28} torch {file['torch']}, cuDNN {file['cudnn']}, compile: "
            f"{file['why_compile_fails'] or 'works'}"
        )
        for module, why in file["modules_that_do_not_import"].items():
            lines.append(f"{'':28} {module} does not import: {why}")
    if "limits" in done:
        file = done["limits"]
        peak = ", ".join(f"{key} {value:.3g}" for key, value in file["ceilings"].items())
        lines.append(f"{'limits':28} {peak}")
        parts = file["convolutions_ms_of_both_views"]
        text = ", ".join(f"{key} {value:.1f} ms" for key, value in parts.items())
        lines.append(f"{'convolutions of a step':28} {sum(parts.values()):.1f} ms: {text}")
    if "build" in done:
        file = done["build"]
        lines.append(
            f"{'build':28} compiled {file['compiled']}, batch {file['batch_size']}, "
            f"{file['first_step_seconds']:.0f} s, {len(file['tried'])} failures before"
        )
        lines.append(f"{'exactness':28} {str(file['exactness'])[:500]}")
    if "tests" in done:
        file = done["tests"]
        lines.append(f"{'tests':28} {file['last_line']}")
        lines += [
            f"{'':28} {line[:160]}"
            for line in file["outcomes"]
            if line.startswith(("FAILED", "ERROR"))
        ]
    if "step" in done:
        file = done["step"]
        times = ", ".join(f"{ms:.2f}" for ms in file["step_ms"])
        lines.append(
            f"{'step':28} {file['images_per_second']:,.0f} images/s ({times} ms), host "
            f"{file['host_ms']:.1f} ms, {file['memory_mib'] or 0:,.0f} MiB"
        )
        if file["waits_or_recompiles"]:
            lines.append(f"{'':28} WAITS: {file['waits_or_recompiles'].strip().splitlines()[-1]}")
    if "profile" in done:
        file = done["profile"]
        lines.append(f"{'profile':28} wall {file['wall_ms']:.1f} ms, busy {file['busy_ms']:.1f} ms")
        lines += [f"{'':28} {ms:8.2f} ms {kind}" for kind, ms in file["kinds_ms"].items()]
    for label, row in done.get("loaders", {}).get("loaders", {}).items():
        if not isinstance(row, dict) or "failed" in row:
            lines.append(f"{'loader ' + label:28} {row}")
            continue
        lines.append(
            f"{'loader ' + label:28} alone {row['loader_images_per_second']:,.0f}, training "
            f"{row['train_images_per_second']:,.0f} images/s = {row['share_of_step']:.3f} of the "
            f"step, data wait {row['data_wait']:.1%}, {row['cores']:.1f} cores"
        )
    if "color" in done:
        file = {key: value for key, value in done["color"].items() if key not in ("machine",)}
        lines.append(f"{'color':28} {str(file)[:400]}")
    for name, ms in done.get("eager-steps", {}).get("step_ms", {}).items():
        lines.append(f"{'step ' + name:28} {ms:.1f} ms")
    for name, file in done.items():
        if name.startswith("view-"):
            times = ", ".join(f"{ms:.2f}" for ms in file["ms"])
            lines.append(
                f"{name:28} {times} ms, first {file['first_seconds']:.0f} s, gradients "
                f"within {file['differences']['largest']:.1%}"
            )
    if "imagenette" in done:
        file = done["imagenette"]
        scores = ", ".join(
            f"{value:.2f}"
            for line in file["scores"]
            for key, value in line.items()
            if key.startswith("knn")
        )
        lines.append(
            f"{'imagenette':28} {file['seconds']:.0f} s, code {file['code']}, "
            f"{file['images_per_second'] or 0:,.0f} images/s, kNN {scores}"
        )
    took = ", ".join(f"{name} {file.get('phase_seconds', 0):.0f}" for name, file in files.items())
    return "\n".join([*lines, f"seconds: {took}"])
