"""Reads the files of an .mlpackage: the manifest, the model's message and what it says of inputs, outputs and itself.

What its operations mean is the interpreter's matter. Nothing here needs coremltools, and nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vigcli.coreml.messages import (
    COLOR_SPACES,
    Block,
    FeatureDescription,
    Function,
    FunctionDescription,
    ImageFeatureType,
    Metadata,
    Model,
    ModelDescription,
)
from vigcli.coreml.ops.const import TensorType
from vigcli.coreml.weights import WeightFiles
from vigcli.coreml.wire import field_numbers, read
from vigcli.errors import ConfigError
from vigcli.files import kind_of

REEXPORT_HINT = "Export the package again, or copy it again: a copy or a download may have been cut short."
FOLDER_HINT = "An .mlpackage is a folder that has a Manifest.json; `vig export` writes one."
KIND_HINT = "Convert with convert_to='mlprogram'; neural networks and pipelines are not supported."
# What reading a message raises that anybody may have written.
DAMAGE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
MAX_MANIFEST_BYTES = 2**20
MAX_MODEL_BYTES = 2**26  # the text of a program; its weights are in files of their own
LONGEST_LINE = 240
# What a model may be instead of an ML Program; its contents are never read.
OTHER_MODELS = {
    200: "pipelineClassifier",
    201: "pipelineRegressor",
    202: "pipeline",
    300: "glmRegressor",
    301: "supportVectorRegressor",
    302: "treeEnsembleRegressor",
    303: "neuralNetworkRegressor",
    304: "bayesianProbitRegressor",
    400: "glmClassifier",
    401: "supportVectorClassifier",
    402: "treeEnsembleClassifier",
    403: "neuralNetworkClassifier",
    404: "kNearestNeighborsClassifier",
    500: "neuralNetwork",
    501: "itemSimilarityRecommender",
    555: "customModel",
    556: "linkedModel",
    560: "classConfidenceThresholding",
    600: "oneHotEncoder",
    601: "imputer",
    602: "featureVectorizer",
    603: "dictVectorizer",
    604: "scaler",
    606: "categoricalMapping",
    607: "normalizer",
    609: "arrayFeatureExtractor",
    610: "nonMaximumSuppression",
    900: "identity",
    2000: "textClassifier",
    2001: "wordTagger",
    2002: "visionFeaturePrint",
    2003: "soundAnalysisPreprocessing",
    2004: "gazetteer",
    2005: "wordEmbedding",
    2006: "audioFeaturePrint",
    3000: "serializedModel",
}


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
    def of(cls, message: FeatureDescription, type_: TensorType | None) -> Feature:
        """An input or output as its message describes it; `type_` is what the program says of it."""
        described = message.type
        if described and described.image_type and type_ is not None:
            return cls(message.name, "image", type_, _color(message.name, described.image_type, type_))
        if described and described.multi_array_type and type_ is not None:
            stated = tuple(described.multi_array_type.shape)
            if stated and None not in type_.shape and stated != type_.shape:
                raise ValueError(f"'{message.name}' is {stated} in the description, {type_.shape} in the program")
            return cls(message.name, "tensor", type_)
        if described and described.dictionary_type:
            return cls(message.name, "probabilities", None)
        if described and (described.string_type or described.int64_type):
            return cls(message.name, "label", None)
        raise ValueError(f"'{message.name}' is neither a picture nor a tensor nor a class")


def _color(name: str, image: ImageFeatureType, type_: TensorType) -> Literal["RGB", "BGR", "GRAYSCALE"]:
    size = type_.shape[-2:]
    if None not in size and size != (image.height, image.width):
        raise ValueError(f"'{name}' is a picture of {image.height} x {image.width}, in the program {size}")
    color = COLOR_SPACES.get(image.color_space)
    if color not in ("RGB", "BGR", "GRAYSCALE"):
        raise ValueError(f"'{name}' is a picture in the color space {image.color_space}")
    return color  # type: ignore[return-value]


class PackageFiles(NamedTuple):
    """The messages of a package, and its weights, of which nothing is read yet."""

    model: Model
    description: ModelDescription
    function: Function
    block: Block  # the operations
    weights: WeightFiles

    def interface(self) -> tuple[list[FeatureDescription], list[FeatureDescription]]:
        """The inputs and outputs of the function; where a model has several, each is described on its own."""
        described: ModelDescription | FunctionDescription = self.description
        for function in self.description.functions:
            if function.name == self.description.default_function_name:
                described = function
        if described.state:
            raise ValueError("it keeps a state between predictions, which is not supported")
        return described.input, described.output


def read_package(path: Path) -> PackageFiles:
    """Open an .mlpackage; one that is damaged or no ML Program is a ConfigError."""
    model_path = find_model(path)
    model = _read_model(path, model_path)
    try:
        description, function, block = _main_function(model)
    except DAMAGE as error:
        raise damaged_description(path, error) from error
    return PackageFiles(model, description, function, block, WeightFiles(model_path.parent))


def damaged_description(path: Path, error: Exception) -> ConfigError:
    """The error to raise when the messages contradict themselves."""
    return ConfigError(f"{path}: its model description is damaged: {shown(error)}.", REEXPORT_HINT)


def shown(text: object) -> str:
    """What a file says, or an error that quotes it, fit for one line of a terminal."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 3] + "..."


def find_model(path: Path) -> Path:
    """Where the manifest says that the model is; never outside the package. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: does not exist.", "Check the path; `vig export` writes packages.")
    if path.is_file():
        raise ConfigError(f"{path}: is {kind_of(path)}, not an .mlpackage.", FOLDER_HINT)
    if not (path / "Manifest.json").is_file():
        raise ConfigError(f"{path}: is not an .mlpackage: it has no Manifest.json.", REEXPORT_HINT)
    try:
        with (path / "Manifest.json").open("rb") as file:
            manifest = json.loads(file.read(MAX_MANIFEST_BYTES))
        location = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        model_path = path / "Data" / location
        inside = model_path.resolve().is_relative_to(path.resolve())
        exists = model_path.is_file()
    except (*DAMAGE, RecursionError) as error:
        raise ConfigError(f"{path}: its Manifest.json is damaged.", REEXPORT_HINT) from error
    if not inside:
        raise ConfigError(f"{path}: its Manifest.json points outside the package.", REEXPORT_HINT)
    if not exists:
        raise ConfigError(f"{path}: its model Data/{shown(location)} is missing.", REEXPORT_HINT)
    return model_path


def _read_model(path: Path, model_path: Path) -> Model:
    """The model's message; only ML Programs are accepted."""
    try:
        with model_path.open("rb") as file:
            content = file.read(MAX_MODEL_BYTES + 1)
        if len(content) > MAX_MODEL_BYTES:
            raise ValueError(f"it has more than {MAX_MODEL_BYTES >> 20} MB")
        if not content:
            raise ValueError("it is empty")
        kinds = [OTHER_MODELS[number] for number in field_numbers(content) if number in OTHER_MODELS]
        model = read(Model, content) if not kinds else None
    except DAMAGE as error:
        raise ConfigError(f"{path}: its {model_path.name} is damaged: {shown(error)}.", REEXPORT_HINT) from error
    if model is None or model.ml_program is None:
        kind = kinds[0] if kinds else "none"
        raise ConfigError(f"{path} is not an ML Program but a model of type {kind}.", KIND_HINT)
    return model


def _main_function(model: Model) -> tuple[ModelDescription, Function, Block]:
    """The description, the function that a prediction calls, and its block of operations."""
    if model.description is None or model.ml_program is None:
        raise ValueError("it has no description")
    name = model.description.default_function_name or "main"
    if name not in model.ml_program.functions:
        raise ValueError(f"it has no function '{name}'")
    function = model.ml_program.functions[name]
    if function.opset not in function.block_specializations:
        raise ValueError(f"it has no operations for '{function.opset}'")
    return model.description, function, function.block_specializations[function.opset]


def texts_of(message: Metadata | None) -> dict[str, str]:
    """What a package says of itself, its user-defined texts included."""
    if message is None:
        return {}
    own = {
        "author": message.author,
        "license": message.license,
        "version": message.version_string,
        "description": message.short_description,
    }
    return {**message.user_defined, **own}
