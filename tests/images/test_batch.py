"""The mapping that a processor returns."""

from __future__ import annotations

import copy
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError, MissingDependencyError
from keyglue.images.batch import BatchFeature
from keyglue.images.enums import TensorType


def make(**kwargs) -> BatchFeature:
    return BatchFeature(
        {"pixel_values": np.ones((2, 3), np.float32), "image_sizes": np.array([[1, 2]], np.int64)}, **kwargs
    )


def test_it_is_a_mapping_with_attributes():
    batch = make()
    assert batch.pixel_values is batch["pixel_values"]
    assert list(batch) == list(batch.keys()) == ["pixel_values", "image_sizes"]
    assert len(batch) == 2
    assert "pixel_values" in batch
    assert "labels" not in batch
    assert batch.get("labels") is None
    assert [name for name, _ in batch.items()] == list(batch)
    assert batch.values()
    assert dict(**batch) == batch.data
    with pytest.raises(AttributeError, match="labels"):
        _ = batch.labels
    with pytest.raises(KeyError):
        _ = batch["labels"]
    assert not hasattr(BatchFeature(), "pixel_values")


def test_pickle_and_copy():
    for clone in (pickle.loads(pickle.dumps(make())), copy.deepcopy(make()), copy.copy(make())):
        assert isinstance(clone, BatchFeature)
        assert clone.pixel_values.shape == (2, 3)


@pytest.mark.parametrize("kind", ["pt", TensorType.PYTORCH])
def test_torch(kind):
    batch = make(tensor_type=kind)
    assert batch.pixel_values.dtype == torch.float32
    assert batch.image_sizes.dtype == torch.int64
    assert isinstance(batch.convert_to_tensors("np").pixel_values, np.ndarray)


def test_lists_of_arrays_become_one_tensor_if_they_fit():
    assert BatchFeature({"x": [np.zeros(3), torch.ones(3)]}, "pt").x.shape == (2, 3)
    with pytest.raises(InputError, match="different shapes"):
        BatchFeature({"x": [np.zeros(3), np.zeros(4)]}, "np")


def test_to_casts_only_floats():
    batch = make(tensor_type="pt")
    assert batch.to(torch.float16) is batch
    assert batch.pixel_values.dtype == torch.float16
    assert batch.image_sizes.dtype == torch.int64
    assert batch.to("cpu", torch.float64).pixel_values.dtype == torch.float64
    assert batch.to(torch.float32, "cpu").pixel_values.dtype == torch.float32
    assert batch.to(device="cpu", dtype="bfloat16").pixel_values.dtype == torch.bfloat16
    assert batch.to(torch.device("meta")).image_sizes.device.type == "meta"
    with pytest.raises(InputError, match="device"):
        batch.to(1.5)
    with pytest.raises(InputError, match="nowhere"):
        batch.to("nowhere")


@pytest.mark.parametrize(("kind", "library"), [("tf", "tensorflow"), ("jax", "jax")])
def test_libraries_that_are_not_installed(kind, library, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow" if kind == "tf" else "jax.numpy", None)
    with pytest.raises(MissingDependencyError, match=f"pip install {library}"):
        make(tensor_type=kind)


@pytest.mark.parametrize(
    ("kind", "module", "function"), [("tf", "tensorflow", "convert_to_tensor"), ("jax", "jax.numpy", "asarray")]
)
def test_other_libraries_get_numpy_arrays(kind, module, function, monkeypatch):
    stub = types.ModuleType(module)
    setattr(stub, function, lambda array: ("made", array))
    if "." in module:
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType("jax"))
    monkeypatch.setitem(sys.modules, module, stub)
    made, array = make(tensor_type=kind).pixel_values
    assert made == "made"
    assert isinstance(array, np.ndarray)


def test_unknown_library():
    with pytest.raises(InputError, match="'pt'"):
        make(tensor_type="mxnet")
