"""Widths by the latency table against one ratio for all, at equal milliseconds: accuracy after equal fine-tuning.

Each network is trained on emoji10, then pruned to half of the milliseconds of its blocks (the table's fixed cost of an
inference cannot be pruned): by the same ratio of every group, rounded as channels are, the greatest that keeps this
budget; and by `vigcli.compress.allocate`, to no more than the milliseconds that the ratio came to. The same importance
chooses the channels of both. Each is fine-tuned for as many epochs by the same recipe, with soft distillation from the
unpruned network. Another seed draws other weights and other batches. Nothing was tuned on the validation pictures.

What is done stays in the folder: the same command goes on where it was ended.

    python benchmarks/prune.py --seeds 3
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distillation import interval, said

from vigcli.archs.checkpoint import Checkpoint, load_checkpoint, read_meta, save_checkpoint
from vigcli.compress.allocate import Cost, allocate, latency_cost
from vigcli.compress.groups import Pruner
from vigcli.compress.prune import fine_tuning, scored
from vigcli.compress.widths import Kept
from vigcli.config.recipe import Data, Recipe, load_recipe
from vigcli.files import write_json
from vigcli.latency.table import load_table
from vigcli.measure.profile import profile
from vigcli.paths import find_file
from vigcli.train.data import eval_batches, open_data
from vigcli.train.evaluate import evaluate, normalized
from vigcli.train.loop import CHECKPOINT_FILE, train
from vigcli.train.state import STATE_FILE

TABLE = "iphone13-mini"
METHODS = ("uniform", "latency")


class Subject(NamedTuple):
    recipe: str
    settings: tuple[str, ...] = ()


SUBJECTS = {
    "mobilevigv2_ti": Subject("emoji10", ("resolution=96",)),
    "mobilevitv2_050": Subject("emoji10_mobilevit"),  # at 64 px
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of fine-tuning; the networks have their recipe's")
    parser.add_argument("--share", type=float, default=0.5, help="of the blocks' milliseconds that may stay")
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--only", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--folder", type=Path, default=Path("runs/prune"))
    options = parser.parse_args()
    rows = []
    for name in options.only:
        found = [measured(name, seed, options) for seed in range(options.seeds)]
        rows.append(row(name, found))
        write_json(options.folder / "prune.json", rows)
    show(rows, options)


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network of one seed: what it, and both of its pruned forms, get right."""
    subject = SUBJECTS[name]
    recipe = load_recipe(find_file("recipe", subject.recipe), subject.settings).changed({"seed": seed})
    base = options.folder / f"{name}-{seed}"
    trained(recipe, base)
    found: dict[str, Any] = {"whole": answers(recipe, base / CHECKPOINT_FILE, base / "right.json")}
    for method in METHODS:
        place = options.folder / f"{name}-{seed}-{method}-{options.share:g}-{options.criterion}-{options.epochs}"
        start = place / "pruned.safetensors"
        if not start.is_file():
            save_checkpoint(start, *pruned(base / CHECKPOINT_FILE, method, options))
        schedule = recipe.schedule.shortened(options.epochs / recipe.epochs).model_dump(mode="json")
        shorter = recipe.changed({"epochs": options.epochs, "schedule": schedule})
        trained(fine_tuning(shorter, load_checkpoint(start), start, base / CHECKPOINT_FILE), place / "fine")
        counted = profile(read_meta(start).arch)
        found[method] = {
            "ms": latency_cost(load_table(TABLE)).of(counted),
            "macs": counted.macs,
            "params": counted.params.deployed,
            "before": answers(recipe, start, place / "before.json"),
            "after": answers(recipe, place / "fine" / CHECKPOINT_FILE, place / "right.json"),
        }
    found["whole_ms"] = latency_cost(load_table(TABLE)).of(profile(read_meta(base / CHECKPOINT_FILE).arch))
    return found


def pruned(checkpoint: Path, method: str, options: argparse.Namespace) -> Checkpoint:
    """The pruned network, before it learns again. What uniform widths cost, others may cost at the most."""
    found = load_checkpoint(checkpoint)
    pruner = Pruner(found.model, found.meta.arch)
    cost = latency_cost(load_table(TABLE))
    importance = scored(pruner, found, options.criterion, Data(source="emoji10"))
    limit = cost.fixed + options.share * (cost.of(profile(found.meta.arch)) - cost.fixed)
    kept = uniform(pruner, cost, limit)
    if method == "latency":
        kept = allocate(pruner, importance, cost, cost.of(profile(pruner.config(kept)))).kept
    network, config = pruner.pruned(kept, importance)
    return Checkpoint(network, found.meta.model_copy(update={"arch": config}))


def uniform(pruner: Pruner, cost: Cost, limit: float) -> Kept:
    """Every group at the same share of its units, rounded to its steps: the greatest share that keeps the limit."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = cost.of(profile(pruner.config(at_share(pruner, middle)))) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return at_share(pruner, low)


def at_share(pruner: Pruner, share: float) -> Kept:
    return {x.name: min(x.widths, key=lambda width: abs(width - share * x.num_units)) for x in pruner.groups}


def trained(recipe: Recipe, folder: Path) -> None:
    if (folder / "done").is_file():
        return
    print(f"training {folder}", file=sys.stderr, flush=True)
    train(
        recipe, folder, on_event=said(folder.name), should_stop=lambda: False, provenance={"argv": sys.argv},
        resume=(folder / STATE_FILE).is_file(),
    )  # fmt: skip
    (folder / "done").touch()


def answers(recipe: Recipe, checkpoint: Path, file: Path) -> list[int]:
    """Which validation pictures a network gets right (N,)."""
    if not file.is_file():
        model = load_checkpoint(checkpoint).model
        batches = eval_batches(open_data(recipe.data, "val"), recipe.preprocessing, recipe.resolution)
        write_json(file, evaluate(normalized(model, recipe.preprocessing), batches).right.astype(int).tolist())
    found: list[int] = json.loads(file.read_text())
    return found


def row(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    def percent(lists: list[list[int]]) -> list[float]:
        return [100 * float(np.mean(one)) for one in lists]

    after = {method: np.array([one[method]["after"] for one in found], bool) for method in METHODS}
    low, high = interval(after["latency"], after["uniform"])
    return {
        "network": name,
        "seeds": len(found),
        "num_images": after["latency"].shape[1],
        "whole_ms": found[0]["whole_ms"],
        "whole_percent": percent([one["whole"] for one in found]),
        **{
            method: {
                "ms": [one[method]["ms"] for one in found],
                "macs": [one[method]["macs"] for one in found],
                "params": [one[method]["params"] for one in found],
                "before_percent": percent([one[method]["before"] for one in found]),
                "after_percent": percent([one[method]["after"] for one in found]),
            }
            for method in METHODS
        },
        "points": 100 * float(after["latency"].mean() - after["uniform"].mean()),
        "low": low,
        "high": high,
    }


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    count, seeds = rows[0]["num_images"], options.seeds
    print(f"emoji10, {count} validation pictures, {seeds} seeds, {options.epochs} epochs of fine-tuning; ms: {TABLE}\n")
    print("| network | widths | ms | MACs | params | top-1 % pruned | fine-tuned | points by latency (95 %) |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        whole = f"{np.mean(r['whole_percent']):.1f}"
        print(f"| {r['network']} | whole | {r['whole_ms']:.3f} | | | | {whole} | |")
        for method in METHODS:
            m = r[method]
            told = "" if r["low"] > 0 or r["high"] < 0 else ": not shown"
            difference = f"{r['points']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f}){told}"
            print(
                f"| | {method} | {np.mean(m['ms']):.3f} | {np.mean(m['macs']) / 1e6:.0f} M "
                f"| {np.mean(m['params']) / 1e6:.2f} M | {np.mean(m['before_percent']):.1f} "
                f"| {spread(m['after_percent'])} | {difference if method == 'latency' else ''} |"
            )


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
