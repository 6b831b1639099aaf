"""Composer calls our callbacks by their events, and stores their states under their names."""

from __future__ import annotations

from typing import Any

import composer
import pytest

from dataengine.schedule.manifest import Manifest
from dataengine.schedule.slots import Stage
from trainer.training.callbacks.ledger import SampleLedger
from trainer.training.callbacks.protocol import Callback, State
from trainer.training.composer_adapter import ComposerState, adapt

MANIFEST = Manifest("m", "t", 1000, 2, 16, 4, 1, 17, 8, (), (Stage("s", 1, {"x": 4}),))
EVENTS = [name for name in vars(Callback) if not name.startswith("_") and not name.endswith("state_dict")]


def test_composer_has_every_event_of_the_protocol() -> None:
    """But `close`, which it calls apart."""
    assert len(EVENTS) == 9
    assert {*EVENTS} - {"close"} <= {event.value for event in composer.Event}


@pytest.mark.parametrize("event", composer.Event)
def test_a_callback_hears_of_the_events_of_the_protocol_and_of_no_others(event: composer.Event) -> None:
    heard: list[tuple[str, State]] = []

    class Listener(Callback):
        pass

    for name in EVENTS:
        setattr(Listener, name, lambda self, state, name=name: heard.append((name, state)))
    state: Any = object()
    logger: Any = object()
    adapt(Listener()).run_event(event, state, logger)
    assert heard == ([(event.value, ComposerState(state, logger))] if event.value in EVENTS else [])


def test_the_state_in_a_checkpoint_has_the_name_of_the_callback() -> None:
    ledger = SampleLedger(MANIFEST, rank=0)
    ledger.digest = "0a"
    adapted = adapt(ledger)
    assert {type(adapted).__qualname__: adapted.state_dict()} == {"SampleLedger": {"digest": "0a"}}
    adapted.load_state_dict({"digest": "0b"})
    assert ledger.digest == "0b"
