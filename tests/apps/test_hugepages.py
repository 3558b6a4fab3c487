"""Huge pages: the environment of the restarted process, and that it restarts exactly once."""

import os
import subprocess
import sys

import pytest

from edgeloop.apps import hugepages
from edgeloop.apps.hugepages import SWITCH, environment_with_huge_pages


def test_the_tunable_is_merged_with_the_users_own() -> None:
    environment = environment_with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=1", "HOME": "/x"})
    assert environment == {
        "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1",
        "HOME": "/x",
        SWITCH: "restarted",
    }


@pytest.mark.parametrize(
    "environment",
    [{SWITCH: "0"}, {SWITCH: "restarted"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}],
    ids=["switched off", "already restarted", "the user's own"],
)
def test_no_restart_when(environment: dict[str, str]) -> None:
    assert environment_with_huge_pages(environment) is None


def test_the_process_restarts_once_with_its_arguments() -> None:
    if hugepages.huge_pages_status() not in ("madvise", "always"):
        pytest.skip(f"huge pages: {hugepages.huge_pages_status()}")
    code = """
import os, sys
print("start", os.getpid(), sys.argv[1:], flush=True)
from edgeloop.apps.hugepages import huge_pages_on, restart_with_huge_pages
restart_with_huge_pages()
print(huge_pages_on(), sys.prefix)
"""
    environment = {k: v for k, v in os.environ.items() if k not in (SWITCH, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", "é"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second, result = done.stdout.splitlines()
    assert first == second  # the same process, the same arguments
    assert first.endswith("['a b', 'é']")
    assert result == f"True {sys.prefix}"
