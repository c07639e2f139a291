"""SuperPoint: keypoints and descriptors from one fully convolutional network.

DeTone, Malisiewicz, Rabinovich, "SuperPoint: Self-Supervised Interest Point Detection and Description", CVPR workshops
2018, arXiv 1712.07629. Parameter names are those of the published transformers checkpoints.

Shapes: B images, C channels, h and w pixels, N keypoints, D descriptor. A cell is 8 x 8 pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.base import native
from keyglue.base.checkpoints import StateDict
from keyglue.base.config import PretrainedConfig, config_dataclass, require_bool, require_int, require_number
from keyglue.base.derived import Derived
from keyglue.base.errors import CheckpointError, ConfigError, InputError
from keyglue.base.outputs import SuperPointKeypointDescriptionOutput, pad_stack
from keyglue.base.types import Features
from keyglue.images.coordinates import pixels_to_relative
from keyglue.keypoints.detector import KeypointDetector, content_sizes, one_channel
from keyglue.keypoints.formats import (
    is_original_superpoint,
    superpoint_config_of_original,
    superpoint_from_original,
)
from keyglue.keypoints.nms import find_keypoints
from keyglue.keypoints.refinement import refine_keypoints
from keyglue.keypoints.sampling import sample_descriptors
from keyglue.keypoints.superpoint_fast import FastSuperPoint, can_run_fast
from keyglue.keypoints.superpoint_native import NativeSuperPoint

JOINT_PREFIX = "keypoint_detector."


@config_dataclass
class SuperPointConfig(PretrainedConfig):
    """Settings of SuperPoint.

    Args:
        encoder_hidden_sizes: Channels of the encoder's stages; each but the last halves the resolution.
        decoder_hidden_size: Channels between the two layers of both heads.
        keypoint_decoder_dim: Pixels of a cell plus one for "no keypoint".
        descriptor_decoder_dim: Length of a descriptor.
        keypoint_threshold: Detection score that a keypoint must exceed.
        max_keypoints: Largest number of keypoints an image; -1 for all.
        nms_radius: No two keypoints lie within this many pixels along both axes.
        border_removal_distance: Keypoints nearer than this many pixels to the edge are left out.
        refinement_radius: Keypoints move to the centre of mass of the scores within this many pixels; 0 keeps them on
            whole pixels, as published.
        refinement_sigma: If positive, keypoints move on to the highest peak of the determinant of the Hessian, of the
            image blurred by this many pixels, that lies within ``refinement_radius`` of their pixel.
        initializer_range: Standard deviation of random weights.
        hf_compatible: Give transformers' numbers where they differ: keypoints are not refined and stay at the right
            and bottom border, and of a colour image only the first channel is seen.
    """

    model_type: ClassVar[str] = "superpoint"

    encoder_hidden_sizes: tuple[int, ...] = (64, 64, 128, 128)
    decoder_hidden_size: int = 256
    keypoint_decoder_dim: int = 65
    descriptor_decoder_dim: int = 256
    keypoint_threshold: float = 0.005
    max_keypoints: int = -1
    nms_radius: int = 4
    border_removal_distance: int = 4
    refinement_radius: int = 0
    refinement_sigma: float = 0.0
    initializer_range: float = 0.02
    hf_compatible: bool = False

    @property
    def cell(self) -> int:
        """Pixels of the image a cell of the descriptor map, along each axis."""
        return 2 ** (len(self.encoder_hidden_sizes) - 1)

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: A value is impossible or contradicts another one.
        """
        super().validate()
        object.__setattr__(self, "encoder_hidden_sizes", tuple(self.encoder_hidden_sizes))
        sizes = self.encoder_hidden_sizes
        if len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise ConfigError(f"encoder_hidden_sizes must hold two or more positive integers, got {sizes!r}.")
        for name in ("decoder_hidden_size", "keypoint_decoder_dim", "descriptor_decoder_dim"):
            require_int(self, name, 1)
        if self.keypoint_decoder_dim != self.cell**2 + 1:
            raise ConfigError(
                f"keypoint_decoder_dim must be {self.cell**2 + 1} (a cell of {self.cell} x {self.cell} pixels and one "
                f"for none) with {len(sizes)} encoder stages, got {self.keypoint_decoder_dim}."
            )
        require_number(self, "keypoint_threshold", 0, 1)
        require_int(self, "max_keypoints", -1)
        require_int(self, "nms_radius", 0)
        require_int(self, "border_removal_distance", 0)
        require_int(self, "refinement_radius", 0)
        require_number(self, "refinement_sigma", 0, 100)
        require_number(self, "initializer_range", 0)
        require_bool(self, "hf_compatible")


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions with ReLU, then a halving of the resolution if ``pool``."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv_b = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h, w) or (B, C', h/2, w/2)."""
        x = F.relu(self.conv_b(F.relu(self.conv_a(x))))
        return F.max_pool2d(x, 2) if self.pool else x


class Encoder(nn.Module):
    """VGG-style encoder shared by both heads (section 3.1)."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        sizes = (1, *config.encoder_hidden_sizes)
        last = len(sizes) - 2
        self.conv_blocks = nn.ModuleList([ConvBlock(sizes[i], sizes[i + 1], pool=i < last) for i in range(last + 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (B, 1, h, w) to the outputs of all stages; the last is (B, C, h/8, w/8)."""
        stages: list[Tensor] = []
        for block in self.conv_blocks:
            x = block(x)
            stages.append(x)
        return stages


class KeypointDecoder(nn.Module):
    """Detector head (section 3.2): for each cell a softmax over its 64 pixels and "no keypoint"."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        self.conv_score_a = nn.Conv2d(config.encoder_hidden_sizes[-1], config.decoder_hidden_size, 3, padding=1)
        self.conv_score_b = nn.Conv2d(config.decoder_hidden_size, config.keypoint_decoder_dim, 1)
        self.cell = config.cell

    def logits(self, encoded: Tensor) -> Tensor:
        """Map (B, C, h/8, w/8) to (B, 65, h/8, w/8)."""
        return self.conv_score_b(F.relu(self.conv_score_a(encoded)))

    def forward(self, encoded: Tensor) -> Tensor:
        """Map (B, C, h/8, w/8) to the probability (B, h, w) that a pixel is a keypoint, in float32."""
        probabilities = self.logits(encoded).float().softmax(dim=1)[:, :-1]
        return F.pixel_shuffle(probabilities, self.cell)[:, 0]


class DescriptorDecoder(nn.Module):
    """Descriptor head (section 3.3): one unit-length descriptor a cell."""

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__()
        self.conv_descriptor_a = nn.Conv2d(config.encoder_hidden_sizes[-1], config.decoder_hidden_size, 3, padding=1)
        self.conv_descriptor_b = nn.Conv2d(config.decoder_hidden_size, config.descriptor_decoder_dim, 1)

    def forward(self, encoded: Tensor) -> Tensor:
        """Map (B, C, h/8, w/8) to (B, D, h/8, w/8), in float32."""
        return F.normalize(self.conv_descriptor_b(F.relu(self.conv_descriptor_a(encoded))).float(), dim=1)


class _Maps(NamedTuple):
    """What is known of an image before keypoints are chosen.

    Args:
        image: (h, w) gray values.
        scores: (h', w'), of whole cells.
        describe: Gives descriptors (N, D) at keypoints (N, 2).
        find: Chooses keypoints, as ``find_keypoints`` does.
    """

    image: Tensor
    scores: Tensor
    describe: Callable[[Tensor], Tensor]
    find: Callable[..., tuple[Tensor, Tensor]] = find_keypoints


_PARTS = (Encoder, nn.ModuleList, ConvBlock, KeypointDecoder, DescriptorDecoder, nn.Conv2d)


class SuperPointForKeypointDetection(KeypointDetector):
    """SuperPoint with a documented transformers-style interface and ``extract`` for Features.

    Inference takes the fast path (superpoint_fast.py, superpoint_native.py); gradients, training, hooks on the layers,
    autocast and hidden states take the reference path, which is the one to read.

    Args:
        config: Settings; the weights are random.
    """

    config_class = SuperPointConfig
    config: SuperPointConfig

    def __init__(self, config: SuperPointConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.keypoint_decoder = KeypointDecoder(config)
        self.descriptor_decoder = DescriptorDecoder(config)
        self._fast: Derived[FastSuperPoint] = Derived()
        self._native: Derived[NativeSuperPoint] = Derived()
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        image_sizes: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> SuperPointKeypointDescriptionOutput | tuple[Any, ...]:
        """Find and describe the keypoints of a batch of images.

        Args:
            pixel_values: (B, C, h, w), C = 1 or 3, values from 0 to 1.
            labels: Not used by this model; giving it is an error.
            output_hidden_states: Return the output of each encoder stage.
            return_dict: Return an output object (default) or a tuple.
            image_sizes: (B, 2) height and width of the content of padded images.
            pixel_mask: (B, h, w) nonzero on the content of padded images, instead of ``image_sizes``.

        Raises:
            InputError: A shape, type or value is not as described.
        """
        if labels is not None:
            raise InputError("SuperPoint takes no labels in forward; `keyglue train superpoint_scratch` trains it.")
        sizes = content_sizes(pixel_values, image_sizes, pixel_mask) if pixel_values.ndim == 4 else []
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] | None = [] if keep_states else None
        found = self._extract(pixel_values, sizes, states=states)
        most = max((len(features) for features in found), default=0)
        size_tensor = torch.tensor(sizes, device=pixel_values.device)
        output = SuperPointKeypointDescriptionOutput(
            keypoints=pixels_to_relative(pad_stack([f.keypoints for f in found], most), size_tensor),
            scores=pad_stack([f.keypoint_scores for f in found if f.keypoint_scores is not None], most),
            descriptors=pad_stack([f.descriptors for f in found], most),
            mask=pad_stack([torch.ones(len(f), dtype=torch.int32, device=f.device) for f in found], most),
            hidden_states=tuple(states) if states is not None else None,
            image_sizes=size_tensor,
        )
        as_object = self.config.return_dict if return_dict is None else return_dict
        return output if as_object else output.to_tuple()

    def extract(self, image: Tensor, *, mask: Tensor | None = None) -> Features:
        """Find and describe the keypoints of one image (C, h, w); see KeypointDetector.extract."""
        if image.ndim != 3:
            raise InputError(f"an image must have shape (C, h, w), got {tuple(image.shape)}.")
        size = (image.shape[1], image.shape[2])
        if mask is not None and tuple(mask.shape) != size:
            raise InputError(f"a mask must have the image's size {size}, got {tuple(mask.shape)}.")
        return self._extract(image[None], [size], masks=[mask])[0]

    def extract_batch(self, pixel_values: Tensor, image_sizes: Sequence[tuple[int, int]]) -> list[Features]:
        """Find and describe the keypoints of padded images; see KeypointDetector.extract_batch."""
        return self._extract(pixel_values, image_sizes)

    def _extract(
        self,
        pixel_values: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        masks: Sequence[Tensor | None] | None = None,
        states: list[Tensor] | None = None,
    ) -> list[Features]:
        gray = pixel_values[:, :1] if self.config.hf_compatible else one_channel(pixel_values)
        gray = gray.to(device=self.device, dtype=self.dtype)
        found: dict[int, Features] = {}
        for members in self._groups(sizes):
            height, width = size = sizes[members[0]]
            if min(size) < self.config.cell:
                # Smaller than one cell: nothing can be detected.
                found.update({index: self._nothing(size) for index in members})
                continue
            # Cropping keeps padding out of every convolution.
            maps = self._maps(gray[members, :, :height, :width], members, gray.shape, states)
            for index, known in zip(members, maps, strict=True):
                mask = masks[index] if masks is not None else None
                found[index] = self._describe(known, size, mask)
        return [found[index] for index in range(len(sizes))]

    def _maps(
        self, images: Tensor, members: list[int], batch_shape: torch.Size, states: list[Tensor] | None
    ) -> list[_Maps]:
        """Return what is known of images (B, 1, h, w) of one size before keypoints are chosen."""
        if states is None and can_run_fast(self, images, _PARTS):
            return self._fast_maps(images)
        stages = self.encoder(images)
        if states is not None:
            _collect(states, stages, members, batch_shape)
        scores = self.keypoint_decoder(stages[-1])
        sample = partial(sample_descriptors, cell=self.config.cell)
        described = [partial(sample, descriptor_map=d) for d in self.descriptor_decoder(stages[-1])]
        return list(map(_Maps, images[:, 0], scores, described))

    def _fast_maps(self, images: Tensor) -> list[_Maps]:
        dtype = self.inference_dtype
        kernels = native.kernels(dtype) if images.device.type == "cpu" else None
        if kernels is not None:
            compiled = self._native.get(self.parameters(), partial(NativeSuperPoint, self, kernels), kernels.name)
            if compiled.suits(images):
                scores, cells = compiled.maps(images)
                described = [partial(compiled.describe, encoded=c) for c in cells]
                return [
                    _Maps(*known, compiled.find_keypoints)
                    for known in zip(images[:, 0], scores, described, strict=True)
                ]
        fast = self._fast.get(self.parameters(), partial(FastSuperPoint, self, dtype), (dtype, self.compile_mode))
        scores, encoded = fast.maps(images)
        return list(map(_Maps, images[:, 0], scores, [partial(fast.describe, encoded=e) for e in encoded]))

    def _groups(self, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Return which images run together: those of one size, or on a CPU, where caches are small, each by itself."""
        if self.device.type == "cpu":
            return [[index] for index in range(len(sizes))]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            groups[size].append(index)
        return list(groups.values())

    def _nothing(self, size: tuple[int, int]) -> Features:
        empty = torch.zeros(0, device=self.device)
        return Features(
            keypoints=empty.reshape(0, 2),
            descriptors=empty.reshape(0, self.config.descriptor_decoder_dim),
            image_size=size,
            keypoint_scores=empty,
            detector="superpoint",
        )

    def _describe(self, maps: _Maps, size: tuple[int, int], mask: Tensor | None) -> Features:
        config, scores = self.config, maps.scores
        if mask is not None:
            inside = mask.to(scores.device).bool()[: scores.shape[0], : scores.shape[1]]
            scores = scores.masked_fill(~inside, 0)
        keypoints, values = maps.find(
            scores,
            config.nms_radius,
            config.keypoint_threshold,
            config.border_removal_distance,
            config.max_keypoints,
            border_right_bottom=not config.hf_compatible,
        )
        if not config.hf_compatible:
            settings = (config.refinement_radius, maps.image, config.refinement_sigma)
            keypoints = refine_keypoints(keypoints, scores, *settings, mask)
        return Features(
            keypoints=keypoints,
            descriptors=maps.describe(keypoints),
            image_size=size,
            keypoint_scores=values,
            detector="superpoint",
        )

    @classmethod
    def _config_for(cls, values: dict[str, Any], state_dict: StateDict, overrides: dict[str, Any]) -> PretrainedConfig:
        joint = values.get("keypoint_detector_config")
        if not values and is_original_superpoint(state_dict):
            values = superpoint_config_of_original(state_dict)
        return super()._config_for(joint if isinstance(joint, dict) else values, state_dict, overrides)

    @classmethod
    def _from_checkpoint(cls, state_dict: StateDict, model: nn.Module) -> StateDict:
        joint = {name.removeprefix(JOINT_PREFIX): t for name, t in state_dict.items() if name.startswith(JOINT_PREFIX)}
        if joint:
            return joint
        if is_original_superpoint(state_dict):
            return superpoint_from_original(state_dict)
        if not any(name.startswith("encoder.") for name in state_dict):
            raise CheckpointError("this checkpoint holds no SuperPoint: no tensor is named encoder.* or conv1a.*.")
        return state_dict


def _collect(states: list[Tensor], stages: list[Tensor], members: list[int], shape: torch.Size) -> None:
    """Write one group's encoder stages into zero-padded tensors for the whole batch."""
    if not states:
        count, _, height, width = shape
        last = len(stages) - 1
        for index, stage in enumerate(stages):
            factor = 2 ** min(index + 1, last)
            states.append(stage.new_zeros(count, stage.shape[1], height // factor, width // factor))
    for state, stage in zip(states, stages, strict=True):
        state[members, :, : stage.shape[2], : stage.shape[3]] = stage
