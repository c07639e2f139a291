"""Training SuperPoint: detector and descriptor together, on pairs of views of one photograph.

Shapes: B pairs, N points a pair, D descriptor, h w pixels.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from keyglue.keypoints.refinement import det_hessian
from keyglue.keypoints.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.training.convolutions import head_inputs, kernels_for
from keyglue.training.detections import (
    CELL,
    CellLabels,
    DetectionSettings,
    cell_labels,
    cell_loss,
    find_peaks,
    repeated,
    visible,
)
from keyglue.training.export import write_detector
from keyglue.training.homographies import ViewSettings, between_views, random_views, render_views, warp
from keyglue.training.photometric import PhotometricSettings, change_light
from keyglue.training.photos import Photos
from keyglue.training.precision import autocast
from keyglue.training.task import Task, generator_for
from keyglue.training.validation import HeldOutPairs, detector_scores

# Vectors are divided by at least this: a black patch has no direction, and its gradient would be unbounded.
NORM_EPS = 1e-2
_RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperPointSettings:
    """What SuperPoint is trained on, and how its losses are weighed.

    Attributes:
        config: Settings of the network.
        pairs: Pairs of views a batch.
        views: How the views of a photograph differ.
        light: Photometric changes.
        detections: What the detector is to find.
        detector_weight: Weight of the detector's loss beside the descriptor's.
        points: Points a pair that the descriptors are compared at; half of them keypoints, the rest anywhere.
        apart: Points closer than this many pixels are not told apart.
        temperature: Inverse temperature of the descriptors' softmax at the start; it is learned.
        detector_first: Batches at the beginning in which the detector learns alone, on views without photometric
            changes. It has to learn places inside a cell through three poolings, which the descriptors' far larger
            gradients keep it from.
        settling: Batches after that in which zoom, rotation and photometric changes grow to what they are to be, and
            the labels' spread shrinks to nothing.
        label_spread: Standard deviation in pixels of the detector's labels at the beginning.
    """

    config: SuperPointConfig = dataclasses.field(
        default_factory=lambda: SuperPointConfig(
            keypoint_threshold=0.0005, max_keypoints=1024, refinement_radius=3, refinement_sigma=2.0
        )
    )
    pairs: int = 6
    views: ViewSettings = dataclasses.field(default_factory=lambda: ViewSettings(size=(160, 208)))
    light: PhotometricSettings = dataclasses.field(default_factory=PhotometricSettings)
    detections: DetectionSettings = dataclasses.field(default_factory=DetectionSettings)
    detector_weight: float = 3.0
    points: int = 240
    apart: float = 6.0
    temperature: float = 20.0
    detector_first: int = 300
    settling: int = 2000
    label_spread: float = 1.0

    def settled(self, index: int) -> float:
        """Return how far the beginning is over at a batch: -1 where the detector learns alone, then 0 to 1."""
        if index < self.detector_first:
            return -1.0
        return min(1.0, (index - self.detector_first) / max(self.settling, 1))

    def views_at(self, settled: float) -> ViewSettings:
        """Return how views differ when so much of the beginning is over: first a third of the rotation and no zoom."""
        share = max(settled, 0.0)
        views = self.views
        return dataclasses.replace(
            views, max_angle=views.max_angle * (1 + 2 * share) / 3, zoom=1 + (views.zoom - 1) * share
        )


class ScaledStandardisation(nn.Module):
    """Gives each filter mean 0 and a learned size: gain (w - mean) / (std sqrt(fan_in)).

    It takes the place of batch normalisation (Brock et al., "Characterizing signal propagation to close the performance
    gap in unnormalized ResNets", ICLR 2021) and is a function of the weights alone, so it folds into them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the filters (C', C, kh, kw) that the convolution uses."""
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (weight - mean) * torch.rsqrt(variance * weight[0].numel() + 1e-8) * self.gain

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Adopt the size of given filters; their means are lost."""
        variance = torch.var(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        with torch.no_grad():
            self.gain.copy_((variance * weight[0].numel() + 1e-8).sqrt())
        return weight


class SuperPointNetwork(nn.Module):
    """SuperPoint as it is trained, with the temperature of the descriptor loss.

    Args:
        model: The network; its weights are the start.
        temperature: Inverse temperature at the start.
    """

    def __init__(self, model: SuperPointForKeypointDetection, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @classmethod
    def from_scratch(cls, config: SuperPointConfig, temperature: float) -> SuperPointNetwork:
        """Return a network with random weights, its 3 x 3 convolutions standardised, activations of about unit size."""
        model = SuperPointForKeypointDetection(config)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                # Gray values vary by about a quarter; what comes later by about one.
                gain = 4.0 if fan_in == module.kernel_size[0] * module.kernel_size[1] else _RELU_GAIN
                nn.init.normal_(module.weight, std=gain * fan_in**-0.5)
                if name.endswith("conv_score_b"):
                    nn.init.normal_(module.weight, std=0.1 * fan_in**-0.5)
                if module.kernel_size != (1, 1):
                    parametrize.register_parametrization(module, "weight", ScaledStandardisation(module.out_channels))
        return cls(model, temperature)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 1, h, w) to logits (B, 65, h/8, w/8) and descriptors (B, D, h/8, w/8), not normalised."""
        detector, head = self.model.keypoint_decoder, self.model.descriptor_decoder
        kernels = kernels_for(self.model, images)
        if kernels is not None:
            scores, descriptors = head_inputs(self.model, images, kernels)
            return detector.conv_score_b(scores), head.conv_descriptor_b(descriptors)
        encoded = self.model.encoder(images)[-1]
        return detector.logits(encoded), head.conv_descriptor_b(F.relu(head.conv_descriptor_a(encoded)))

    def folded(self) -> SuperPointForKeypointDetection:
        """Return plain SuperPoint, on the CPU, that computes the same."""
        plain = SuperPointForKeypointDetection(self.model.config)
        modules = dict(self.model.named_modules())
        with torch.no_grad():
            for name, module in plain.named_modules():
                if isinstance(module, nn.Conv2d):
                    trained = cast("nn.Conv2d", modules[name])
                    module.weight.copy_(trained.weight)
                    cast("Tensor", module.bias).copy_(cast("Tensor", trained.bias))
        return plain.eval()


def sample_map(descriptors: Tensor, points: Tensor) -> Tensor:
    """Return descriptors (B, N, D) of unit length at points (B, N, 2), from a map (B, D, h/8, w/8) of any length.

    This is ``keyglue.keypoints.sampling.sample_descriptors`` for a batch, with a bound on the gradient.
    """
    height, width = descriptors.shape[2:]
    normalised = F.normalize(descriptors.float(), dim=1, eps=NORM_EPS)
    extent = points.new_tensor([width, height]) * CELL - CELL / 2 - 0.5
    grid = (points - CELL / 2 + 0.5) / extent * 2 - 1
    sampled = F.grid_sample(normalised, grid[:, None], mode="bilinear", align_corners=True)[:, :, 0]
    return F.normalize(sampled, dim=1, eps=NORM_EPS).mT


def descriptor_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points0: Tensor,
    points1: Tensor,
    valid: Tensor,
    temperature: Tensor,
    apart: float,
) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of the double softmax, and the share of points whose nearest is the right one.

    -log softmax_j(t S)_ii / 2 - log softmax_i(t S)_ii / 2 with S_ij = d0_i . d1_j; wrong pairs (i, j) that lie close to
    the right one in either image, and points that don't count, are left out of the sums.

    Args:
        descriptors0: (B, N, D) of unit length.
        descriptors1: (B, N, D) those of the same points in the other view.
        points0: (B, N, 2) where they are.
        points1: (B, N, 2) where they are in the other view.
        valid: (B, N) booleans, the points that count.
        temperature: () inverse temperature t.
        apart: Distance in pixels.
    """
    similarity = temperature * descriptors0 @ descriptors1.mT
    same = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    close = (torch.cdist(points0, points0) < apart) | (torch.cdist(points1, points1) < apart)
    left_out = (close | ~(valid[:, :, None] & valid[:, None, :])) & ~same
    similarity = similarity.masked_fill(left_out, -torch.inf)
    right = similarity.diagonal(dim1=1, dim2=2)
    nll = 0.5 * (similarity.logsumexp(dim=2) + similarity.logsumexp(dim=1)) - right
    count = valid.sum().clamp(min=1)
    correct = (similarity.argmax(dim=2) == torch.arange(valid.shape[1], device=valid.device)) & valid
    return (nll * valid).sum() / count, correct.sum() / count


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Pairs of views and what is known of them.

    Attributes:
        images: (2 B, 1, h, w), all first views, then all second ones.
        cells: What the cells of both views hold.
        points0: (B, N, 2) points of the first views.
        points1: (B, N, 2) the same points in the second views.
        valid: (B, N) booleans, the points that count.
        settled: How far the beginning is over; see ``SuperPointSettings.settled``.
    """

    images: Tensor
    cells: CellLabels
    points0: Tensor
    points1: Tensor
    valid: Tensor
    settled: float


class SuperPointTask(Task):
    """SuperPoint on homographies.

    Args:
        settings: What to train on.
        photos: Photographs to train on, on the device of training.
        held_out: Photographs to validate on.
        seed: Of all randomness.
        start: Weights to go on from; random ones unless given.
    """

    def __init__(
        self,
        settings: SuperPointSettings,
        photos: Photos,
        held_out: Photos,
        *,
        seed: int = 0,
        start: SuperPointForKeypointDetection | None = None,
    ) -> None:
        self.settings, self.photos, self.seed = settings, photos, seed
        self.pairs_per_batch = settings.pairs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if start is None:
                network = SuperPointNetwork.from_scratch(settings.config, settings.temperature)
            else:
                network = SuperPointNetwork(start, settings.temperature)
        self.module = network.to(photos.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.held_out = HeldOutPairs.of_photos(
            held_out, dataclasses.replace(settings.views, size=(240, 320)), settings.light
        )

    def batch(self, stream: int, index: int) -> PairBatch:
        """Make pairs of views of random photographs, with the cells' classes and points for the descriptors."""
        settings, device = self.settings, self.photos.device
        generator = generator_for(self.seed, stream, index)
        chosen = torch.randint(len(self.photos), (settings.pairs,), generator=generator).tolist()
        settled = settings.settled(index)
        differ = settings.views_at(settled)
        views = random_views(self.photos.sizes(chosen), 2, differ, generator).transpose(0, 1).flatten(0, 1)
        size = differ.size
        fill = torch.rand(len(views), generator=generator) * (torch.rand(len(views), generator=generator) < 0.5)
        clean, inside = render_views(self.photos, chosen * 2, views, size, fill)
        scores = det_hessian(clean, settings.detections.sigma)
        peaks, found = find_peaks(scores, inside, settings.detections)
        H = between_views(views, views.roll(settings.pairs, 0)).to(device, torch.float32)
        other = [value.roll(settings.pairs, 0) for value in (peaks, found, H)]
        kept, agreed = repeated(peaks, found, other[0], other[1], H, other[2], settings.detections.repeat)
        inside_other = inside.roll(settings.pairs, 0)
        cells = cell_labels(agreed, kept, H, size, inside_other, generator)
        first = slice(settings.pairs)
        points0, points1, valid = self._points(
            agreed[first],
            warp(H[first], agreed[first]),
            kept[first],
            H[first],
            inside[first],
            inside_other[first],
            generator,
        )
        light = dataclasses.replace(settings.light, changed=settings.light.changed * max(settled, 0.0))
        return PairBatch(change_light(clean, light, generator), cells, points0, points1, valid, settled)

    def _points(
        self,
        peaks: Tensor,
        mapped: Tensor,
        kept: Tensor,
        H: Tensor,
        inside: Tensor,
        inside_other: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose points for the descriptors: up to half of them keypoints, the rest anywhere that both views see."""
        count, (height, width) = len(peaks), inside.shape[1:]
        half = min(self.settings.points // 2, peaks.shape[1])
        anywhere = torch.rand(count, 4 * self.settings.points, 2, generator=generator).to(peaks)
        anywhere = (anywhere * anywhere.new_tensor([width, height])).floor()
        anywhere_mapped = warp(H, anywhere)
        seen = visible(anywhere, inside, CELL // 2) & visible(anywhere_mapped, inside_other, CELL // 2)
        lots = torch.rand(kept.shape, generator=generator).to(peaks)
        chosen = torch.where(kept, lots, -1.0).topk(half, dim=1).indices
        # The candidates are random already, so the first that are seen will do.
        rest = seen.float().topk(self.settings.points - half, dim=1).indices

        def pick(keypoints: Tensor, others: Tensor) -> Tensor:
            shape = (-1, -1, 2) if keypoints.ndim == 3 else (-1, -1)
            index = chosen[..., None].expand(*shape) if keypoints.ndim == 3 else chosen
            other_index = rest[..., None].expand(*shape) if others.ndim == 3 else rest
            return torch.cat([keypoints.gather(1, index), others.gather(1, other_index)], dim=1)

        points1 = pick(mapped, anywhere_mapped)
        return pick(peaks, anywhere), points1.nan_to_num(0), pick(kept, seen)

    def loss(self, module: nn.Module, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its parts."""
        network = cast("SuperPointNetwork", module)
        with autocast(batch.images.device):
            logits, descriptors = network(batch.images.contiguous(memory_format=torch.channels_last))
        spread = self.settings.label_spread * (1 - max(batch.settled, 0.0))
        detector = cell_loss(logits, batch.cells, spread)
        half = len(batch.points0)
        temperature = network.log_temperature.exp()
        descriptor, accuracy = descriptor_loss(
            sample_map(descriptors[:half], batch.points0),
            sample_map(descriptors[half:], batch.points1),
            batch.points0,
            batch.points1,
            batch.valid,
            temperature,
            self.settings.apart,
        )
        parts = {"detector": detector, "descriptor": descriptor, "accuracy": accuracy, "temperature": temperature}
        loss = self.settings.detector_weight * detector
        return loss if batch.settled < 0 else loss + descriptor, parts

    def baseline(self) -> dict[str, float]:
        """Score the bundled detector."""
        return detector_scores(SuperPointForKeypointDetection.from_pretrained().to(self.photos.device), self.held_out)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Score mutual nearest neighbours on held-out photographs."""
        return detector_scores(cast("SuperPointNetwork", module).folded().to(self.photos.device), self.held_out)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write plain SuperPoint as a folder that ``from_pretrained`` loads."""
        write_detector(folder, cast("SuperPointNetwork", module).folded())
