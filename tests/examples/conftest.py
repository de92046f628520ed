"""The small stores of the sweep's tests."""

from tests.sweep.conftest import _one_thread, class_set, make_stores, stores

__all__ = ["_one_thread", "class_set", "make_stores", "stores"]
