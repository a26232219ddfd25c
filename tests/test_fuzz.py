"""Any bytes under any name that the project reads are answered: a few fixed ones here, seconds of each kind with the slow tests.

Those are a check that nothing broke. `python -m tests.fuzz --minutes 60` is what looks for new faults.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fuzz.__main__ import replay
from tests.fuzz.broken import FAULTS
from tests.fuzz.contract import Outcome
from tests.fuzz.kinds import KINDS
from tests.fuzz.session import fuzz, table
from tests.fuzz.worker import Batch, read_once, run_batch
from tests.process_memory import give_back
from tests.with_torch import needs_torch

PICKLES = ("pickle", "pytorch index")
SLOW = (*PICKLES, "photo", "camera .npz", "depth PNG", "learning curve")
"""And every kind that Orbax reads: their seeds or their calls take seconds."""

QUICK = [name for name in KINDS if name not in SLOW and not name.startswith(("converted", "orbax", "training run", "training checkpoint"))]


@pytest.mark.parametrize("name", QUICK)
def test_a_few_inputs_of_a_kind_are_answered(name: str, tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    for number in (0, 1):
        run_batch(KINDS[name], Batch(name, 0, number, 10), tmp_path, outcomes.append)
    assert outcomes[0].verdict == "accepted", f"the valid seed: {outcomes[0].text}"
    assert [outcome.text for outcome in outcomes if outcome.verdict == "fault"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "seconds", "workers"),
    [
        pytest.param([kind for kind in KINDS if kind not in PICKLES], 18, 2, id="all others"),
        pytest.param(PICKLES, 2, 1, id="pickles", marks=needs_torch),
    ],
)
def test_some_inputs_of_every_kind_are_answered(kinds: Sequence[str], seconds: float, workers: int, tmp_path: Path) -> None:
    # Each kind has about a second, in one batch beside its seeds.
    tallies = fuzz(seconds, 0, tmp_path, kinds, workers=workers, progress=False, batch_seconds=0.9)
    told = f"{table(tallies)}\n\n{(tmp_path / 'faults.txt').read_text()}"
    assert set(tallies) == set(kinds)
    assert not any(tally.faults for tally in tallies.values()), told
    assert all(tally.sound for tally in tallies.values()), told
    # How many inputs a second holds is the machine's affair, and that of what else runs on it.
    assert sum(tally.refused for tally in tallies.values()) > len(kinds), told


@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_the_contract_is_a_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.contract.MEGABYTES", 100)
    give_back()  # what earlier tests left would be given back meanwhile, and hide what is taken
    kind, expected = FAULTS[name]
    outcome = read_once(kind, {"a.txt": b"1"}, tmp_path / "work")
    assert outcome.verdict == "fault" and expected in outcome.text, outcome
    assert not (tmp_path / "elsewhere").exists()


def test_the_same_numbers_give_the_same_inputs(tmp_path: Path) -> None:
    def inputs(number: int) -> list[bytes]:
        seen: list[bytes] = []
        kind = KINDS["image size"]
        run_batch(kind, Batch(kind.name, 3, number, 20), tmp_path, lambda _: seen.append((tmp_path / "case/option.txt").read_bytes()))
        return seen

    assert inputs(1) == inputs(1) and len(set(inputs(1))) > 10
    assert inputs(1) != inputs(2)


def test_an_input_that_kills_its_process_is_kept_and_can_be_replayed(tmp_path: Path) -> None:
    # It is among the first derived inputs, which a busy machine may not come to within the usual time of a batch.
    tallies = fuzz(0, 0, tmp_path, progress=False, kinds="tests.fuzz.broken", batch_seconds=300)
    assert tallies["dies"].sound
    (outcome,) = tallies["dies"].faults.values()
    assert "died with status -6" in outcome.text and "_dies" in outcome.text


def test_replay_says_what_comes_of_a_kept_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fuzz.worker import keep

    assert replay(keep({"option.txt": b"512x384"}, "image size", tmp_path)) == 0
    assert capsys.readouterr().out.startswith("accepted")
