"""Helpers under the names that code written for the original repository imports."""

from __future__ import annotations

from keyglue.pipelines.original import load_image, match_pair, rbd

__all__ = ["load_image", "match_pair", "rbd"]
