"""What a terminal, a pipe and NO_COLOR see of a run."""

import os
import pty
import re
import subprocess
import sys

import pytest

from conftest import TINY

COLOUR = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38;[0-9;]+)m")
TRAIN = [
    sys.executable,
    "-m",
    "layergraft",
    "train",
    "donor=random",
    "host=resnet8",
    *(o for o in TINY if "donor" not in o),
]


def in_a_terminal(arguments, cwd, **environment):
    """What is written to a terminal, as bytes."""
    master, slave = pty.openpty()
    there = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {
        "TERM": "xterm-256color",
        **environment,
    }
    process = subprocess.Popen(arguments, cwd=cwd, env=there, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    assert process.wait() == 0, seen
    return seen


@pytest.mark.parametrize("no_color", [None, pytest.param("1", marks=pytest.mark.slow)])
def test_a_terminal_has_a_bar_and_colours_unless_asked_not_to(no_color, tmp_path):
    seen = in_a_terminal(TRAIN, tmp_path, **({"NO_COLOR": no_color} if no_color else {}))
    assert "━".encode() in seen and b"2/2" in seen
    assert bool(COLOUR.search(seen)) == (no_color is None)


def test_a_pipe_has_neither(tmp_path):
    done = subprocess.run(TRAIN, cwd=tmp_path, capture_output=True, env={**os.environ, "FORCE_COLOR": ""})
    assert done.returncode == 0
    said = done.stdout + done.stderr
    assert b"\x1b" not in said and b"\r" not in said and b"outputs/runs/" in said
