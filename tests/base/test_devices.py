"""When inference may choose bfloat16, and values that are made from parameters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from keyglue.base.derived import Derived
from keyglue.base.devices import has_fast_bfloat16


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("", True), ("avx512_core_vnni", False), ("AVX2", False), ("AVX512_CORE_BF16", True), ("DEFAULT", True)],
)
def test_bfloat16_is_fast_only_where_onednn_may_use_it(monkeypatch, limit, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_fast_bfloat16(torch.device("cpu")) == expected
    assert not has_fast_bfloat16(torch.device("meta"))


def test_derived_values_are_made_once_and_again_after_every_kind_of_change():
    layer = torch.nn.Linear(3, 2)
    derived: Derived[int] = Derived()
    made = []

    def get(settings=None):
        def make():
            made.append(1)
            return len(made)

        return derived.get(layer.parameters(), make, settings)

    assert [get(), get()] == [1, 1]
    with torch.no_grad():
        layer.weight.add_(1)
    assert [get(), get()] == [2, 2]
    layer.bias.data.add_(1)
    assert get() == 3
    layer.weight.data = layer.weight.data.clone()
    assert get() == 4
    layer.bias = torch.nn.Parameter(layer.bias.detach().clone())
    assert get() == 5
    assert [get("other"), get("other")] == [6, 6]
    layer.double()
    assert get("other") == 7
    for other in (copy.deepcopy(derived), pickle.loads(pickle.dumps(derived))):
        assert other.get(layer.parameters(), lambda: -1) == -1
