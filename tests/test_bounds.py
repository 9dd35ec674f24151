"""The bounds that tests of hostile input have: what takes too much fails, and what does not passes."""

import faulthandler
import resource

import bounds
import pytest


def limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_AS)


needs_proc = pytest.mark.skipif(not (bounds.PROC / "clear_refs").exists(), reason="the peak of memory is Linux's")


@needs_proc
def test_too_much_memory_is_a_failure():
    before = limits()
    with pytest.raises(pytest.fail.Exception, match=r"took \d+ MB of memory, and 20 are allowed"), bounds.bounded(20):
        bytearray(b"1") * 400_000_000  # so much more that it shows even if other threads give some back meanwhile
    assert limits() == before
    with bounds.bounded(20):  # the peak begins anew
        bytearray(b"1") * 4_000_000


@needs_proc
def test_a_bomb_is_an_error_before_it_fills_the_machine():
    before = limits()
    with pytest.raises(MemoryError), bounds.bounded():
        bytearray(2 * bounds.ROOM)
    assert limits() == before


def test_too_long_a_computation_is_a_failure():
    with (
        pytest.raises(pytest.fail.Exception, match=r"took .* s of the CPU, and 0\.01 are"),
        bounds.bounded(seconds=0.01),
    ):
        sum(i * i for i in range(1_000_000))


def test_a_hang_ends_the_process_and_what_ends_cancels_that(monkeypatch):
    asked = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda after, **how: asked.append((after, how)))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: asked.append("cancelled"))
    with pytest.raises(KeyError), bounds.bounded(stderr=2):
        raise KeyError
    assert asked == [(bounds.HANGS_AFTER, {"exit": True, "file": 2}), "cancelled"]


def test_where_there_is_no_proc_only_memory_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "PROC", tmp_path / "none")
    before = limits()
    with bounds.bounded(megabytes=0):
        bytearray(b"1") * 4_000_000
        assert limits() == before
    with pytest.raises(pytest.fail.Exception, match="of the CPU"), bounds.bounded(seconds=0):
        sum(range(1_000_000))


@pytest.mark.bounded
def test_a_marked_test_is_bounded():
    assert limits()[0] != resource.RLIM_INFINITY or not (bounds.PROC / "clear_refs").exists()
