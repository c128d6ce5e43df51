"""What loading costs beside training: an epoch of CIFAR-10 batches, and ResNet-20 on them.

    PLANIMETER_DATA=... python benchmarks/data_loading.py

Prints the time of an epoch of 10,000 images in batches of 128 without the network, and of the same
batches with it (forward, backward and an SGD step), taken alternately on the same batches; then
an epoch of `planimeter.training.fit` against the loop that one writes around torch's DataLoader,
alternately, both without evaluation. Without the files of CIFAR-10, random bytes stand in: they
cost as much.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader, TensorDataset

from planimeter.data import StoredInputs, load, training_batches
from planimeter.errors import InputError
from planimeter.models.resnet import resnet20
from planimeter.training import fit
from planimeter.training.stopping import after_epochs

ROWS, BATCH, STEPS, ROUNDS = 10_000, 128, 8, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images() -> tuple[StoredInputs, torch.Tensor]:
    try:
        data = load("cifar10")
        rows = torch.arange(ROWS)
        return data.inputs.select(rows).normalised(MEAN, STD), data.labels[:ROWS]
    except InputError as error:
        print(f"{error}\nrandom bytes instead")
        values = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8)
        return StoredInputs(values, 255).normalised(MEAN, STD), torch.randint(0, 10, (ROWS,))


def plain_epoch(inputs: StoredInputs, labels: torch.Tensor, seed: int) -> float:
    """Floats in memory, DataLoader with shuffling, SGD with momentum."""
    torch.manual_seed(seed)
    loader = DataLoader(TensorDataset(inputs[:], labels), batch_size=BATCH, shuffle=True)
    net = resnet20().train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    started = time.perf_counter()
    for x, y in loader:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return time.perf_counter() - started


def fitted_epoch(inputs: StoredInputs, labels: torch.Tensor, seed: int) -> float:
    """The same by `fit`, which reads bytes; one batch is what it evaluates afterwards."""
    torch.manual_seed(seed)
    net = resnet20()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    few = (inputs[torch.arange(BATCH)], labels[:BATCH])
    started = time.perf_counter()
    fit(
        net,
        torch.nn.functional.cross_entropy,
        optimiser,
        few,
        batches=training_batches(inputs, labels, batch_size=BATCH),
        batch_size=None,
        stop=after_epochs(1),
        max_epochs=1,
        seed=seed,
    )
    return time.perf_counter() - started


def main() -> None:
    inputs, labels = images()
    net = resnet20().train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    lines = [
        f"{ROWS:,} CIFAR-10 images, batches of {BATCH}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; medians of {ROUNDS} rounds",
        "",
        "| batches | loading (s an epoch) | loading and training (s an epoch) | share of loading |",
        "|---|---|---|---|",
    ]
    for augmentation in ("none", "flip_crop"):
        source = training_batches(inputs, labels, batch_size=BATCH, augmentation=augmentation)
        loading, training = [], []
        for number in range(ROUNDS):
            generator = torch.Generator().manual_seed(number)
            started = time.perf_counter()
            for _ in source(generator):
                pass
            loading.append(time.perf_counter() - started)
            batches = source(generator)
            started = time.perf_counter()
            for _, (x, y) in zip(range(STEPS), batches, strict=False):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(net(x), y).backward()
                optimiser.step()
            training.append((time.perf_counter() - started) / STEPS * -(-ROWS // BATCH))
        share = median(a / b for a, b in zip(loading, training, strict=True))
        lines.append(
            f"| {augmentation} | {median(loading):.2f} | {median(training):.1f} | {share:.1%} |"
        )
    ours, plain = [], []
    for number in range(4):
        for times, epoch in ((plain, plain_epoch), (ours, fitted_epoch))[:: (-1) ** number]:
            times.append(epoch(inputs, labels, number))
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    lines += [
        "",
        "| an epoch of 10,000 images | seconds |",
        "|---|---|",
        f"| plain loop, torch DataLoader | {median(plain):.1f} |",
        f"| planimeter.training.fit | {median(ours):.1f} |",
        f"| plain / planimeter | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
    ]
    text = "\n".join(lines)
    print(text)
    target = Path(__file__).parent / "results" / "data" / "loading.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# Loading beside training\n\n{text}\n")


if __name__ == "__main__":
    main()
