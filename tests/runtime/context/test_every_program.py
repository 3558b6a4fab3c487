"""Contexts of the programs that the tests have: a shift that keeps a row, several blocks, positions in a table."""

from __future__ import annotations

import numpy as np
import pytest
from programs import PROGRAMS

from edgeloop.runtime.session import Session

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
HOSTS = ("encoder", "relaxed", "routed")
"""No next token; and heads that the host computes, which no bundle here has."""


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in HOSTS])
def test_a_context_of_it(maker, tmp_path, name):
    bundle = maker.bundle(tmp_path / "bundle", PROGRAMS[name]())
    file = tmp_path / "a.session"

    def logits(session):
        return session._use_context().prefill()[0][-1].copy()

    with Session.open(bundle, engine="reference") as session:
        session.append(IDS)
        wanted = logits(session)
        session.reset()
        for start, end in ((0, 5), (5, 6), (6, 9)):
            session.append(IDS[start:end])
            logits(session)
        session.save(file)
        session.append([7, 7, 7])
        logits(session)
        session.truncate(9)
        other = session.fork()
        restored = Session.load(bundle, file, engine="reference")
        for each in (session, other, restored):
            assert each.ids == IDS[:9]
            each.append(IDS[9:])
            np.testing.assert_allclose(logits(each), wanted, atol=2e-5)
        assert restored._context.decoder.cached == len(IDS)
        restored.close()
        other.close()
