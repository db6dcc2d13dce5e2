"""The line between the supervisor and a child: nothing blocks, nothing raises, nothing is torn."""

import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from dbtasks_supervisor import channel
from dbtasks_supervisor.channel import MAX_MESSAGE, Channel

pytestmark = pytest.mark.once

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["SOCK_SEQPACKET", "SOCK_STREAM"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Two connected ends, over both kinds of socket."""
    if request.param == "SOCK_STREAM":
        monkeypatch.delattr(socket, "SOCK_SEQPACKET", raising=False)
    ends = Channel.pair()
    yield ends
    for end in ends:
        end.close()


def fill(end: Channel, text: str) -> int:
    """Send until the other end's buffer is full; return how many messages were accepted."""
    for sent in range(100_000):
        if not end.send("fill", number=sent, text=text):
            return sent
    raise AssertionError("the buffer never filled")


def drain(end: Channel) -> list[channel.Message]:
    """Receive until there is nothing more."""
    messages: list[channel.Message] = []
    while batch := end.receive():
        messages += batch
    return messages


def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    left, right = pair
    assert left.send("ready")
    assert left.send("started", task="täsk\n", deadline=12.5, nested={"a": [1, None]})
    assert right.receive() == [
        {"kind": "ready"},
        {"kind": "started", "task": "täsk\n", "deadline": 12.5, "nested": {"a": [1, None]}},
    ]
    assert right.receive() == []
    assert not right.closed


def test_both_directions_work(pair: Pair) -> None:
    left, right = pair
    assert left.send("idle")
    assert right.send("wake")
    assert left.receive() == [{"kind": "wake"}]
    assert right.receive() == [{"kind": "idle"}]


@pytest.mark.parametrize("length", [0, 200, 60_000])  # a stream socket takes long ones in part
def test_a_full_buffer_refuses_and_recovers_without_losing_what_was_accepted(
    pair: Pair, length: int
) -> None:
    left, right = pair
    accepted = fill(left, "x" * length)
    assert accepted > 1
    received = drain(right)
    assert left.send("after")  # also pushes what a stream socket had taken in part
    received += drain(right)
    assert [m["number"] for m in received[:-1]] == list(range(accepted))
    assert received[-1] == {"kind": "after"}


def test_sending_to_a_dead_peer_is_false_and_no_signal(pair: Pair) -> None:
    left, right = pair
    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        right.close()
        assert left.send("anybody") is False
    finally:
        signal.signal(signal.SIGPIPE, previous)


def test_what_a_peer_sent_before_it_died_is_received_before_the_end(pair: Pair) -> None:
    left, right = pair
    right.send("unread")  # makes the kernel report a reset to the reader of the other end
    left.send("finished", task="last words")
    left.close()
    assert right.receive() == [{"kind": "finished", "task": "last words"}]
    assert right.closed


def test_end_of_file_closes_and_only_once_all_copies_are_gone(pair: Pair) -> None:
    left, right = pair
    copy = os.dup(left.fileno())
    left.close()
    assert right.receive() == []
    assert not right.closed
    os.close(copy)
    assert right.receive() == []
    assert right.closed


def test_malformed_lines_are_dropped_and_the_others_kept(pair: Pair) -> None:
    left, right = pair
    raw = socket.socket(fileno=os.dup(left.fileno()))
    with raw:
        for line in (b"no json\n", b"[1]\n", b"{}\n", b'{"kind":1}\n', b"\xff\xfe\n", b"\n"):
            raw.send(line)
        raw.send(b"[" * 20_000 + b"\n")  # deeper than the parser goes
        raw.send(b'{"kind":"good"}\n')
    assert right.receive() == [{"kind": "good"}]


def test_an_endless_line_is_dropped_and_the_next_one_read(pair: Pair) -> None:
    left, right = pair
    received: list[channel.Message] = []
    with socket.socket(fileno=os.dup(left.fileno())) as raw:
        for _ in range(4):
            raw.send(b"x" * (MAX_MESSAGE // 2))
            received += right.receive()
        raw.send(b'tail of it\n{"kind":"good"}\n')
    assert received + right.receive() == [{"kind": "good"}]


def test_a_message_that_is_too_long_is_refused(pair: Pair) -> None:
    left, right = pair
    assert left.send("big", text="x" * MAX_MESSAGE) is False
    assert left.send("small")
    assert right.receive() == [{"kind": "small"}]


def test_a_field_that_is_not_json_is_the_programmers_error(pair: Pair) -> None:
    with pytest.raises(TypeError):
        pair[0].send("odd", value=object())


def test_a_closed_channel_is_harmless(pair: Pair) -> None:
    left, _ = pair
    left.close()
    left.close()
    assert left.fileno() == -1
    assert left.send("late") is False
    assert left.receive() == []
    assert left.closed


def test_a_selector_wakes_up_for_a_message_and_for_the_end(pair: Pair) -> None:
    left, right = pair
    assert select.select([right], [], [], 0)[0] == []
    left.send("wake")
    assert select.select([right], [], [], 5)[0] == [right]
    right.receive()
    left.close()
    assert select.select([right], [], [], 5)[0] == [right]
