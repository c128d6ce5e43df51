"""Every architecture with every optimiser on every data set: a small study each, from YAML.

    python benchmarks/smoke_studies.py                       # about a quarter of an hour on one
    python benchmarks/smoke_studies.py --models lenet5 resnet20 --data mnist digits

A study trains for an epoch of a few rows with each optimiser, and with averaged Adam (Gadam), then
measures. What must come back: finite weights, errors and a measure, for each. A pair of network and
data is left out only where the network itself refuses the inputs; its words are in the table.
Needs PLANIMETER_DATA. Writes benchmarks/results/training/smoke_studies.md.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import yaml

from planimeter.data.datasets import DATASETS
from planimeter.errors import InputError
from planimeter.models.registry import MODELS, build_model
from planimeter.study import trials_of
from planimeter.study.spec import parse_study
from planimeter.study.trial import run_trial
from planimeter.training import OPTIMISERS

RESULTS = Path(__file__).parent / "results" / "training"
ROWS = 4
OWN = {"sgd": {"lr": 0.01}, "gradient_descent": {"lr": 0.01}, "sam": {"lr": 0.01},
       "entropy_sgd": {"inner_steps": 2}}  # fmt: skip


def study_text(model: str, data: str) -> str:
    """The YAML of the study of one pair: all optimisers."""
    return yaml.safe_dump(
        {
            "title": f"{model} on {data}",
            "data": {"name": data, "train": ROWS, "test": ROWS, "classes": "all"},
            "model": {"name": model},
            "training": {"batch_size": 2, "max_epochs": 1, "stop": "epochs"},
            "grid": {
                "optimisers": [{"name": name, **OWN.get(name, {})} for name in OPTIMISERS],
                "attack": [0],
                "repetitions": 1,
            },
            "measures": {"fisher_rao_norm": {}},
            "prior": None,
            "figures": ["fisher_rao_norm"],
        }
    )


def averaged(text: str) -> str:
    """The same with averaged Adam alone."""
    content = yaml.safe_load(text)
    content["training"]["averaging"] = {"start": 1}
    content["grid"]["optimisers"] = [{"name": "adam"}]
    return yaml.safe_dump(content)


def smoke(model: str, data: str) -> str:
    """Run the studies of a pair; what the table says of it."""
    text = study_text(model, data)
    done = 0
    for part in (text, averaged(text)):
        for trial in trials_of(parse_study(part, f"{model} on {data}")):
            try:
                result = run_trial(trial)
            except InputError as error:
                if done:
                    raise
                if "does not exist" in str(error):
                    return "no files"
                return "images only" if "takes images (" in str(error) else f"refused: {error}"
            label = f"{model} on {data}, {trial.label}"
            if result["fit"]["diverged"]:
                raise RuntimeError(f"{label} diverged")
            value = result["measures"]["fisher_rao_norm"]["value"]
            for name in ("train_loss", "test_error", "theta_norm"):
                if not math.isfinite(result[name]):
                    raise RuntimeError(f"{label}: {name} is {result[name]}")
            if not math.isfinite(value) or value < 0:
                raise RuntimeError(f"{label}: the measure is {value}")
            done += 1
    return f"{done}"


def parameters(model: str) -> str:
    """Parameters on the input that the documentation names."""
    shape = (1, 28, 28) if model in SMALL else (3, 32, 32)
    return f"{sum(p.numel() for p in build_model(model, shape, 10).parameters()):,}"


SMALL = frozenset(
    {"logistic_regression", "fully_connected", "mlp", "rangamani_mlp", "lenet5", "convnet"}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data", nargs="*", choices=DATASETS, default=list(DATASETS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[tuple[str, str], str] = {}
    notes: list[str] = []
    started = time.perf_counter()
    for data in chosen.data:
        for model in chosen.models:
            began = time.perf_counter()
            try:
                cells[model, data] = smoke(model, data)
            except Exception as error:  # whatever fails is in the table, and in the exit code
                cells[model, data] = f"FAILED: {type(error).__name__}: {error}"
            spent = time.perf_counter() - began
            print(f"{data:24} {model:24} {spent:6.1f} s  {cells[model, data]}", flush=True)
    lines = [
        "# A small study of every architecture with every optimiser on every data set",
        "",
        f"Written by `benchmarks/smoke_studies.py`, {(time.perf_counter() - started) / 60:.0f} "
        f"minutes, one thread. Trials that trained and were measured: {len(OPTIMISERS)} optimisers "
        f"({', '.join(OPTIMISERS)}) and averaged Adam. `images only`: the network refuses tables "
        "of numbers, in words; `no files`: the data set was not there.",
        "",
        f"| architecture | parameters | {' | '.join(chosen.data)} |",
        "|---" * (len(chosen.data) + 2) + "|",
    ]
    for model in chosen.models:
        row = []
        for data in chosen.data:
            cell = cells[model, data]
            if cell.startswith(("refused", "FAILED")):
                if cell not in notes:
                    notes.append(cell)
                cell = f"[{chr(ord('a') + notes.index(cell))}]"
            row.append(cell)
        lines.append(f"| `{model}` | {parameters(model)} | {' | '.join(row)} |")
    lines += ["", *(f"[{chr(ord('a') + place)}] {note}  " for place, note in enumerate(notes)), ""]
    text = "\n".join(lines)
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if chosen.models == list(MODELS) and chosen.data == list(DATASETS):
        (RESULTS / "smoke_studies.md").write_text(text, encoding="utf-8")
    if any(cell.startswith("FAILED") for cell in cells.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
