"""Writes ONNX graphs node by node."""

from typing import Any

import numpy as np

from jaxrec.errors import ConfigError
from jaxrec.inference.edge.programs import MISSING

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError:
    raise ConfigError(MISSING.format("onnx")) from None

OPSET = 18
IR_VERSION = 9  # the oldest that has this opset, for older runtimes
Shape = tuple[int | str, ...]  # a name stands for any size


class Graph:
    """A graph under construction; a value is the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, name: str, dtype: type, shape: Shape) -> str:
        """An input of the graph."""
        self.inputs.append(_value(name, dtype, shape))
        return name

    def constant(self, array: Any, dtype: type | None = np.float32) -> str:
        """A tensor that the file holds; `dtype` None keeps that of the array."""
        name = f"c{len(self.constants)}"
        values = np.ascontiguousarray(array, dtype)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of 64-bit integers, as shapes and axes are."""
        return self.constant(values, np.int64)

    def external(self, array: np.ndarray, file: str, offset: int) -> str:
        """A tensor whose bytes lie in a file beside that of the graph."""
        name = f"c{len(self.constants)}"
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=dtype, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": file, "offset": offset, "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        self.constants.append(tensor)
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """The output of a node; `name` names it."""
        return self.ops(kind, *inputs, names=[name or f"t{len(self.nodes)}"], **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: list[str], **attributes: Any) -> list[str]:
        """The outputs of a node that has several."""
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def split(self, value: str, *sizes: int) -> list[str]:
        """Parts of the last axis of a matrix."""
        names = [f"t{len(self.nodes)}_{part}" for part in range(len(sizes))]
        return self.ops("Split", value, self.integers(*sizes), names=names, axis=1)

    def model(self, outputs: dict[str, tuple[type, Shape]]) -> bytes:
        """The finished file."""
        values = [_value(name, *about) for name, about in outputs.items()]
        graph = helper.make_graph(self.nodes, "jaxrec", self.inputs, values, self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        model.producer_name = "jaxrec"
        return model.SerializeToString()


def _value(name: str, dtype: type, shape: Shape) -> "onnx.ValueInfoProto":
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )
