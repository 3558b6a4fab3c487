"""Who comes next: first come, first served of one client, and among clients whoever was given least."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.serve.handle import Handle
from edgeloop.runtime.serve.requests import Request
from edgeloop.runtime.serve.waiting import FairQueue


def asked(client: object = None, tokens: int = 10) -> Handle:
    request = Request(np.arange(3), tokens, SamplingOptions(), ())
    return Handle(request, lambda handle: None, client)  # type: ignore[arg-type]


def pushed(queue: FairQueue, *clients: object, tokens: int = 10) -> list[Handle]:
    handles = [asked(client, tokens) for client in clients]
    for handle in handles:
        queue.push(handle)
    return handles


def test_without_clients_first_come_first_served():
    queue = FairQueue()
    handles = pushed(queue, *[None] * 5)
    assert list(queue) == handles
    queue.remove(handles[1])
    assert handles[1] not in queue
    assert handles[2] in queue
    queue.start(handles[0], 100)
    assert list(queue) == handles[2:]
    assert len(queue) == 3


def test_a_client_with_one_request_does_not_wait_behind_all_of_another():
    queue = FairQueue()
    many = pushed(queue, *["many"] * 50)
    queue.start(many[0], 13)
    (one,) = pushed(queue, "one")
    queue.start(many[1], 13)
    assert next(iter(queue)) is one


def test_tokens_count_and_not_requests():
    queue = FairQueue()
    long, short = pushed(queue, *["long"] * 9, tokens=90), pushed(queue, *["short"] * 30, tokens=10)
    given: Counter[object] = Counter()
    for _ in range(20):
        handle = next(iter(queue))
        queue.start(handle, handle.request.max_tokens)
        given[handle.client] += handle.request.max_tokens
    assert abs(given["long"] - given["short"]) <= 90
    assert len([handle for handle in short if handle not in queue]) > 2 * len(
        [handle for handle in long if handle not in queue]
    )


def test_what_was_not_used_is_given_back():
    queue = FairQueue()
    first, again = pushed(queue, "a", "a")
    (other,) = pushed(queue, "b")
    queue.start(first, 100)
    queue.end(first, 99)  # cancelled after a token
    queue.start(other, 20)
    assert next(iter(queue)) is again
    queue.end(other, 0)
    assert next(iter(queue)) is again


def test_a_pause_saves_nothing_up():
    queue = FairQueue()
    (rare,) = pushed(queue, "rare")
    queue.start(rare, 5)
    queue.end(rare, 0)
    busy = pushed(queue, *["busy"] * 20)
    for handle in busy[:10]:
        queue.start(handle, 100)
    waiting = pushed(queue, *["rare"] * 5)
    queue.start(waiting[0], 100)
    assert next(iter(queue)) is busy[10]  # not all of the others first, for what it did not ask for before


def test_nor_does_one_lose_a_debt():
    queue = FairQueue()
    greedy, other = asked("greedy"), pushed(queue, *["other"] * 3)
    queue.push(greedy)
    queue.start(greedy, 1000)
    queue.end(greedy, 0)  # it is away now
    queue.start(other[0], 10)
    pushed(queue, "greedy")
    assert [handle.client for handle in queue] == ["other", "other", "greedy"]


def test_counters_are_kept_of_few_clients():
    queue = FairQueue()
    stays = pushed(queue, *["stays"] * 2000)
    for number in range(1000):
        (handle,) = pushed(queue, number)
        queue.start(handle, 10)
        queue.end(handle, 0)
        queue.start(stays[number], 10)
    assert len(queue._served) < 10
    for handle in stays[1000:]:
        queue.remove(handle)
    for handle in stays[:1000]:
        queue.end(handle, 0)
    assert not queue._served


@pytest.mark.parametrize("seed", range(4))
def test_nobody_starves(seed: int):
    """Long and short requests arrive by lot, more than there is room for: nobody waits for long."""
    dice, queue = random.Random(seed), FairQueue()
    arrived: dict[Handle, int] = {}
    running: list[tuple[int, Handle]] = []
    waits: list[int] = []
    for now in range(3000):
        if now < 2000 and dice.random() < 0.1:
            client = dice.choice("aaaaaaab")
            tokens = dice.choice((2, 5, 200)) if client == "a" else 10
            (handle,) = pushed(queue, client, tokens=tokens)
            arrived[handle] = now
        for end, handle in [each for each in running if each[0] <= now]:
            running.remove((end, handle))
            queue.end(handle, 0)
        while len(running) < 2 and queue:
            handle = next(iter(queue))
            queue.start(handle, handle.request.max_tokens)
            running.append((now + handle.request.max_tokens, handle))
            if handle.client == "b":
                waits.append(now - arrived[handle])
    assert waits
    assert max(waits) <= 200 + 10  # until one of those that run has ended, and one of its own
