"""What the detector learns: blobs are found where they are, kept if both views see them, put into the right cell."""

from __future__ import annotations

import math

import torch

from keyglue.images.coordinates import pixel_grid
from keyglue.keypoints.refinement import det_hessian
from keyglue.training.detections import (
    CellLabels,
    DetectionSettings,
    cell_labels,
    cell_loss,
    find_peaks,
    repeated,
    visible,
)

SIZE = (64, 96)
EVERYWHERE = torch.ones(1, *SIZE, dtype=torch.bool)
SHIFT = torch.tensor([[[1.0, 0, 16.0], [0, 1, 0], [0, 0, 1]]])


def _blobs(*centres: tuple[float, float], amplitude: float = 0.5, sigma: float = 1.5) -> torch.Tensor:
    grid = pixel_grid(SIZE, torch.device("cpu"))
    image = torch.full((SIZE[0] * SIZE[1],), 0.3)
    for x, y in centres:
        image += amplitude * torch.exp(-((grid - torch.tensor([x, y])).square().sum(1)) / (2 * sigma**2))
    return image.reshape(1, 1, *SIZE)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_blobs_are_peaks_and_edges_are_not() -> None:
    image = _blobs((20, 20), (60, 40))
    image[:, :, :, 80:] += 0.4
    peaks, valid = find_peaks(det_hessian(image, 1.3), EVERYWHERE, DetectionSettings())
    torch.testing.assert_close(peaks[valid].sort(dim=0).values, torch.tensor([[20.0, 20], [60, 40]]), atol=0.01, rtol=0)


def test_peaks_lie_between_pixels_where_blobs_do() -> None:
    centres = [(20.3, 20.0), (60.0, 39.6), (40.45, 30.55)]
    peaks, valid = find_peaks(det_hessian(_blobs(*centres, sigma=2.0), 2.0), EVERYWHERE, DetectionSettings())
    found = peaks[valid]
    assert len(found) == 3
    assert torch.cdist(found, torch.tensor(centres)).amin(dim=1).max() < 0.08


def test_peaks_near_the_edge_of_view_and_photograph_do_not_count() -> None:
    image = _blobs((2, 30), (20, 20), (60, 40))
    inside = EVERYWHERE.clone()
    inside[:, :, 62:] = False
    peaks, valid = find_peaks(det_hessian(image, 1.3), inside, DetectionSettings())
    assert peaks[valid].round().tolist() == [[20, 20]]


def test_only_peaks_that_the_other_view_repeats_are_kept_where_both_agree() -> None:
    peaks0 = torch.tensor([[[20.0, 20], [30, 40], [50, 50]]])
    peaks1 = torch.tensor([[[37.0, 21], [46, 43], [66, 50]]])
    valid = torch.tensor([[True, True, True]])
    back = torch.linalg.inv(SHIFT)
    kept, agreed = repeated(peaks0, valid, peaks1, torch.tensor([[True, True, False]]), SHIFT, back, 2.0)
    assert kept.tolist() == [[True, False, False]]
    assert agreed.tolist() == [[[20.5, 20.5], [30, 40], [50, 50]]]


def test_peaks_that_agree_only_in_the_smaller_view_are_not_kept() -> None:
    smaller = torch.diag(torch.tensor([0.25, 0.25, 1]))[None]
    peaks0, peaks1 = torch.tensor([[[40.0, 40], [80, 80]]]), torch.tensor([[[11.5, 10.0], [20.5, 20]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    kept, agreed = repeated(peaks0, valid, peaks1, valid, smaller, torch.linalg.inv(smaller), 2.0)
    assert kept.tolist() == [[False, True]]  # 6 pixels apart in the larger view, and 2
    assert agreed[0, 1].tolist() == [81, 80]


def test_cells_name_the_pixel_of_their_keypoint_and_its_place() -> None:
    points = torch.tensor([[[21.25, 17.75], [39.6, 40.0], [50.0, 30.0]]])
    kept = torch.tensor([[True, True, False]])
    labels = cell_labels(points, kept, torch.eye(3)[None], SIZE, EVERYWHERE, _generator())
    assert labels.classes.shape == (1, 8, 12)
    assert labels.classes[0, 2, 2] == (18 % 8) * 8 + 21 % 8
    assert labels.places[0, 2, 2].tolist() == [5.25, 1.75]
    assert labels.classes[0, 5, 5] == 0
    assert labels.classes[0, 3, 6] == 64
    assert (labels.classes[0, [0, -1]] == -100).all()
    assert (labels.classes[0, :, [0, -1]] == -100).all()


def test_ties_in_a_cell_are_drawn_at_random() -> None:
    peaks = torch.tensor([[[17.0, 17.0], [22.0, 22.0]]])
    generator = _generator()
    both = torch.ones(1, 2, dtype=torch.bool)
    found = [cell_labels(peaks, both, torch.eye(3)[None], SIZE, EVERYWHERE, generator) for _ in range(30)]
    assert {int(labels.classes[0, 2, 2]) for labels in found} == {9, 54}
    assert all(
        labels.places[0, 2, 2].tolist() == ([1, 1] if labels.classes[0, 2, 2] == 9 else [6, 6]) for labels in found
    )


def test_cells_that_the_other_view_does_not_see_are_ignored() -> None:
    none = torch.zeros(1, 1, dtype=torch.bool)
    labels = cell_labels(torch.zeros(1, 1, 2), none, SHIFT, SIZE, EVERYWHERE, _generator()).classes
    assert (labels[0, 1:-1, 1:10] == 64).all()  # centres up to 75.5 + 16 lie inside
    assert (labels[0, :, 10:] == -100).all()
    hole = EVERYWHERE.clone()
    hole[:, :, :40] = False
    labels = cell_labels(torch.zeros(1, 1, 2), none, torch.eye(3)[None], SIZE, hole, _generator()).classes
    assert (labels[0, 1:-1, 5:-1] == 64).all()
    assert (labels[0, :, :5] == -100).all()


def test_visible_points_lie_in_the_view_on_the_photograph() -> None:
    inside = EVERYWHERE.clone()
    inside[:, :32] = False
    points = torch.tensor([[[5.0, 40.0], [5.0, 10.0], [-2.0, 40.0], [95.4, 63.4], [torch.nan, torch.nan]]])
    assert visible(points, inside).tolist() == [[True, False, False, True, False]]
    assert visible(points, inside, margin=8).tolist() == [[False, False, False, False, False]]


def _held(classes: list[list[list[int]]]) -> CellLabels:
    """Return cells whose keypoints lie on pixels."""
    found = torch.tensor(classes)
    return CellLabels(found, torch.stack([found % 8, found // 8], dim=-1).float())


def test_loss_is_low_for_the_right_classes_and_zero_where_nothing_is_known() -> None:
    labels = _held([[[3, 64], [-100, 10]]])
    logits = torch.zeros(1, 65, 2, 2)
    assert math.isclose(float(cell_loss(logits, labels)), math.log(65), rel_tol=1e-5)
    for row, column in ((0, 0), (0, 1), (1, 1)):
        logits[0, int(labels.classes[0, row, column]), row, column] = 20
    assert cell_loss(logits, labels) < 1e-4
    unknown = labels._replace(classes=torch.full_like(labels.classes, -100))
    assert cell_loss(logits, unknown) == 0


def test_loss_is_least_for_a_heat_map_whose_centre_of_mass_is_the_keypoint() -> None:
    labels = CellLabels(torch.tensor([[[27]]]), torch.tensor([[[[3.25, 2.5]]]]))
    logits = torch.zeros(1, 65, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        cell_loss(logits, labels).backward()
        optimizer.step()
    shares = logits.detach().softmax(dim=1)[0, :64, 0, 0]
    place = shares @ pixel_grid((8, 8), torch.device("cpu"))
    torch.testing.assert_close(place, torch.tensor([3.25, 2.5]), atol=0.02, rtol=0)
    assert (shares > 0.05).sum() == 4


def test_spread_labels_prefer_places_near_the_keypoint() -> None:
    labels = _held([[[27]]])  # x 3, y 3
    losses = []
    for guess in (27, 28, 63, 64):
        logits = torch.zeros(1, 65, 1, 1)
        logits[0, guess] = 5.0
        losses.append(float(cell_loss(logits, labels, spread=1.0)))
    assert losses == sorted(losses)
    assert losses[1] < losses[2] - 0.3
    plain = torch.nn.functional.cross_entropy(logits, labels.classes)
    torch.testing.assert_close(cell_loss(logits, labels), plain)
    torch.testing.assert_close(cell_loss(logits, labels, spread=0.1), plain)
