"""The messages of a CoreML model that an ML Program is made of, with the numbers of their fields; how bytes become
messages is left to `vigcli.coreml.wire`, what they mean to `vigcli.coreml.package` and the interpreter.

Source: Model.proto, FeatureTypes.proto and MIL.proto of coremltools 9, in mlmodel/format of
https://github.com/apple/coremltools.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vigcli.coreml.wire import Double, Float, Int32, Int64, UInt64, at

# ------------------------------------------------------------------------------------------------ MIL.proto

DATA_TYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    12: "fp64",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}


@dataclass(slots=True)
class ConstantDimension:
    size: UInt64 = at(1)


@dataclass(slots=True)
class UnknownDimension:
    variadic: bool = at(1)


@dataclass(slots=True)
class Dimension:
    constant: ConstantDimension | None = at(1, "dimension")
    unknown: UnknownDimension | None = at(2, "dimension")


@dataclass(slots=True)
class TensorType:
    data_type: Int32 = at(1)
    rank: Int64 = at(2)
    dimensions: list[Dimension] = at(3)
    attributes: dict[str, Value] = at(4)


@dataclass(slots=True)
class ListType:
    type: ValueType | None = at(1)
    length: Dimension | None = at(2)


@dataclass(slots=True)
class TupleType:
    types: list[ValueType] = at(1)


@dataclass(slots=True)
class DictionaryType:
    key_type: ValueType | None = at(1)
    value_type: ValueType | None = at(2)


@dataclass(slots=True)
class StateType:
    wrapped_type: ValueType | None = at(1)


@dataclass(slots=True)
class ValueType:
    tensor_type: TensorType | None = at(1, "type")
    list_type: ListType | None = at(2, "type")
    tuple_type: TupleType | None = at(3, "type")
    dictionary_type: DictionaryType | None = at(4, "type")
    state_type: StateType | None = at(5, "type")


@dataclass(slots=True)
class RepeatedFloats:
    values: list[Float] = at(1)


@dataclass(slots=True)
class RepeatedInts:
    values: list[Int32] = at(1)


@dataclass(slots=True)
class RepeatedBools:
    values: list[bool] = at(1)


@dataclass(slots=True)
class RepeatedStrings:
    values: list[str] = at(1)


@dataclass(slots=True)
class RepeatedLongInts:
    values: list[Int64] = at(1)


@dataclass(slots=True)
class RepeatedDoubles:
    values: list[Double] = at(1)


@dataclass(slots=True)
class RepeatedBytes:
    values: bytes = at(1)


@dataclass(slots=True)
class TensorValue:
    floats: RepeatedFloats | None = at(1, "value")
    ints: RepeatedInts | None = at(2, "value")
    bools: RepeatedBools | None = at(3, "value")
    strings: RepeatedStrings | None = at(4, "value")
    long_ints: RepeatedLongInts | None = at(5, "value")
    doubles: RepeatedDoubles | None = at(6, "value")
    bytes: RepeatedBytes | None = at(7, "value")


@dataclass(slots=True)
class TupleValue:
    values: list[Value] = at(1)


@dataclass(slots=True)
class ListValue:
    values: list[Value] = at(1)


@dataclass(slots=True)
class KeyValuePair:
    key: Value | None = at(1)
    value: Value | None = at(2)


@dataclass(slots=True)
class DictionaryValue:
    values: list[KeyValuePair] = at(1)


@dataclass(slots=True)
class ImmediateValue:
    tensor: TensorValue | None = at(1, "value")
    tuple: TupleValue | None = at(2, "value")
    list: ListValue | None = at(3, "value")
    dictionary: DictionaryValue | None = at(4, "value")


@dataclass(slots=True)
class BlobFileValue:
    file_name: str = at(1)
    offset: UInt64 = at(2)


@dataclass(slots=True)
class Value:
    doc_string: str = at(1)
    type: ValueType | None = at(2)
    immediate_value: ImmediateValue | None = at(3, "value")
    blob_file_value: BlobFileValue | None = at(5, "value")


@dataclass(slots=True)
class NamedValueType:
    name: str = at(1)
    type: ValueType | None = at(2)


@dataclass(slots=True)
class Binding:
    name: str | None = at(1, "binding")
    value: Value | None = at(2, "binding")


@dataclass(slots=True)
class Argument:
    arguments: list[Binding] = at(1)


@dataclass(slots=True)
class Operation:
    type: str = at(1)
    inputs: dict[str, Argument] = at(2)
    outputs: list[NamedValueType] = at(3)
    blocks: list[Block] = at(4)
    attributes: dict[str, Value] = at(5)


@dataclass(slots=True)
class Block:
    inputs: list[NamedValueType] = at(1)
    outputs: list[str] = at(2)
    operations: list[Operation] = at(3)
    attributes: dict[str, Value] = at(4)


@dataclass(slots=True)
class Function:
    inputs: list[NamedValueType] = at(1)
    opset: str = at(2)
    block_specializations: dict[str, Block] = at(3)
    attributes: dict[str, Value] = at(4)


@dataclass(slots=True)
class Program:
    version: Int64 = at(1)
    functions: dict[str, Function] = at(2)
    doc_string: str = at(3)
    attributes: dict[str, Value] = at(4)


# ------------------------------------------------------------------------------------------------ FeatureTypes.proto

COLOR_SPACES = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE"}  # 40: in fp16


@dataclass(slots=True)
class Empty:
    """A message whose presence says everything."""


@dataclass(slots=True)
class SizeRange:
    lower_bound: UInt64 = at(1)
    upper_bound: Int64 = at(2)


@dataclass(slots=True)
class ImageSize:
    width: UInt64 = at(1)
    height: UInt64 = at(2)


@dataclass(slots=True)
class EnumeratedImageSizes:
    sizes: list[ImageSize] = at(1)


@dataclass(slots=True)
class ImageSizeRange:
    width_range: SizeRange | None = at(1)
    height_range: SizeRange | None = at(2)


@dataclass(slots=True)
class ImageFeatureType:
    width: Int64 = at(1)
    height: Int64 = at(2)
    color_space: Int32 = at(3)
    enumerated_sizes: EnumeratedImageSizes | None = at(21, "SizeFlexibility")
    image_size_range: ImageSizeRange | None = at(31, "SizeFlexibility")


@dataclass(slots=True)
class Shape:
    shape: list[Int64] = at(1)


@dataclass(slots=True)
class EnumeratedShapes:
    shapes: list[Shape] = at(1)


@dataclass(slots=True)
class ShapeRange:
    size_ranges: list[SizeRange] = at(1)


@dataclass(slots=True)
class ArrayFeatureType:
    shape: list[Int64] = at(1)
    data_type: Int32 = at(2)
    enumerated_shapes: EnumeratedShapes | None = at(21, "ShapeFlexibility")
    shape_range: ShapeRange | None = at(31, "ShapeFlexibility")
    int_default_value: Int32 | None = at(41, "defaultOptionalValue")
    float_default_value: Float | None = at(51, "defaultOptionalValue")
    double_default_value: Double | None = at(61, "defaultOptionalValue")


@dataclass(slots=True)
class DictionaryFeatureType:
    int64_key_type: Empty | None = at(1, "KeyType")
    string_key_type: Empty | None = at(2, "KeyType")


@dataclass(slots=True)
class FeatureType:
    int64_type: Empty | None = at(1, "Type")
    double_type: Empty | None = at(2, "Type")
    string_type: Empty | None = at(3, "Type")
    image_type: ImageFeatureType | None = at(4, "Type")
    multi_array_type: ArrayFeatureType | None = at(5, "Type")
    dictionary_type: DictionaryFeatureType | None = at(6, "Type")
    sequence_type: Empty | None = at(7, "Type")  # no model of images has one: what is in it is not read
    state_type: Empty | None = at(8, "Type")
    is_optional: bool = at(1000)


# ------------------------------------------------------------------------------------------------ Model.proto


@dataclass(slots=True)
class FeatureDescription:
    name: str = at(1)
    short_description: str = at(2)
    type: FeatureType | None = at(3)


@dataclass(slots=True)
class FunctionDescription:
    name: str = at(1)
    input: list[FeatureDescription] = at(2)
    output: list[FeatureDescription] = at(3)
    predicted_feature_name: str = at(4)
    predicted_probabilities_name: str = at(5)
    state: list[FeatureDescription] = at(6)


@dataclass(slots=True)
class Metadata:
    short_description: str = at(1)
    version_string: str = at(2)
    author: str = at(3)
    license: str = at(4)
    user_defined: dict[str, str] = at(100)


@dataclass(slots=True)
class ModelDescription:
    input: list[FeatureDescription] = at(1)
    output: list[FeatureDescription] = at(10)
    predicted_feature_name: str = at(11)
    predicted_probabilities_name: str = at(12)
    state: list[FeatureDescription] = at(13)
    functions: list[FunctionDescription] = at(20)
    default_function_name: str = at(21)
    training_input: list[FeatureDescription] = at(50)
    metadata: Metadata | None = at(100)


@dataclass(slots=True)
class Model:
    specification_version: Int32 = at(1)
    description: ModelDescription | None = at(2)
    is_updatable: bool = at(10)
    ml_program: Program | None = at(502)


def given(message: Any) -> str | None:
    """The name of the member that is set, in a message that is one union."""
    return next((field.name for field in fields(message) if getattr(message, field.name) is not None), None)
