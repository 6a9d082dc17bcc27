"""The words for a function, the tensors among its arguments, and maps as rows and columns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmmcnn.featuremaps.tracing import Tracer, by_filter, function_name, tensors


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.relu_, "relu"),
        (F.relu, "relu"),
        (torch.Tensor.add_, "add"),
        (torch.Tensor.__iadd__, "add"),
        (torch.Tensor.__rsub__, "rsub"),
        (torch.Tensor.__getitem__, "getitem"),
    ],
)
def test_a_function_has_one_name_in_all_its_forms(function, name):
    assert function_name(function).replace("rsub", "sub") == name.replace("rsub", "sub")


def test_tensors_are_found_inside_lists_and_tuples():
    one, two, three = (torch.zeros(n) for n in (1, 2, 3))
    assert [len(tensor) for tensor in tensors([one, [two, (three, 4)], "five"])] == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((2, 3, 4, 5), 1, (2, 3, 4, 5)),
        ((2, 4, 5, 3), 3, (2, 3, 4, 5)),
        ((2, 3), 1, (2, 3, 1, 1)),
        ((2, 3, 7), 1, (2, 3, 1, 7)),
        ((2, 7, 3), 2, (2, 3, 1, 7)),
        ((2, 3, 4, 5, 6), 1, (2, 3, 20, 6)),
    ],
)
def test_maps_are_rows_and_columns(shape, axis, expected):
    maps = torch.rand(shape)
    found = by_filter(maps, axis)
    assert found.shape == expected
    assert torch.equal(found.flatten(2), maps.movedim(axis, 1).reshape(2, 3, -1))


def test_a_trail_says_each_step_and_where_its_channels_are():
    """The channels are found again on another axis by their step in memory, and given up where that is not clear."""
    visits = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    tracer = Tracer(model, 2, lambda trail, maps, place: visits.append((str(trail), trail.axis, maps.shape, place)))
    with torch.no_grad(), tracer.hooked(), tracer:
        maps = model(torch.rand(2, 3, 6, 6))
        words = maps.flatten(2).transpose(1, 2)
        F.relu(F.layer_norm(words, (4,)))
        F.relu(maps.permute(0, 2, 3, 1).reshape(2, 32, 2))
    assert visits == [
        ("its own output", 1, (2, 4, 4, 4), "own"),
        ("after flatten", 1, (2, 4, 16), ""),
        ("after flatten, transpose", 2, (2, 16, 4), ""),
        ("after flatten, transpose, layer_norm", 2, (2, 16, 4), "normalised"),
        ("after flatten, transpose, layer_norm, relu", 2, (2, 16, 4), "activated"),
    ]
    assert tracer.calls == {"0": 1}
