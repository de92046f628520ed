"""How many examples a test draws where hypothesis's own hundred would be too many."""

from typing import cast

from hypothesis import settings

_EVERY_DAY = settings.get_profile("steady").max_examples


def draws(count: int) -> int:
    """Return so many examples under the profile of every day (tests/conftest.py), more under one that draws more."""
    return count * cast(settings, settings.default).max_examples // _EVERY_DAY
