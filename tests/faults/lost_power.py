"""A power cut at any moment: what opens afterwards, and whether a person can go on."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults import jobs
from tests.faults.calls import Row, watched
from tests.faults.jobs import Job
from tests.faults.power_cut import Recorder, crashes, write_tree

AT_MOST = 48  # states after one event, of those that there may be


def check(job: Job, place: Path, n_states: int, n_continued: int) -> Row:
    """Open all states (or so many), and go on from some of the distinct ones."""
    root = place / job.name.replace("/", "").replace(" ", "-")
    root.mkdir()
    job.before(root)
    recorder = Recorder(root)
    with watched(root, recorder):
        job.make(root, recorder.promise)
    found = list(crashes(recorder, job.labels[0], AT_MOST, seed=0))
    drawn = random.Random(1)
    if len(found) > n_states:
        found = [found[0], *drawn.sample(found, n_states - 2), found[-1]]
    opened: dict[str, object] = {}
    wrong: list[str] = []
    again = place / "again"
    keys = sorted({crash.key for crash in found})
    continued = set(drawn.sample(keys, min(n_continued, len(keys))))
    for crash in found:
        if (key := crash.key) not in opened:
            write_tree(crash.tree, again)
            try:
                opened[key] = job.opens(again)
                if key in continued and not job.goes_on(again):
                    wrong.append(f"going on from {sorted(crash.tree)} ends otherwise")
            except Exception as error:
                wrong.append(f"{sorted(crash.tree)}: {type(error).__name__}: {error}")
                opened[key] = job.labels[-1]
            shutil.rmtree(again)
        if opened[key] not in job.labels[job.labels.index(crash.promised) :]:
            wrong.append(f"{sorted(crash.tree)}: {crash.promised} promised, {opened[key]} opens")
    distinct = f"{len(opened):,} distinct, {len(continued):,} gone on with"
    return Row(f"power cut: {job.name}", len(found), f"{distinct}, {len(recorder.events):,} calls",
               wrong)  # fmt: skip


def of_prepare(place: Path, n_states: int) -> Iterator[Row]:
    """Cut the power while a data set is made, in place of another and anew."""
    for over_old in (True, False):
        job = jobs.prepare_job(place, over_old=over_old)
        yield check(job, place, n_states, n_states // 10)


def of_train(place: Path, n_states: int) -> Iterator[Row]:
    """Cut the power while a run is trained."""
    yield check(jobs.train_job(place), place, n_states, n_states // 40)


def of_chat(place: Path, n_states: int) -> Iterator[Row]:
    """Cut the power while turns are added to a transcript, and a conversation is saved."""
    for name, begin in (("chat --transcript", jobs.add_turns), ("/save", jobs.save)):
        yield check(jobs.chat_job(name, begin), place, n_states, n_states)
