"""`vig export`: a checkpoint as a CoreML package, or as an ONNX file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vigcli.cli.options import Integer, dry_run_option, json_option, output_option
from vigcli.cli.output import emit_json, fields, progress, say
from vigcli.errors import UsageError
from vigcli.units import format_bytes

if TYPE_CHECKING:
    from vigcli.config.recipe import Data

ONNX = "onnx"
CHECKED = 16  # pictures on which ranges are looked at
DRAWN = "Its weights are DRAWN AT RANDOM, not trained: good for timing alone. They are of no scale: fp16 may overflow."


@click.command()
@click.argument("subject", metavar="[CHECKPOINT]", required=False)
@click.option(
    "--target",
    type=click.Choice(("ios16", "ios17", "ios18", ONNX), case_sensitive=False),
    default="ios16",
    show_default=True,
    help="The least iOS that runs the package, or an ONNX file.",
)
@click.option(
    "--precision",
    type=click.Choice(("fp16", "fp32", "mixed")),
    help="Default: fp16; mixed keeps in fp32 what would overflow. ONNX is fp32.",
)
@click.option(
    "--input",
    "input_",
    type=click.Choice(("image", "tensor")),
    help="Default: image; a tensor holds the same numbers, RGB in 0 to 255. ONNX takes a tensor.",
)
@click.option("--batch", type=Integer(1, 1024), default=1, show_default=True, help="Pictures at once; fixed.")
@click.option("--logits", is_flag=True, help="Give logits, no labels and no softmax.")
@click.option("--features", is_flag=True, help="Give the backbone's feature maps at strides 4, 8, 16 and 32.")
@click.option(
    "--data",
    "data_root",
    type=click.Path(),
    help=f"Folder whose train/ gives {CHECKED} pictures to look for overflow on; default: emoji10.",
)
@output_option
@dry_run_option
@json_option
def command(
    subject: str | None,
    target: str,
    precision: str | None,
    input_: str | None,
    batch: int,
    logits: bool,
    features: bool,
    data_root: str | None,
    output: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the CoreML package (ML Program) or the ONNX file of CHECKPOINT (default: the newest).

    CHECKPOINT may be a network's name too (`vig ls archs`, timm:NAME): then weights are drawn. Of weights that are not,
    every result is looked at on real pictures: what fp16 may not hold is refused, or by --precision mixed kept in fp32.

    Example:  vig export --target ios17 --precision mixed
    """
    from vigcli.cli.load import against, due_package, named, run_folder
    from vigcli.config.package import check_batch, planned
    from vigcli.config.recipe import Data
    from vigcli.runs.rundir import new_run
    from vigcli.train.data import open_data

    given = input_ or ("tensor" if target == ONNX else "image")
    gives = "features" if features else "logits" if logits else "probabilities"
    precision = precision or ("fp32" if target == ONNX else "fp16")
    if logits and features:
        raise UsageError("--logits and --features: a package gives one of both.", "Leave one out.")
    if target == ONNX and (precision, given) != ("fp32", "tensor"):
        raise UsageError("--target onnx: is fp32 and takes a tensor.", "Leave --precision and --input out.")
    if target != ONNX:
        check_batch(given, gives, batch)  # type: ignore[arg-type]
    minimum_ios: Any = 16 if target == ONNX else int(target.removeprefix("ios"))
    path, checkpoint = _taken(subject)
    meta = planned(checkpoint.meta, "", precision, minimum_ios, given, gives, batch)  # type: ignore[arg-type]
    say(f"Taking {subject if path is None else named(path, meta)}.")
    if meta.is_drawn:
        say(DRAWN)
    file = "model.onnx" if target == ONNX else f"{precision}.mlpackage"
    data = Data(source="emoji10") if data_root is None else Data(source="folder", root=data_root)
    answer = {"checkpoint": subject if path is None else str(path), "target": target, **_ends(checkpoint, meta, target)}
    if dry_run:
        answer["package"] = due_package(file, run_folder(output))
        open_data(data, "train")
    else:
        with new_run("export", run_folder(output)) as run, _with_file(path, checkpoint, run) as path:
            answer |= {"checkpoint": str(path), "package": str(run / file)}
            answer |= _written(checkpoint, meta, path, run / file, target, data)
    if as_json:
        emit_json(answer)
        return
    _report(answer, meta)
    if path is not None and not dry_run:
        runs = target == ONNX and not features
        last = f"vig run {answer['package']} PICTURE" if runs else f"vig verify {answer['package']}{against(path)}"
        click.echo(f"Next:  {last}")


def _taken(subject: str | None) -> tuple[Path | None, Any]:
    """The checkpoint that was named, and its file; of a network's name one with drawn weights, which has no file."""
    from vigcli.archs.checkpoint import Checkpoint, load_checkpoint
    from vigcli.cli.load import arch_with, check_memory, picked_checkpoint, preprocessing_of

    if subject is None or Path(subject).exists() or "/" in subject or subject.endswith(".safetensors"):
        path = picked_checkpoint(subject)
        return path, load_checkpoint(path)
    from vigcli.archs import build
    from vigcli.config.checkpoint import CheckpointMeta
    from vigcli.measure.count import count_params
    from vigcli.runs.provenance import provenance

    config = arch_with(subject)
    check_memory(subject, count_params(config).total)
    record = provenance(sys.argv, 0, config.model_dump_json())
    meta = CheckpointMeta(arch=config, preprocessing=preprocessing_of(config), provenance=record)
    return None, Checkpoint(build(config).eval(), meta)


@contextlib.contextmanager
def _with_file(path: Path | None, checkpoint: Any, run: Path) -> Iterator[Path]:
    """The file of a checkpoint; of drawn weights one beside the package, to verify it against."""
    from vigcli.archs.checkpoint import save_checkpoint
    from vigcli.cli.load import DRAWN_FILE

    if path is not None:
        yield path
        return
    save_checkpoint(run / DRAWN_FILE, *checkpoint)
    try:
        yield run / DRAWN_FILE
    except BaseException:
        (run / DRAWN_FILE).unlink()
        raise


def _ends(checkpoint: Any, meta: Any, target: str) -> dict[str, Any]:
    """What goes in and what comes out, and how it is computed."""
    from vigcli.config.package import LABELLED, licence_text, preprocessing_text
    from vigcli.coreml.convert import INPUT_NAME, output_shapes

    has_labels = target != ONNX and meta.output == "probabilities"
    return {
        "precision": meta.precision,
        "minimum_ios": None if target == ONNX else meta.minimum_ios,
        "input": {"name": INPUT_NAME, "kind": meta.input, "shape": meta.input_shape, "channels": meta.given_channels},
        "outputs": dict.fromkeys(LABELLED, ()) if has_labels else output_shapes(checkpoint, meta),
        "preprocessing": preprocessing_text(meta),
        "license": licence_text(meta),
    }


def _written(checkpoint: Any, meta: Any, path: Path, file: Path, target: str, data: Data) -> dict[str, Any]:
    """Write the file, and tell what is known of it only then."""
    from vigcli.coreml.convert import export, meta_of
    from vigcli.coreml.lint import lint, summary
    from vigcli.coreml.onnx import export_onnx
    from vigcli.files import bytes_on_disk
    from vigcli.runs.provenance import provenance, sha256
    from vigcli.runs.rundir import write_run_file
    from vigcli.train.data import load_split

    images, _ = load_split(data, "train", meta.preprocessing, meta.arch.resolution, limit=CHECKED)
    is_checked = target == ONNX or meta.precision != "fp16" or not meta.is_drawn
    digest = sha256(path)
    found: dict[str, Any]
    with progress() as advance:
        options: dict[str, Any] = {"output": meta.output, "batch": meta.batch, "on_progress": advance}
        if target == ONNX:
            meta, error, counts = export_onnx(checkpoint, digest, file, images, **options)
            found = {"relative_error": error}
        else:
            options |= {"input": meta.input, "images": images if is_checked else None}
            program = export(checkpoint, digest, file, meta.precision, meta.minimum_ios, **options)
            meta = meta_of(program)
            found, counts = {"fp32_results": list(meta.fp32_results)}, program.op_counts
            found["lint"] = dict(summary(lint(program)))
    write_run_file(file.parent, provenance(sys.argv, 0, meta.model_dump_json(), [digest]))
    return {
        "size_bytes": bytes_on_disk(file),
        "num_images": len(images) if is_checked else 0,
        **found,
        "op_counts": dict(counts.most_common()),
        "metadata": meta.model_dump(mode="json"),
    }


def _report(answer: dict[str, Any], meta: Any) -> None:
    """What was written, or would be."""
    from vigcli.config.package import output_texts

    done, onnx = "op_counts" in answer, answer["target"] == ONNX
    rows = [("package" if done else "would write", answer["package"])]
    rows += [("size", format_bytes(answer["size_bytes"]))] if done else []
    rows += [("runs on", "ONNX Runtime" if onnx else f"iOS {meta.minimum_ios} and later")]
    rows += [("precision", _precision(answer))]
    entry = answer["input"]
    rows += [("input", f"{entry['name']}: {entry['kind']}, {_shape(entry['shape'])}, {entry['channels']}")]
    rows += [("", answer["preprocessing"])]
    texts = output_texts(meta, answer["outputs"])
    outputs = (f"{name}: {_shape(shape) or texts[name]}" for name, shape in answer["outputs"].items())
    rows += [("outputs", "; ".join(outputs))]
    if meta.output != "features":
        named = ", ".join(meta.labels[:10]) or "numbered, their names are not known"
        rows += [("classes", f"{meta.arch.num_classes}: {named}")]
    rows += [("licence", answer["license"])]
    if done:
        counts = {kind.lower(): count for kind, count in answer["op_counts"].items()}
        choosing = f"gather {counts.get('gather', 0)}, topk {counts.get('topk', 0)}"
        rows += [("operations", f"{sum(counts.values())}, of which {choosing}")]
        rows += answer.get("lint", {}).items()
        rows += [("checkpoint", f"{answer['checkpoint']} (sha256 {answer['metadata']['checkpoint_sha256'][:12]})")]
    fields(rows)


def _precision(answer: dict[str, Any]) -> str:
    """And what the pictures told."""
    precision, pictures = answer["precision"], f"on {answer.get('num_images')} pictures"
    if "relative_error" in answer:
        return f"{precision}; ONNX Runtime is {answer['relative_error']:.1e} of the largest value off torch {pictures}"
    if "fp32_results" not in answer:
        return precision
    if not answer["num_images"]:
        return f"{precision}; not looked at, for the weights are drawn"
    kept = answer["fp32_results"]
    of_kept = f"; {len(kept)} results kept in fp32, from {kept[0]} on" if kept else ""
    return f"{precision}; all results {'finite' if precision == 'fp32' else 'in range'} {pictures}{of_kept}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
