"""Which files an ONNX model reads, held against the onnx package: its schema, and models that it writes."""

from __future__ import annotations

import pytest

from edgeloop.runtime.engines.onnx.graph import MESSAGES, REPEATED, External, external_data, operators

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

NAMES = {
    "OperatorSet": "OperatorSetIdProto",
    "Entry": "StringStringEntryProto",
    "TensorType": "TypeProto.Tensor",
    "Shape": "TensorShapeProto",
    "Dimension": "TensorShapeProto.Dimension",
}
SCALARS = {9: "text", 12: "bytes", **dict.fromkeys((1, 2, 3, 4, 5, 14), "number")}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_fields_are_those_of_onnx(message):
    inner = onnx
    for part in NAMES.get(message, f"{message}Proto").split("."):
        inner = getattr(inner, part)
    theirs = {f.number: f for f in inner.DESCRIPTOR.fields}
    for number, (name, holds) in MESSAGES[message].items():
        field = theirs[number]
        assert field.name == name
        assert field.is_repeated == (name in REPEATED)
        if field.message_type is None:
            assert holds == SCALARS[field.type]
        else:
            wanted = NAMES.get(holds, f"{holds}Proto")
            assert field.message_type.full_name == f"onnx.{wanted}"


def test_no_message_with_tensors_is_left_out():
    """A field that the table lacks leads to no tensor: nothing can be read through it."""
    lacking = {
        (message.DESCRIPTOR.name, field.message_type.name)
        for message, ours in ((onnx.ModelProto, "Model"), (onnx.GraphProto, "Graph"), (onnx.NodeProto, "Node"),
                              (onnx.AttributeProto, "Attribute"), (onnx.FunctionProto, "Function"),
                              (onnx.TrainingInfoProto, "TrainingInfo"), (onnx.SparseTensorProto, "SparseTensor"))
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None and field.number not in MESSAGES[ours]
    }  # fmt: skip
    assert {held for _, held in lacking} <= {
        "DeviceConfigurationProto",
        "TensorAnnotation",
        "NodeDeviceConfigurationProto",
        "TypeProto",
    }


def elsewhere(name, location, **more):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL, dims=[2])
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(name, *initializers, nodes=()):
    return helper.make_graph(list(nodes), name, [], [], initializer=list(initializers))


def test_tensors_in_every_place_are_found():
    inner = graph("inner", elsewhere("in a branch", "branch"))
    sparse = onnx.SparseTensorProto(values=elsewhere("sparse", "values"), indices=elsewhere("at", "indices"))
    node = onnx.NodeProto(op_type="If")
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
    node.attribute.add(name="value").t.CopyFrom(elsewhere("in an attribute", "attribute"))
    node.attribute.add(name="more").tensors.append(elsewhere("in a list", "list"))
    node.attribute.add(name="graphs").graphs.append(graph("g", elsewhere("in graphs", "graphs")))
    node.attribute.add(name="sparse").sparse_tensor.CopyFrom(sparse)
    node.attribute.add(name="sparses").sparse_tensors.append(sparse)
    model = helper.make_model(graph("main", elsewhere("own", "main", offset=8, length=16), nodes=[node]))
    model.graph.sparse_initializer.append(sparse)
    model.graph.initializer.append(helper.make_tensor("inline", TensorProto.FLOAT, [1], [1.0]))
    function = model.functions.add(name="f", domain="d")
    function.node.append(node)
    function.attribute_proto.add(name="default").t.CopyFrom(elsewhere("a default", "default"))
    model.training_info.add().algorithm.CopyFrom(graph("t", elsewhere("training", "training")))
    found = list(external_data(model.SerializeToString()))
    assert External("own", "main", 8, 16) in found
    assert {e.location for e in found} == {
        "main", "values", "indices", "branch", "attribute", "list", "graphs", "default", "training",
    }  # fmt: skip
    assert "inline" not in {e.tensor for e in found}


def test_operators_and_functions_are_found():
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Gelu", ["y"], ["z"], domain="other"),
    ]
    model = helper.make_model(graph("main", nodes=nodes), producer_name="Mul")
    model.functions.add(name="Twice", domain="d").node.append(helper.make_node("If", [], []))
    assert sorted(operators(model.SerializeToString())) == [
        ("", "Add"),
        ("function", "Twice"),
        ("other", "Gelu"),
    ]
    again = (
        model.SerializeToString() + onnx.ModelProto(graph=graph("more", nodes=nodes[:1])).SerializeToString()
    )
    assert sorted(operators(again))[:2] == [("", "Add"), ("", "Add")]  # graphs that come twice are one


def test_external_without_a_location():
    tensor = TensorProto(name="x", data_location=TensorProto.EXTERNAL)
    (found,) = external_data(helper.make_model(graph("main", tensor)).SerializeToString())
    assert found == External("x", "", 0, None)


@pytest.mark.parametrize(
    "data", [b"ORTM" * 9, b"\x3a\x05\x00", b"\x3a" + b"\xff" * 11, b"\x38\x01", b"PK\x03\x04"]
)
def test_what_is_no_model_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"byte|wire"):
        list(external_data(data))
    with pytest.raises(ValueError, match=r"byte|wire"):
        list(operators(data))


def test_graphs_inside_of_graphs_end():
    inner = graph("deepest", elsewhere("x", "y"))
    for _ in range(12):
        node = onnx.NodeProto(op_type="If")
        node.attribute.add(name="then_branch").g.CopyFrom(inner)
        inner = graph("g", nodes=[node])
    with pytest.raises(ValueError, match="nested"):
        list(external_data(helper.make_model(inner).SerializeToString()))
