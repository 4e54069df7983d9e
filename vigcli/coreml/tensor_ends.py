"""A copy of a package that takes and gives tensors alone, for coremltools' app on an iPhone, which passes no pictures
(coremltools 9; they came after it: github.com/apple/coremltools/pull/2647)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vigcli.coreml.apple import coremltools
from vigcli.coreml.convert import quiet, write_program


def write_tensor_ends(package: Path, destination: Path) -> None:
    """Write the copy: an image input becomes a tensor of 0 ... 255 in the order of channels that the program takes, and
    a classifier hands out its probabilities in place of labels. All operations but `classify` stay as they are."""
    ct = coremltools()
    with quiet():
        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
    function = spec.mlProgram.functions[spec.description.defaultFunctionName or "main"]
    for feature in spec.description.input:
        if feature.type.WhichOneof("Type") == "imageType":
            given = next(given for given in function.inputs if given.name == feature.name)
            _describe(feature, given.type.tensorType)
    _drop_labels(spec, function.block_specializations[function.opset])
    with quiet():
        copy = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    write_program(copy, destination)


def _drop_labels(spec: Any, block: Any) -> None:
    labelling = next((op for op in block.operations if op.type == "classify"), None)
    if labelling is None:
        return
    scores = labelling.inputs["probabilities"].arguments[0].name
    made = next(output for op in block.operations for output in op.outputs if output.name == scores)
    block.operations.remove(labelling)
    del block.outputs[:]
    block.outputs.append(scores)
    description = spec.description
    del description.output[:]
    description.output.add().name = scores
    _describe(description.output[0], made.type.tensorType)
    description.ClearField("predictedFeatureName")
    description.ClearField("predictedProbabilitiesName")


def _describe(feature: Any, tensor: Any) -> None:
    """Describe an input or output as the tensor that the program has there."""
    array = coremltools().proto.FeatureTypes_pb2.ArrayFeatureType
    kinds = {10: array.FLOAT16, 11: array.FLOAT32, 23: array.INT32}  # by MIL.proto's numbers of types
    feature.type.multiArrayType.dataType = kinds[tensor.dataType]
    feature.type.multiArrayType.shape[:] = [dimension.constant.size for dimension in tensor.dimensions]
