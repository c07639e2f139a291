"""A trained matcher for another detector of the same kind: its input projection fitted anew.

Shapes: N keypoints, D descriptor, W width of the matcher.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from keyglue.base.errors import ConfigError
from keyglue.keypoints.sampling import sample_descriptors
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training.homographies import ViewSettings, random_views, render_views
from keyglue.training.photometric import PhotometricSettings, change_light
from keyglue.training.photos import Photos
from keyglue.training.precision import autocast
from keyglue.training.task import generator_for

_VIEWS = 80
_RIDGE = 1e-5


def adapt_projection(
    matcher: LightGlueMatcher,
    old: SuperPointForKeypointDetection,
    new: SuperPointForKeypointDetection,
    photos: Photos,
    settings: ViewSettings,
    seed: int = 0,
) -> float:
    """Fit a matcher's input projection P to a new detector, so that its layers see what they were trained on.

    P' = argmin |P' d_new - P d_old|^2 + ridge, over descriptors of both detectors at the new one's keypoints.

    Args:
        matcher: Trained for ``old``; it is changed.
        old: The detector that it was trained for.
        new: The detector that it is to be used with.
        photos: Photographs to take views of; copies of the detectors look at them on their device.
        settings: What the views are like.
        seed: Of the choice of views.

    Returns:
        The share of the projected descriptors' variance that the new projection explains.

    Raises:
        ConfigError: The matcher has no input projection, or the detectors' descriptors differ in length.
    """
    projection = matcher.input_projection
    if not isinstance(projection, nn.Linear):
        raise ConfigError(
            "this matcher takes descriptors as they are, so there is no projection that could be fitted to another "
            "detector. Train a new one for it (lightglue_homography)."
        )
    if old.config.descriptor_decoder_dim != new.config.descriptor_decoder_dim:
        raise ConfigError(
            f"the detectors' descriptors differ in length: {old.config.descriptor_decoder_dim} and "
            f"{new.config.descriptor_decoder_dim}. Train a new matcher (lightglue_homography)."
        )
    generator = generator_for(seed, -2)
    before, after = _descriptors(old, new, photos, settings, generator)
    wanted = before @ projection.weight.detach().cpu().double().mT
    square = after.mT @ after
    square.diagonal().add_(_RIDGE * len(after))
    fitted = torch.linalg.solve(square, after.mT @ wanted)
    with torch.no_grad():
        projection.weight.copy_(fitted.mT)
    unexplained = (after @ fitted - wanted).square().sum() / (wanted - wanted.mean(dim=0)).square().sum()
    return 1 - float(unexplained)


def _descriptors(
    old: SuperPointForKeypointDetection,
    new: SuperPointForKeypointDetection,
    photos: Photos,
    settings: ViewSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return both detectors' descriptors (N, D) at the new one's keypoints in views, float64 on the CPU."""
    old, new = (copy.deepcopy(detector).to(photos.device) for detector in (old, new))
    before: list[Tensor] = []
    after: list[Tensor] = []
    for index in torch.randint(len(photos), (_VIEWS,), generator=generator).tolist():
        drawn = random_views(photos.sizes([index]), 1, settings, generator)[:, 0]
        clean, _ = render_views(photos, [index], drawn, settings.size, torch.zeros(1))
        with torch.no_grad():
            image = change_light(clean, PhotometricSettings(), generator)
            features = new.extract(image[0])
            with autocast(image.device):
                described_cells = old.descriptor_decoder(old.encoder(image)[-1])[0]
            described = sample_descriptors(features.keypoints, described_cells, old.config.cell)
        before.append(described.cpu().double())
        after.append(features.descriptors.cpu().double())
    return torch.cat(before), torch.cat(after)
