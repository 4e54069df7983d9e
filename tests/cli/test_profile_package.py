"""`vig profile PACKAGE`: operations beside prices; with `--device`, what is asked of a Mac that is made here."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from vigcli.archs import build, resolved
from vigcli.archs.checkpoint import Checkpoint, save_checkpoint
from vigcli.cli.main import main
from vigcli.config.checkpoint import CheckpointMeta
from vigcli.config.recipe import Preprocessing
from vigcli.coreml import device_profile
from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import export
from vigcli.coreml.device import Machine
from vigcli.coreml.interpreter import Program
from vigcli.coreml.references import interpreter_values
from vigcli.measure.profile import profile
from vigcli.runs.provenance import sha256

pytest.importorskip("coremltools", exc_type=ImportError)
Vig = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and its package."""
    folder = tmp_path_factory.mktemp("made")
    save_checkpoint(folder / "net.safetensors", tiny.checkpoint(config=tiny.DYNAMIC).model,
                    tiny.checkpoint(config=tiny.DYNAMIC).meta)  # fmt: skip
    checkpoint = tiny.checkpoint(config=tiny.DYNAMIC)
    export(checkpoint, sha256(folder / "net.safetensors"), folder / "net.mlpackage")
    return folder


def test_operations_and_findings_stand_beside_the_prices(vig: Vig, made: Path) -> None:
    said = vig("profile", str(made / "net.mlpackage"))
    header = next(line for line in said.splitlines() if line.startswith("block"))
    assert header.split()[-5:] == ["ops", "gather", "top-k", "layout", "other"]
    assert "dynamic part" in said
    assert "--set stages[2].mixer=mgc" in said
    record = json.loads(vig("profile", str(made / "net.mlpackage"), "--json"))
    blocks = {block["name"]: block for block in record["blocks"]}
    assert blocks["stages[2].blocks[2]"]["findings"]["gather"] == 1
    assert blocks["stem"]["findings"] == {}
    assert sum(block["num_ops"] for block in blocks.values()) == record["num_ops"]
    assert blocks["stem"]["ms"] > 0
    assert {finding["kind"] for finding in record["findings"]} == set(record["rules"])
    assert record["dynamic"]["blocks"] == ["stages[2].blocks[2]"]


@pytest.mark.parametrize(
    "options", [{"output": "features"}, {"output": "logits", "input": "tensor", "batch": 4}], ids=str
)
def test_what_no_table_prices_is_described_as_it_is(vig: Vig, tmp_path: Path, options: Any) -> None:
    program = export(tiny.checkpoint(), "ab" * 32, tmp_path / "net.mlpackage", **options)
    record = json.loads(vig("profile", "net.mlpackage", "--json"))
    batch = options.get("batch", 1)
    said = vig("profile", "net.mlpackage").splitlines()[0]
    assert said == f"net.mlpackage: fp16, 96 px, {_GIVES[record['output']]}, batch {batch}"
    assert record["num_ops"] == program.num_ops
    assert record["macs"] == batch * (profile(tiny.CONFIG).macs - (_HEAD_MACS if "feature maps" in said else 0))
    vig("profile", "net.mlpackage", "--budget", "1ms", code=2)


_GIVES = {"features": "feature maps", "logits": "logits"}
_HEAD_MACS = next(block.trace.macs for block in profile(tiny.CONFIG).blocks if block.name == "head")


def test_a_package_in_fp32_is_called_so(vig: Vig, tmp_path: Path) -> None:
    export(tiny.checkpoint(), "ab" * 32, tmp_path / "net.mlpackage", "fp32")
    assert vig("profile", "net.mlpackage").splitlines()[0] == "net.mlpackage, deployed, 96 px, fp32"
    assert json.loads(vig("profile", "net.mlpackage", "--table", "cpu-x86", "--json"))["latency_ms"] > 0


def test_operations_of_which_no_block_is_known_are_told_apart(vig: Vig, tmp_path: Path) -> None:
    """coremltools folds the batch norms of a network of timm and names the weights that it makes by no block."""
    config = resolved("timm:resnet10t").changed({"resolution": 64, "num_classes": 10})
    meta = CheckpointMeta(arch=config, preprocessing=Preprocessing())
    export(Checkpoint(build(config).eval(), meta), "ab" * 32, tmp_path / "net.mlpackage")
    record = json.loads(vig("profile", "net.mlpackage", "--json"))
    blocks = {block["name"]: block["num_ops"] for block in record["blocks"]}
    assert blocks["layer1"] == 0
    assert blocks["fc"] > 0
    assert record["num_ops"] > sum(blocks.values())
    assert any(line.startswith("elsewhere ") for line in vig("profile", "net.mlpackage").splitlines())


def test_a_run_directory_of_a_package_is_its_package(vig: Vig, made: Path, tmp_path: Path) -> None:
    (tmp_path / "0001-export").mkdir()
    (tmp_path / "0001-export" / "fp16.mlpackage").symlink_to(made / "net.mlpackage")
    assert json.loads(vig("profile", "0001-export", "--json"))["dynamic"]


def test_anothers_package_is_read_and_has_no_price(vig: Vig, tmp_path: Path) -> None:
    ct = coremltools()
    traced = torch.jit.trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), torch.rand(1, 3, 16, 16))
    model = ct.convert(traced, inputs=[ct.TensorType(name="x", shape=(1, 3, 16, 16))], skip_model_load=True)
    model.save(str(tmp_path / "other.mlpackage"))
    assert "no package of vig" in vig("profile", "other.mlpackage")
    record = json.loads(vig("profile", "other.mlpackage", "--json"))
    assert sum(block["macs"] for block in record["blocks"]) == 4 * 3 * 9 * 14 * 14
    assert "ms" not in record["blocks"][0]
    vig("profile", "other.mlpackage", "--budget", "1ms", code=2)


# ---------------------------------------------------------------------------------------------------- Apple hardware


@pytest.mark.skipif(sys.platform == "darwin", reason="here it runs")
@pytest.mark.parametrize("device", ["mac", "iphone"])
def test_off_a_mac_two_lines_say_what_to_do(
    device: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["profile", str(made / "net.mlpackage"), "--device", device])
    assert stop.value.code == 6
    assert capsys.readouterr().err == (
        f"Error: --device {device}: CoreML runs on macOS alone.\n"
        "Hint:  Use --dry-run to write the packages here, and docs/first_mac.md on a Mac.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_mac_go_with_one(vig: Vig, made: Path) -> None:
    vig("profile", str(made / "net.mlpackage"), "--units", "ALL", code=2)
    vig("profile", str(made / "net.mlpackage"), "--dry-run", code=2)
    vig("profile", str(made / "net.mlpackage"), "--device", "mac", "--budget", "1ms", code=2)


@pytest.mark.parametrize("device", ["mac", "iphone"])
def test_a_dry_run_writes_what_would_be_run(device: str, vig: Vig, made: Path, tmp_path: Path) -> None:
    line = ("profile", str(made / "net.mlpackage"), "--device", device, "--dry-run", "--rounds", "3", "-o", "out")
    said = json.loads(vig(*line, "--against", str(made / "net.safetensors"), "--json"))
    assert said["protocol"].startswith("3 rounds of 50")
    assert said["against"] == str(made / "net.safetensors")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"inputs.npz", "requests.json", "run.yaml"} | (
        {"tensors.mlpackage"} if device == "iphone" else set()
    )
    vig(*line, code=2)
    assert f"--device {device} --units ALL --rounds 3" in vig(*line[:-2])


def made_answers(package: Path) -> Callable[..., Iterator[tuple[str, dict[str, Any]]]]:
    """In place of the processes: times, a plan with every top-k on the CPU, and the interpreter's own values."""
    program = Program.load(package)

    def answers_of(names: Any, folder: Path, request: Any, worker: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        answer: dict[str, Any] = {}
        if request["task"] == "times":
            answer = {"rounds": [[3.0] + [1.0] * 49] * request["rounds"], "loads": [90.0] + [8.0] * 19}
        elif request["task"] == "placement":
            answer["operations"] = [
                {"name": info.name, "type": info.op_type, "unit": "CPU" if info.op_type == "topk" else "ANE",
                 "supported": ["CPU"], "cost": 0.01}
                for info in program.operations
            ]  # fmt: skip
        else:
            with np.load(request["inputs"]) as inputs:
                pixels = torch.from_numpy(inputs["image"]).permute(2, 0, 1)[None].float()
            values = interpreter_values(program, {"image": pixels})
            np.savez(request["values"], **{name: values[name].numpy() for name in request["names"]})
        yield names[0], answer

    return answers_of


def test_a_run_on_a_mac(vig: Vig, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("Mac14,2", "Apple M2", "macOS 15.1", "Mac14,2", "9.0", "no Xcode")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(device_profile, "machine_of", lambda target: machine)
    monkeypatch.setattr(device_profile, "answers_of", made_answers(made / "net.mlpackage"))
    line = ("profile", str(made / "net.mlpackage"), "--device", "mac", "--against", str(made / "net.safetensors"))
    said = vig(*line)
    assert "Mac14,2, macOS 15.1, ALL" in said
    assert "load             8.00 ms; the first time 90.00 ms" in said
    assert "first inference  3.00 ms" in said
    assert "then             1.000 ms ± 0.000" in said
    assert "reported to run on the CPU" in next(line for line in said.splitlines() if " topk " in line)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "0001-profile"
    assert {"profile.json", "operations.csv", "times.json", "run.yaml"} <= {path.name for path in run.iterdir()}
    record = json.loads(vig(*line, "--json"))
    assert record["latency_ms"] == pytest.approx(1)
    assert record["failures"] == {}
    without = vig(*line[:-2])
    assert "interpreter dB" in without
    vig(*line[:-1], str(made / "nothing.safetensors"), code=3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="here it runs for an hour")
@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_the_script_for_the_first_mac(arguments: list[str], tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs" / "first_mac.sh"
    known = {"VIG": f"{sys.executable} -m vigcli", "NETWORKS": "mobilevigv2_ti", "TEAM": "T", "PATH": "/usr/bin:/bin"}
    environment = known | {"PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(
        ["sh", str(script), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    with tarfile.open(tmp_path / "first-mac.tar.gz") as archive:
        names = {name.removeprefix("first-mac/") for name in archive.getnames()}
    assert {"doctor.txt", "mobilevigv2_ti.lint.txt", "mobilevigv2_ti.mac.txt"} <= names
    assert not [name for name in names if name.endswith((".mlpackage", ".safetensors", ".npz"))]
    if arguments:
        assert done.returncode == 0, done.stderr
        assert {"mobilevigv2_ti-mac/requests.json", "mobilevigv2_ti-iphone/requests.json"} <= names
    else:
        assert done.returncode == 1
        assert "mobilevigv2_ti-mac mobilevigv2_ti-iphone" in done.stderr
        assert done.stderr.count("CoreML runs on macOS alone") == 2
