"""What the sender was given arrives, whatever happens on the way."""

from pathlib import Path

import pytest

from lit_mnist.errors import UserError
from lit_mnist.tracking.run import open_run


def test_an_errand_of_an_errand_is_done_before_the_run_ends(project: Path) -> None:
    with open_run("errands", system_metrics=False) as run:
        run.sender.submit(lambda: run.sender.submit(lambda: run.set_tags({"deep": "down"})))
    assert run.data().data.tags["deep"] == "down"


def test_what_fails_once_is_sent_later_and_nothing_overtakes_it(project: Path) -> None:
    done: list[str] = []

    def stubborn() -> None:
        done.append("tried")
        if len(done) == 1:
            raise ConnectionError("away for a moment")

    with open_run("errands", system_metrics=False) as run:
        run.sender.submit(stubborn)
        run.sender.submit(lambda: done.append("after"))
        run.log_metrics({"loss": 1.0}, 1)
    assert done == ["tried", "tried", "after"]
    assert run.data().data.metrics == {"loss": 1.0} and run.data().info.status == "FINISHED"


def test_what_never_arrives_is_said_and_the_run_has_failed(project: Path) -> None:
    def hopeless() -> None:
        raise ConnectionError("gone for good")

    with pytest.raises(UserError, match=r"did not take all of run .*: gone for good"):  # noqa: SIM117
        with open_run("errands", system_metrics=False) as run:
            run.sender.submit(hopeless)
    assert run.data().info.status == "FAILED"


def test_more_points_than_one_call_takes_all_arrive(project: Path) -> None:
    with open_run("errands", system_metrics=False) as run:
        for step in range(2500):
            run.log_metrics({"loss": step / 2, "epoch": 0}, step)
        assert run.history("loss") == [(step, step / 2) for step in range(2500)]
