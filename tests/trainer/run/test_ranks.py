"""A port at which the ranks cannot meet is named."""

from __future__ import annotations

import socket

import pytest

from dataengine.errors import InputError
from trainer.run.ranks import Group


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(InputError) as error, Group():
            pass
    words = str(error.value)
    assert words.startswith(f"rank 0 of 2 cannot meet the others at 127.0.0.1:{port}: The server socket has failed ")
    assert words.endswith("with the MASTER_ADDR of the first one and a MASTER_PORT that is free there.")
    assert "address already in use. Start the same command" in words
    assert len(words.splitlines()) == 1
