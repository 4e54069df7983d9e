"""Reads the files of an .mlpackage: the manifest, the model's message and what it says of inputs, outputs and itself.

What its operations mean is the interpreter's matter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vigcli.coreml.apple import coremltools
from vigcli.coreml.ops.const import TensorType, WeightFiles
from vigcli.errors import ConfigError

REEXPORT_HINT = "Export the package again, or copy it again: a copy or a download may have been cut short."
# What reading a message raises that anybody may have written.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Feature:
    """An input or an output of a package."""

    name: str
    kind: Literal["image", "tensor", "label", "probabilities"]
    type: TensorType | None
    color: Literal["RGB", "BGR", "GRAYSCALE"] | None = None

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        return self.type.shape if self.type else None

    @classmethod
    def of(cls, message: Any, type_: TensorType | None) -> Feature:
        """An input or output as its message describes it; `type_` is what the program says of it."""
        kind = message.type.WhichOneof("Type")
        if kind == "imageType" and type_ is not None:
            image = message.type.imageType
            color = image.ColorSpace.Name(image.colorSpace).removesuffix("_FLOAT16")
            return cls(message.name, "image", type_, color)
        if kind == "dictionaryType":
            return cls(message.name, "probabilities", None)
        if kind in ("stringType", "int64Type"):
            return cls(message.name, "label", None)
        if kind != "multiArrayType" or type_ is None:
            raise ValueError(f"'{message.name}' is of type {kind}")
        return cls(message.name, "tensor", type_)


class PackageFiles(NamedTuple):
    """The messages of a package, and its weights, of which nothing is read yet."""

    description: Any
    function: Any
    block: Any  # the operations
    weights: WeightFiles


def read_package(path: Path) -> PackageFiles:
    """Open an .mlpackage; one that is damaged or no ML Program is a ConfigError."""
    model_path = _model_path(path)
    model = _parse_model(path, model_path)
    try:
        function, block = _main_function(model)
    except DAMAGE as error:
        raise damaged_description(path, error) from error
    return PackageFiles(model.description, function, block, WeightFiles(model_path.parent / "weights"))


def damaged_description(path: Path, error: Exception) -> ConfigError:
    """The error to raise when the messages contradict themselves."""
    return ConfigError(f"{path}: its model description is damaged: {error}.", REEXPORT_HINT)


def _model_path(path: Path) -> Path:
    """Where the manifest says that the model is; never outside the package."""
    if not path.is_dir() or not (path / "Manifest.json").is_file():
        raise ConfigError(f"{path} is not an .mlpackage.", "Give a folder that has a Manifest.json.")
    try:
        manifest = json.loads((path / "Manifest.json").read_bytes())
        location = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        model_path = path / "Data" / location
        inside = model_path.resolve().is_relative_to(path.resolve())
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: its Manifest.json is damaged.", REEXPORT_HINT) from error
    if not inside:
        raise ConfigError(f"{path}: its Manifest.json points outside the package.", REEXPORT_HINT)
    if not model_path.is_file():
        raise ConfigError(f"{path}: its model Data/{location} is missing.", REEXPORT_HINT)
    return model_path


def _parse_model(path: Path, model_path: Path) -> Any:
    """The model's message; only ML Programs are accepted."""
    model = coremltools().proto.Model_pb2.Model()
    from google.protobuf.message import DecodeError  # comes with coremltools

    try:
        model.ParseFromString(model_path.read_bytes())
    except DecodeError as error:
        raise ConfigError(f"{path}: its {model_path.name} is damaged.", REEXPORT_HINT) from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ConfigError(
            f"{path} is not an ML Program but a model of type {kind}.",
            "Convert with convert_to='mlprogram'; neural networks and pipelines are not supported.",
        )
    return model


def _main_function(model: Any) -> tuple[Any, Any]:
    """The function that a prediction calls, and its block of operations."""
    name = model.description.defaultFunctionName or "main"
    if name not in model.mlProgram.functions:
        raise ValueError(f"it has no function '{name}'")
    function = model.mlProgram.functions[name]
    if function.opset not in function.block_specializations:
        raise ValueError(f"it has no operations for '{function.opset}'")
    return function, function.block_specializations[function.opset]


def texts_of(message: Any) -> dict[str, str]:
    """What a package says of itself, its user-defined texts included."""
    own = {
        "author": message.author,
        "license": message.license,
        "version": message.versionString,
        "description": message.shortDescription,
    }
    return {**message.userDefined, **own}
