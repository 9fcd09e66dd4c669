"""This room's slice of the recipe: the shape of the result."""

from __future__ import annotations

from pipeline.architecture.profile import Profile
from pipeline.common.slices import Slice


class RebuildSlice(Slice):
    """The shape of the result."""

    profile: Profile = Profile.UNIFORM
