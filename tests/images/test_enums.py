"""Words of the API are accepted as enum, text or number, ours or another library's."""

from __future__ import annotations

from enum import Enum

import pytest
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.images.enums import (
    ChannelDimension,
    TensorType,
    resolve_channel_dimension,
    resolve_resampling,
    resolve_tensor_type,
)


class Foreign(str, Enum):
    LAST = "channels_last"
    NUMPY = "np"
    BICUBIC = "bicubic"
    NEAREST = "nearest-exact"


@pytest.mark.parametrize("value", [ChannelDimension.LAST, "channels_last", Foreign.LAST])
def test_channel_dimension(value):
    assert resolve_channel_dimension(value) is ChannelDimension.LAST


@pytest.mark.parametrize("value", [TensorType.NUMPY, "np", Foreign.NUMPY])
def test_tensor_type(value):
    assert resolve_tensor_type(value) is TensorType.NUMPY


@pytest.mark.parametrize("value", [Image.Resampling.BICUBIC, 3, "bicubic", "BICUBIC", Foreign.BICUBIC])
def test_resampling(value):
    assert resolve_resampling(value) is Image.Resampling.BICUBIC


def test_all_filters_by_number_and_name():
    for filter_ in Image.Resampling:
        assert resolve_resampling(int(filter_)) is filter_
        assert resolve_resampling(filter_.name.lower()) is filter_
    assert resolve_resampling(Foreign.NEAREST) is Image.Resampling.NEAREST


@pytest.mark.parametrize(
    ("resolve", "value", "accepted"),
    [
        (resolve_channel_dimension, "last", "channels_first"),
        (resolve_tensor_type, "torch", "'pt'"),
        (resolve_tensor_type, None, "'pt'"),
        (resolve_resampling, 99, "bilinear"),
        (resolve_resampling, True, "bilinear"),
        (resolve_resampling, "linear", "bilinear"),
    ],
)
def test_others_are_refused_with_what_is_accepted(resolve, value, accepted):
    with pytest.raises(InputError, match=accepted):
        resolve(value)
