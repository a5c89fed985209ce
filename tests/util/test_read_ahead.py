"""Items that a thread reads ahead: the same ones, their failures, and no thread left behind."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from fedhpc.util.read_ahead import read_ahead


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_items_come_in_order() -> None:
    assert list(read_ahead(range(100))) == list(range(100))
    assert list(read_ahead(())) == []
    assert "read ahead" not in names()


def test_few_items_are_made_ahead() -> None:
    begun = [threading.Event() for _ in range(50)]

    def items() -> Iterator[int]:
        for n, event in enumerate(begun):
            event.set()
            yield n

    with closing(read_ahead(items(), depth=2)) as ahead:
        for used in range(1, 4):
            assert next(ahead) == used - 1
            assert begun[used + 2].wait(5), "two wait and one is in the making"
            assert not begun[used + 3].wait(0.05)


def test_failure_comes_in_its_place_and_ends_the_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    assert "read ahead" not in names()


def test_closing_early_ends_the_thread() -> None:
    with closing(read_ahead(iter(int, 1))) as ahead:
        assert next(ahead) == 0
        assert "read ahead" in names()
    assert "read ahead" not in names()
