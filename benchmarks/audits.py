"""The audits of three public networks, by the command line, with their times. Prints and writes.

    python benchmarks/audits.py                    # about 25 minutes on 2 cores
    python benchmarks/audits.py --only resnet20

Needs PLANIMETER_DATA with mnist/ and cifar10/, and the checkpoints in checkpoints/ beside that
folder. Writes benchmarks/results/flatness/audit_NAME.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from planimeter.estimate import Estimate
from planimeter.report.audit import percent

RESULTS = Path(__file__).parent / "results" / "flatness"
CIFAR = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
NETWORKS = {
    "convnet": ("planimeter.models.mnist:convnet", "locuslab_mnist.pth", "mnist", 2000, []),
    "lenet5": ("planimeter.models.mnist:lenet5", "csinva_lenet5_mnist.pth", "mnist", 2000, []),
    "resnet20": (
        "planimeter.models.resnet:resnet20", "resnet20-12fca82f.th", "cifar10", 128, CIFAR,
    ),
}  # fmt: skip


def audited(name: str) -> tuple[str, dict[str, Any], float]:
    """The command as a reader would type it, what it found, and the seconds it took."""
    model, checkpoint, data, rows, more = NETWORKS[name]
    folder = Path(os.environ["PLANIMETER_DATA"]).parent / "checkpoints"

    def words(path: Path | str) -> list[str]:
        return [
            "audit",
            model,
            "--checkpoint",
            str(path),
            "--data",
            data,
            "--rows",
            str(rows),
            *more,
        ]

    started = time.perf_counter()
    command = [sys.executable, "-c", "from planimeter.cli import main; main()"]
    done = subprocess.run(
        [*command, *words(folder / checkpoint), "--json"], check=True, stdout=subprocess.PIPE
    )
    spent = time.perf_counter() - started
    return "planimeter " + " ".join(words(checkpoint)), json.loads(done.stdout), spent


def table(found: dict[str, Any]) -> list[str]:
    """A row a measure: its value, and its relative change under each rescaling."""
    kinds = list(found["changes"])
    lines = [
        f"| measure | value | {' | '.join(kinds)} | verdict |",
        "|---" * (len(kinds) + 3) + "|",
    ]
    for name, value in found["values"].items():
        cells = []
        for kind in kinds:
            change = found["changes"][kind].get(name)
            if change is None:
                cells.append("does not apply")
            elif change["verdict"] == "invariant":
                cells.append("0")
            else:
                relative = float("nan") if change["relative"] is None else float(change["relative"])
                cells.append(percent(relative, 0.0 if change["error"] is None else change["error"]))
        known = {k: v for k, v in value.items() if v is not None}
        lines.append(f"| `{name}` | {Estimate(**known)} | {' | '.join(cells)} | "
                     f"{found['verdicts'][name]} |")  # fmt: skip
    lines += [f"| `{name}` | does not apply: {why} |" + " |" * (len(kinds) + 1)
              for name, why in found["refused"].items()]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    for name in parser.parse_args().only:
        command, found, spent = audited(name)
        text = "\n".join(
            [
                f"# Audit of {name}",
                "",
                "Written by `benchmarks/audits.py`; relative changes, 0 where below "
                f"{found['tolerance']:g}.",
                "",
                f"`{command}`: {spent / 60:.1f} minutes; loss {found['loss']:.4g}, accuracy "
                f"{100 * found['accuracy']:.2f} %.",
                "",
                *table(found),
                "",
            ]
        )
        print(text, flush=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"audit_{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
