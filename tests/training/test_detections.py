"""What the detector learns: blobs are found where they are, kept if both views see them, put into the right cell."""

from __future__ import annotations

import math

import torch

from keyglue.training.detections import (
    DetectionSettings,
    cell_labels,
    cell_loss,
    det_hessian,
    find_peaks,
    repeated,
    visible,
)
from keyglue.training.homographies import pixel_grid

SIZE = (64, 96)
EVERYWHERE = torch.ones(1, *SIZE, dtype=torch.bool)
SHIFT = torch.tensor([[[1.0, 0, 16.0], [0, 1, 0], [0, 0, 1]]])


def _blobs(*centres: tuple[int, int], amplitude: float = 0.5, sigma: float = 1.5) -> torch.Tensor:
    grid = pixel_grid(SIZE, torch.device("cpu"))
    image = torch.full((SIZE[0] * SIZE[1],), 0.3)
    for x, y in centres:
        image += amplitude * torch.exp(-((grid - torch.tensor([x, y])).square().sum(1)) / (2 * sigma**2))
    return image.reshape(1, 1, *SIZE)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_determinant_of_the_hessian_is_that_of_a_blurred_blob() -> None:
    """At the centre of a Gaussian of size s blurred by t: (A s^2 / (s^2 + t^2)^2)^2, times t^4."""
    amplitude, s, t = 0.5, 3.0, 1.5
    found = det_hessian(_blobs((40, 30), amplitude=amplitude, sigma=s), t)[0, 30, 40]
    expected = t**4 * (amplitude * s**2 / (s**2 + t**2) ** 2) ** 2
    assert math.isclose(float(found), expected, rel_tol=0.03)


def test_blobs_are_peaks_and_edges_are_not() -> None:
    image = _blobs((20, 20), (60, 40))
    image[:, :, :, 80:] += 0.4
    peaks, valid = find_peaks(det_hessian(image, 1.3), EVERYWHERE, DetectionSettings())
    assert sorted(peaks[valid].tolist()) == [[20, 20], [60, 40]]


def test_peaks_near_the_edge_of_view_and_photograph_do_not_count() -> None:
    image = _blobs((2, 30), (20, 20), (60, 40))
    inside = EVERYWHERE.clone()
    inside[:, :, 62:] = False
    peaks, valid = find_peaks(det_hessian(image, 1.3), inside, DetectionSettings())
    assert peaks[valid].tolist() == [[20, 20]]


def test_only_peaks_that_the_other_view_repeats_are_kept() -> None:
    peaks0 = torch.tensor([[[20.0, 20], [30, 40], [50, 50]]])
    peaks1 = torch.tensor([[[37.0, 21], [46, 43], [66, 50]]])
    valid = torch.tensor([[True, True, True]])
    kept, mapped = repeated(peaks0, valid, peaks1, torch.tensor([[True, True, False]]), SHIFT, 2.0)
    assert kept.tolist() == [[True, False, False]]
    assert mapped[0, 0].tolist() == [36, 20]


def test_cells_name_the_pixel_of_their_keypoint() -> None:
    peaks = torch.tensor([[[21.0, 18.0], [40.0, 40.0], [50.0, 30.0]]])
    kept = torch.tensor([[True, True, False]])
    labels = cell_labels(peaks, kept, torch.eye(3)[None], SIZE, EVERYWHERE, _generator())
    assert labels.shape == (1, 8, 12)
    assert labels[0, 2, 2] == (18 % 8) * 8 + 21 % 8
    assert labels[0, 5, 5] == 0
    assert labels[0, 3, 6] == 64
    assert (labels[0, [0, -1]] == -100).all()
    assert (labels[0, :, [0, -1]] == -100).all()


def test_ties_in_a_cell_are_drawn_at_random() -> None:
    peaks = torch.tensor([[[17.0, 17.0], [22.0, 22.0]]])
    generator = _generator()
    both = torch.ones(1, 2, dtype=torch.bool)
    found = {int(cell_labels(peaks, both, torch.eye(3)[None], SIZE, EVERYWHERE, generator)[0, 2, 2]) for _ in range(30)}
    assert found == {9, 54}


def test_cells_that_the_other_view_does_not_see_are_ignored() -> None:
    none = torch.zeros(1, 1, dtype=torch.bool)
    labels = cell_labels(torch.zeros(1, 1, 2), none, SHIFT, SIZE, EVERYWHERE, _generator())
    assert (labels[0, 1:-1, 1:10] == 64).all()  # centres up to 75.5 + 16 lie inside
    assert (labels[0, :, 10:] == -100).all()
    hole = EVERYWHERE.clone()
    hole[:, :, :40] = False
    labels = cell_labels(torch.zeros(1, 1, 2), none, torch.eye(3)[None], SIZE, hole, _generator())
    assert (labels[0, 1:-1, 5:-1] == 64).all()
    assert (labels[0, :, :5] == -100).all()


def test_visible_points_lie_in_the_view_on_the_photograph() -> None:
    inside = EVERYWHERE.clone()
    inside[:, :32] = False
    points = torch.tensor([[[5.0, 40.0], [5.0, 10.0], [-2.0, 40.0], [95.4, 63.4], [torch.nan, torch.nan]]])
    assert visible(points, inside).tolist() == [[True, False, False, True, False]]
    assert visible(points, inside, margin=8).tolist() == [[False, False, False, False, False]]


def test_loss_is_low_for_the_right_classes_and_zero_where_nothing_is_known() -> None:
    labels = torch.tensor([[[3, 64], [-100, 10]]])
    logits = torch.zeros(1, 65, 2, 2)
    assert math.isclose(float(cell_loss(logits, labels)), math.log(65), rel_tol=1e-5)
    for row, column in ((0, 0), (0, 1), (1, 1)):
        logits[0, int(labels[0, row, column]), row, column] = 20
    assert cell_loss(logits, labels) < 1e-4
    assert cell_loss(logits, torch.full_like(labels, -100)) == 0


def test_spread_labels_prefer_places_near_the_keypoint() -> None:
    labels = torch.tensor([[[27]]])  # x 3, y 3
    losses = []
    for guess in (27, 28, 63, 64):
        logits = torch.zeros(1, 65, 1, 1)
        logits[0, guess] = 5.0
        losses.append(float(cell_loss(logits, labels, spread=1.0)))
    assert losses == sorted(losses)
    assert losses[1] < losses[2] - 0.3
    plain = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(cell_loss(logits, labels), plain)
    torch.testing.assert_close(cell_loss(logits, labels, spread=0.1), plain)
