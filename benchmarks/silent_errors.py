"""Stock layers, functions and losses of torch against central differences of the gradient.

    python benchmarks/silent_errors.py [--only WORD] [--markdown FILE]

Each stands in a tiny float64 network whose dense Hessian comes from a `LossLandscape`, and again
from differences of plain autograd gradients of the module itself. What is wrong without a word is
a silent error: there must be none. The networks are in `silent_errors_entries.py`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
from silent_errors_entries import Entry, entries
from torch import Tensor

from planimeter import InputError, LossLandscape
from planimeter.errors import MeasurementWarning

STEPS = (1e-6, 1e-7)
TOLERANCE = 1e-4
"""Relative error of the matrix in the Frobenius norm that is called right."""
RIGHT, SAID, REFUSED, SILENT = "right", "right, with a warning", "refused in words", "SILENT ERROR"
WARNED = "another, with a warning"


def hessian_by_differences(entry: Entry, step: float) -> Tensor:
    """Column by column, from gradients of the loss of the module itself."""
    parameters = [p for p in entry.model.parameters() if p.requires_grad]
    theta = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(at: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(at, parameters)
        inputs = entry.inputs if isinstance(entry.inputs, tuple) else (entry.inputs,)
        value = entry.loss(entry.model(*inputs), entry.targets)
        slopes = torch.autograd.grad(value, parameters, materialize_grads=True, allow_unused=True)
        dense = [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
        return torch.cat([slope.reshape(-1) for slope in dense])

    rows = [
        (gradient(theta + step * e) - gradient(theta - step * e)) / (2 * step)
        for e in torch.eye(len(theta), dtype=torch.float64)
    ]
    torch.nn.utils.vector_to_parameters(theta, parameters)
    return torch.stack(rows)


def hessian_of_values(entry: Entry, step: float = 2e-4) -> Tensor:
    """The same from values of the loss alone, which have the last word: not every gradient of torch
    is the loss's, as that of an embedding's padding."""
    parameters = [p for p in entry.model.parameters() if p.requires_grad]
    theta = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    def value(at: Tensor) -> Tensor:
        torch.nn.utils.vector_to_parameters(at, parameters)
        inputs = entry.inputs if isinstance(entry.inputs, tuple) else (entry.inputs,)
        return entry.loss(entry.model(*inputs), entry.targets)

    steps = list(step * torch.eye(len(theta), dtype=torch.float64))
    result = torch.empty(len(theta), len(theta), dtype=torch.float64)
    for i, e in enumerate(steps):
        for j, d in enumerate(steps[: i + 1]):
            ends = value(theta + e + d) + value(theta - e - d)
            ends = ends - value(theta + e - d) - value(theta - e + d)
            result[i, j] = result[j, i] = ends / (4 * step**2)
    torch.nn.utils.vector_to_parameters(theta, parameters)
    return result


def examine(entry: Entry) -> tuple[str, str, float]:
    """What came of it, the words that were said, and the relative error."""
    entry.model.eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            landscape = LossLandscape(
                entry.model, entry.loss, (entry.inputs, entry.targets), batch_size=10**6
            )
            found = landscape.hessian().dense()
        except InputError as error:
            return REFUSED, str(error), float("nan")
    words = [str(w.message) for w in caught if issubclass(w.category, MeasurementWarning)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = [hessian_by_differences(entry, step) for step in STEPS]
    if min(float((found - e).norm() / e.norm()) for e in exact) > TOLERANCE:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact.append(hessian_of_values(entry))
    # A kink inside a step is in one of them: the nearest one has none.
    size = max(min(float(e.norm()) for e in exact), 1e-6)
    error = min(float((found - e).norm()) for e in exact) / size
    if error <= TOLERANCE:
        return (SAID if words else RIGHT), " ".join(words), error
    return (WARNED if words else SILENT), " ".join(words), error


def main() -> int:
    """Print a line each, and a summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    asked = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    table = ["| kind | name | Hessian | relative error | what is said |", "|---|---|---|---|---|"]
    for entry in entries():
        if asked.only not in entry.name:
            continue
        verdict, words, error = examine(entry)
        counts[entry.kind, verdict] += 1
        shown = f"{error:.0e}" if error == error else "–"
        print(f"{entry.kind:9} {entry.name:44} {verdict:24} {shown:7} {words[:110]}", flush=True)
        escaped = words.replace("|", "\\|")
        table.append(f"| {entry.kind} | `{entry.name}` | {verdict} | {shown} | {escaped} |")
    verdicts = (RIGHT, SAID, WARNED, REFUSED, SILENT)
    summary = [f"| torch {torch.__version__} | " + " | ".join(verdicts) + " |", "|---" * 6 + "|"]
    for kind in dict.fromkeys(kind for kind, _ in counts):
        cells = " | ".join(str(counts[kind, verdict]) for verdict in verdicts)
        plural = "losses" if kind == "loss" else f"{kind}s"
        summary.append(f"| {plural} | {cells} |")
    print("\n".join(["", *summary]))
    if asked.markdown:
        head = "# Second derivatives of torch's layers, functions and losses\n"
        asked.markdown.write_text("\n".join([head, *summary, "", *table]) + "\n")
    return int(any(verdict == SILENT for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main())
