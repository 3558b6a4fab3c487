"""A text with a look at every depth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgeloop.export.families.llama_spec import Segment
from edgeloop.runtime.decode.sequential import SequentialDecoder
from edgeloop.runtime.decode.windows import DepthReader, visit_depths
from edgeloop.runtime.engines.backend import Lanes
from edgeloop.runtime.errors import UsageError

ROUNDING = 2e-5  # float32 sums over another number of rows: 1.24e-5 was seen on one machine
IDS = np.random.default_rng(2).integers(0, 60, 20)
HEADLESS = (Segment(layers=2, repeats=3),)  # nothing after the loop but norm and head


@pytest.fixture(scope="module", params=[None, HEADLESS], ids=["epilogue", "no epilogue"])
def backend(request, maker):
    return maker.backend(maker.program() if request.param is None else maker.program(request.param))


def make_loop(backend, **options):
    return SequentialDecoder(backend, backend.new_cache(2, 24), **options)


def test_exits_are_the_model_cut_off_after_a_depth(backend, maker):
    """Exit d equals the loop's own epilogue on a model whose last depth is d."""
    found = {d: np.empty((20, 60), np.float32) for d in range(3)}

    def visit(depth, first, logits):
        found[depth][first : first + len(logits)] = logits

    loop = make_loop(backend, chunk=6)
    reader = DepthReader(loop)
    reader.run(IDS[:13], lambda *a: visit(*a))
    reader.run(IDS[13:], lambda d, first, x: visit(d, first + 13, x))
    for depth in range(3):
        states = {}
        single = make_loop(backend, observe=lambda d, x, s=states: s.update({d: x.copy()}))
        wanted = single.prompt(IDS, "all").copy()
        if depth < 2:
            lanes = Lanes.single(depth, 0, 20, 0)
            wanted = backend.epilogue(states[depth], np.arange(20), lanes, backend.new_cache(1, 24))
        np.testing.assert_allclose(found[depth], wanted, atol=ROUNDING)


def test_exits_need_all_tokens(backend):
    loop = make_loop(backend)
    loop.prompt(IDS[:3])
    with pytest.raises(UsageError, match="reset"):
        DepthReader(loop).run(IDS[3:], lambda *_: None)
    loop.reset()
    DepthReader(loop).run(IDS, lambda *_: None)


def test_states_are_seen_before_and_after_each_depth(backend):
    """In windows of eight, which start from empty; ``first`` counts from the beginning of the text."""
    loop, seen = make_loop(backend, chunk=5), []
    visit_depths(
        loop, IDS, 8, lambda d, first, before, after, _: seen.append((d, first, before.copy(), after.copy()))
    )
    assert [s[:2] for s in seen] == [(d, at) for at in (0, 5, 8, 13, 16) for d in range(3)]
    assert loop.observe is None
    for one, next_one in pairwise(seen):
        if next_one[0]:
            np.testing.assert_array_equal(one[3], next_one[2])
            assert np.abs(one[2] - one[3]).max() > 1e-3
