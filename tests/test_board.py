"""The shared page: whatever happens to the writer, the reader sees a whole record."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from dbtasks_supervisor.board import MAX_PATH, Board, BoardView, State

from .waiting import wait_until

pytestmark = [
    pytest.mark.once,
    # pytest's own watchdog (faulthandler_timeout) is the other thread; the children only write.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

ID = "0198f3c2a7b47c1e9d20c0ffee123456"


def in_child(job: Callable[[], None]) -> int:
    """Fork, run ``job`` in the child, leave it without cleanup; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
        finally:
            os._exit(0)
    return pid


def run_tasks_until_killed(board: Board) -> None:
    """Write records whose parts tell whether they belong together."""
    for number in range(1, 1 << 31):
        board.begin(f"{number:032x}", number, f"task.{number}." + "x" * (number % 150), number)
        board.end(failed=number % 2 == 0)
        board.settle()


def assert_whole(view: BoardView) -> None:
    """Fail if the view mixes two records of ``run_tasks_until_killed``."""
    if view.running:
        number = int(view.task_id, 16)
        assert view.attempt == number
        assert view.task_path == f"task.{number}." + "x" * (number % 150)
        assert view.deadline == (number if view.executing else 0.0)
        assert view.started > 0
        assert view.done == (number - 1 if view.executing else number)
        assert view.state in (State.BUSY, State.WRITING)
    else:
        assert (view.attempt, view.task_path, view.started, view.deadline) == (0, "", 0.0, 0.0)
        assert view.state in (State.STARTING, State.WRITING)
    assert view.failed == view.done // 2


def test_a_new_board_shows_a_child_that_starts() -> None:
    before = time.monotonic()
    view = Board().read()
    assert view.state == State.STARTING
    assert not view.running
    assert (view.done, view.failed, view.task_id, view.deadline) == (0, 0, "", 0.0)
    assert before <= view.ticked <= time.monotonic()


def test_a_task_is_shown_from_begin_to_end() -> None:
    board = Board()
    board.begin(ID, 3, "myproject.tasks.charge", 1234.5)
    view = board.read()
    assert view.running
    assert view.state == State.BUSY
    assert (view.task_id, view.attempt, view.task_path) == (ID, 3, "myproject.tasks.charge")
    assert view.deadline == 1234.5
    assert view.started == view.ticked
    board.end(failed=True)
    view = board.read()
    assert view.running  # until its outcome is written, a crash is this task's
    assert not view.executing
    assert (view.state, view.deadline, view.done, view.failed) == (State.WRITING, 0.0, 1, 1)
    board.settle()
    assert not board.read().running
    assert (board.read().done, board.read().failed) == (1, 1)
    board.begin(ID, 1, "other", None)
    board.limit(77.0)
    assert (board.read().deadline, board.read().task_path) == (77.0, "other")
    board.end(failed=False)
    assert (board.read().done, board.read().failed) == (2, 1)


def test_a_tick_moves_the_sign_of_life_and_keeps_the_task() -> None:
    board = Board()
    board.begin(ID, 1, "path", None)
    first = board.read()
    wait_until(lambda: time.monotonic() > first.ticked)
    board.tick()
    second = board.read()
    assert second.ticked > first.ticked
    assert (second.task_id, second.started, second.state) == (ID, first.started, State.BUSY)


@pytest.mark.parametrize("state", list(State))
def test_a_tick_changes_the_state(state: State) -> None:
    board = Board()
    board.tick(state)
    assert board.read().state is state


@pytest.mark.parametrize("path", ["", "p" * MAX_PATH, "p" * 5000, "ü" * 150, "x" + "€" * 100])
def test_a_long_path_is_cut_at_a_whole_character(path: str) -> None:
    board = Board()
    board.begin(ID, 1, path, None)
    shown = board.read().task_path
    assert path.startswith(shown)
    assert min(len(path.encode()), MAX_PATH) - len(shown.encode()) < 4


@pytest.mark.parametrize("task_id", ["", "abc", "0198f3c2-a7b4-7c1e-9d20-c0ffee123456"])
def test_an_id_of_another_form_is_refused_and_nothing_begun(task_id: str) -> None:
    board = Board()
    with pytest.raises(ValueError, match="32 hexadecimal"):
        board.begin(task_id, 1, "path", None)
    assert not board.read().running


def test_the_parent_reads_what_the_child_writes() -> None:
    board = Board()
    pid = in_child(lambda: board.begin(ID, 2, "in.child", 99.0))
    os.waitpid(pid, 0)
    view = board.read()
    assert (view.task_id, view.attempt, view.task_path, view.deadline) == (ID, 2, "in.child", 99.0)


def test_a_reader_never_sees_a_torn_record() -> None:
    board = Board()
    pid = in_child(lambda: run_tasks_until_killed(board))
    try:
        wait_until(lambda: board.read().done > 0)
        seen = set()
        for _ in range(20_000):
            view = board.read()
            assert_whole(view)
            seen.add(view.done)
        assert len(seen) > 10
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def kill_after(enough: int) -> None:
    """Kill a busy child after so many tasks, and look at what it left."""
    board = Board()
    pid = in_child(lambda: run_tasks_until_killed(board))
    try:
        wait_until(lambda: board.read().done >= enough)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    after = board.read()
    assert_whole(after)
    assert after.done >= enough
    board.close()


def test_a_kill_at_any_moment_leaves_a_whole_record() -> None:
    chance = random.Random(20261123)
    for _ in range(40):
        kill_after(chance.randrange(1, 200))


def test_a_death_between_any_two_stores_shows_the_old_record_or_the_new_one() -> None:
    board = Board()
    page = board._page
    board.begin(ID, 1, "old", None)
    before = bytes(page)
    board.end(failed=False)
    after = bytes(page)
    # Replay the bytes that changed, the counter last, and look after each one.
    changed = [i for i in range(len(before)) if before[i] != after[i] and i >= 8]
    page[:] = before
    nothing_seen_yet = Board().read()
    for i in changed:
        page[i : i + 1] = after[i : i + 1]
        board._seen = nothing_seen_yet
        assert board.read().task_path == "old"
    page[0:8] = after[0:8]
    assert board.read().done == 1


def test_a_torn_record_is_not_taken_for_a_whole_one() -> None:
    board = Board()
    board.begin(ID, 1, "good", None)
    board.read()
    number = board._numbers[0]
    board._numbers[0] = number + 1  # the counter arrived before its record
    assert board.read().task_path == "good"


def test_a_closed_board_shows_what_it_showed_last() -> None:
    board = Board()
    board.begin(ID, 1, "last", None)
    board.close()
    board.close()
    assert board.read().task_path == "last"
