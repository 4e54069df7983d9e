"""The same pictures in every form in which they may lie, and damaged ones among them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import recipe

from vigcli.config.recipe import Data
from vigcli.errors import ConfigError, UnavailableError
from vigcli.train.data import Damaged, Pictures, eval_batches, num_workers, open_data, train_batches
from vigcli.train.loop import TrainResult
from vigcli.train.sampler import Sampler

Files = dict[str, bytes]
CLASSES = ("cat", "dog", "eel10", "eel9")


@pytest.fixture(scope="module")
def files() -> Files:
    """CLASS/NAME.png -> content, three of each class, of one split."""
    generator = np.random.default_rng(0)
    found = {}
    for label in CLASSES:
        for i in range(3):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "png")
            found[f"{label}/{i}.png"] = buffer.getvalue()
    return found


def in_folders(root: Path, files: Files, split: str) -> None:
    for name, content in files.items():
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def in_zip(root: Path, files: Files, split: str) -> None:
    with zipfile.ZipFile(root / f"{split}.zip", "w") as file:
        for name, content in files.items():
            file.writestr(name, content)


def in_zip_with_split(root: Path, files: Files, split: str) -> None:
    in_zip(root, {f"{split}/{name}": content for name, content in files.items()}, split)


def write_tar(path: Path, files: Files) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def in_tar(root: Path, files: Files, split: str) -> None:
    write_tar(root / f"{split}.tar", files)


def in_tar_for_each_class(root: Path, files: Files, split: str) -> None:
    for label in CLASSES:
        inside = {name.split("/")[1]: content for name, content in files.items() if name.startswith(f"{label}/")}
        write_tar(root / split / f"{label}.tar", inside)


def shards(root: Path, files: Files, split: str, label: Callable[[str], dict[str, bytes]]) -> None:
    members = [
        {f"{i:05d}.png": content} | {f"{i:05d}.{kind}": text for kind, text in label(name.split("/")[0]).items()}
        for i, (name, content) in enumerate(files.items())
    ]
    for shard in range(3):
        inside = {name: content for member in members[shard::3] for name, content in member.items()}
        write_tar(root / f"set-{split}-{shard:04d}.tar", inside)


def in_shards(root: Path, files: Files, split: str) -> None:
    shards(root, files, split, lambda label: {"cls": label.encode()})


def in_shards_with_json(root: Path, files: Files, split: str) -> None:
    shards(root, files, split, lambda label: {"json": json.dumps({"label": label}).encode()})


def in_shards_in_a_folder(root: Path, files: Files, split: str) -> None:
    in_shards(root, files, split)
    (root / split).mkdir()
    for path in root.glob("*.tar"):
        if split in path.name:
            path.rename(root / split / path.name)


def in_parquet(root: Path, files: Files, split: str) -> None:
    """As `datasets` writes it, with its description of the columns."""
    pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    names = CLASSES[::-1]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pyarrow.table({
        "image": [{"bytes": content, "path": None} for content in files.values()],
        "label": [names.index(name.split("/")[0]) for name in files],
    }).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})  # fmt: skip
    (root / "data").mkdir(exist_ok=True)
    name = {"val": "validation"}.get(split, split)
    parquet.write_table(table, root / "data" / f"{name}-00000-of-00001.parquet")


FORMS = [in_folders, in_zip, in_zip_with_split, in_tar, in_tar_for_each_class, in_shards, in_shards_with_json,
         in_shards_in_a_folder, in_parquet]  # fmt: skip


def by_class(pictures: Pictures) -> dict[str, set[bytes]]:
    found: dict[str, set[bytes]] = {}
    for image, target in (pictures[i] for i in range(len(pictures))):
        found.setdefault(pictures.labels[target], set()).add(image.tobytes())
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pictures(
    tmp_path: Path, files: Files, form: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    in_folders(tmp_path / "plain", files, "train")
    (tmp_path / "form").mkdir()
    for split in ("train", "val"):
        form(tmp_path / "form", files, split)
    plain = open_data(Data(root=str(tmp_path / "plain")), "train")
    for split in ("train", "val"):
        pictures = open_data(Data(root=str(tmp_path / "form")), split)
        assert pictures.labels == plain.labels == CLASSES
        assert [pictures.targets.count(i) for i in range(4)] == [3] * 4
        assert by_class(pictures) == by_class(plain)
        assert len({pictures.file(i) for i in range(12)}) == 12
        assert pictures.part(4).labels == CLASSES
        alone, in_workers = (
            list(eval_batches(pictures, recipe().preprocessing, 32, batch_size=5, workers=workers))
            for workers in (0, 2)
        )
        assert all(
            torch.equal(a, b) for one, two in zip(alone, in_workers, strict=True) for a, b in zip(one, two, strict=True)
        )


def test_numbered_classes_of_shards_stay_in_order(tmp_path: Path, files: Files) -> None:
    shards(tmp_path, files, "train", lambda label: {"cls": str(5 * CLASSES.index(label)).encode()})
    assert open_data(Data(root=str(tmp_path)), "train").labels == ("00", "05", "10", "15")


def test_shards_without_classes_and_damaged_ones_are_refused(tmp_path: Path, files: Files) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.png": next(iter(files.values())), "2.cls": b"1"})
    with pytest.raises(ConfigError, match=r"train-0.tar:1.png: has no class"):
        open_data(Data(root=str(tmp_path)), "train")
    for name in ("train.tar", "train-0.tar", "train.zip"):
        root = tmp_path / name.replace(".", "_")
        root.mkdir()
        (root / name).write_bytes(b"no archive")
        with pytest.raises((ConfigError, UnavailableError), match="cannot be read"):
            open_data(Data(root=str(root)), "train")


# ---------------------------------------------------------------------------------------------------- damaged pictures


@pytest.fixture
def damaged_root(tmp_path: Path, root: Path) -> Path:
    """Ten classes of two, of which two training pictures and a validation picture are damaged."""
    for path in root.rglob("*.png"):
        target = tmp_path / "damaged" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        is_damaged = path.parts[-3:] in {("train", "class3", "0.png"), ("train", "class7", "1.png"),
                                         ("val", "class5", "0.png")}  # fmt: skip
        target.write_bytes(b"" if is_damaged else path.read_bytes())
    return tmp_path / "damaged"


def test_damaged_pictures_are_named_counted_and_left_out(
    damaged_root: Path, tmp_path: Path, run: Callable[..., TrainResult]
) -> None:
    told: list[str] = []
    limited = recipe(data={"workers": 0, "root": str(damaged_root), "max_corrupt": 3})
    result = run(limited, data_root=damaged_root, on_notice=told.append)
    assert result.finished
    assert len(told) == len(result.damaged) == 3
    assert all("left out" in line and ".png: cannot be read as a picture" in line for line in told)
    assert result.evaluation is not None
    assert result.evaluation.num_images == 9
    assert run(limited, "two", data_root=damaged_root, stop_after=1).finished is False
    assert run(limited, "two", data_root=damaged_root, resume=True).damaged == result.damaged
    with pytest.raises(
        ConfigError, match=r"png: cannot be read as a picture \(.*\); 1 before it were left out"
    ) as many:
        run(recipe(data={"workers": 0, "max_corrupt": 1}), "few", data_root=damaged_root)
    assert "data.max_corrupt" in many.value.hint


def test_the_next_picture_stands_in_whatever_the_workers(damaged_root: Path) -> None:
    options = recipe(data={"root": str(damaged_root), "max_corrupt": 3}, batch_size=20, augment={"scale": [1.0, 1.0]})
    pictures = open_data(options.data, "train")
    sampler = Sampler(options, len(pictures))
    alone, in_workers = (next(train_batches(options, pictures, sampler, workers=workers)) for workers in (0, 2))
    assert torch.equal(alone.x, in_workers.x)
    place = next(i for i, draw in enumerate(alone.draws) if pictures.file(draw.picture).endswith("class3/0.png"))
    stand_in = next(i for i, draw in enumerate(alone.draws) if pictures.file(draw.picture).endswith("class3/1.png"))
    assert alone.target[place] == alone.target[stand_in] == 3


def test_a_set_without_a_sound_picture_is_refused(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "train" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / f"c{i % 2}" / f"{i}.png").write_bytes(b"")
    options = recipe(data={"root": str(tmp_path), "max_corrupt": 100}, batch_size=4)
    pictures = open_data(options.data, "train")
    with pytest.raises(ConfigError, match="no picture can be read"):
        next(train_batches(options, pictures, Sampler(options, 4)))


def test_damaged_counts_each_picture_once() -> None:
    damaged, error = Damaged(1), ConfigError("a.png: cannot be read as a picture.")
    damaged.add([("a.png", error), ("a.png", error)])
    damaged.add([("a.png", error)])
    with pytest.raises(ConfigError, match=r"b\.png"):
        damaged.add([("b.png", ConfigError("b.png: cannot be read as a picture."))])


def test_more_workers_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    assert num_workers(Data(workers=4)) == 4
    assert [num_workers(Data(), size) for size in (1, 2, 8)] == [4, 2, 0]
    with pytest.raises(ConfigError, match=r"data.workers: 5 are more than this machine's 4 cores") as many:
        num_workers(Data(workers=5))
    assert "data.workers=4" in many.value.hint
    with pytest.raises(ConfigError, match="3 for each of 2 processes"):
        num_workers(Data(workers=3), 2)
