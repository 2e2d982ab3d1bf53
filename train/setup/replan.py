"""A run of --minutes ends on time: its steps are fixed anew where they no longer fit what is left.

The plan at its beginning is a guess from a few trial updates, and the machine may become slower or
faster at any time. So the run looks at its own speed now and then. A decision is [step, max_steps]:
from that step on the rest of the schedule is spread over other steps (optim/lr_schedule.py). It is
logged in metrics.jsonl, and kept in the checkpoints: a resumed run repeats those before its step.
"""

import logging
import math
from dataclasses import replace

from train.config import TimeLimit, TrainPlan
from train.distributed.comm import ProcessGroup
from train.monitoring.metrics import Progress

log = logging.getLogger(__name__)

# A look is due after updates for this share of --minutes, or where so many of the steps left are
# made: they may be far fewer than the time has room for.
LOOK_SHARE, LOOK_STEPS = 0.01, 0.1
FADING = 0.67  # weight of all looks before the newest one: a slow second is no slow machine
# How far off its end a run may be expected to be: a share of --minutes, which leaves the rest of a
# twentieth to the last evaluation; early in a run, while much can be made good, of what is left.
TOLERANCE, TOLERANCE_LEFT = 0.02, 0.1


class Replanner:
    """Looks at the speed of a run, and decides; without a limit it leaves the plan as it is."""

    def __init__(
        self, plan: TrainPlan, limit: TimeLimit | None, first_step: int, group: ProcessGroup
    ) -> None:
        self._plan, self._limit, self._group = plan, limit, group
        self._first_step = first_step
        self._mark: Progress | None = None  # where the speed is measured from
        self._dt_s = self._n_steps = 0.0  # of late: their ratio is the speed

    def plan_at(self, progress: Progress) -> TrainPlan:
        """Return the plan from ``progress`` on; a decision is put on record in it."""
        plan = self._plan.after(self._limit, progress.decisions)
        if self._limit is None or progress.step in (self._first_step, plan.max_steps):
            return plan
        fitting = self._fitting_steps(self._limit, plan, progress) if self._group.is_rank0 else 0
        max_steps = int(self._group.all_reduce_max(fitting))  # the first rank's
        if max_steps in (0, plan.max_steps):
            return plan
        was, now = f"{plan.max_steps:,}", f"{max_steps:,}"
        log.info("length      %s steps in place of %s, to end on time", now, was)
        progress.decisions.append([progress.step, max_steps])
        progress.record["max_steps"] = max_steps
        return self._plan.after(self._limit, progress.decisions)

    def _fitting_steps(self, limit: TimeLimit, plan: TrainPlan, progress: Progress) -> int:
        """Return with how many steps in all the run ends on time; 0 where those of ``plan`` do."""
        if self._mark is None:  # after the first update, which warms up
            self._mark = replace(progress)
        step, mark = progress.step, self._mark
        dt_s, n_steps = progress.update_s - mark.update_s, step - mark.step
        is_due = n_steps >= LOOK_STEPS * (plan.max_steps - mark.step)
        if n_steps == 0 or not (is_due or dt_s >= LOOK_SHARE * limit.seconds):
            return 0
        self._dt_s = FADING * self._dt_s + dt_s
        self._n_steps = FADING * self._n_steps + n_steps
        step_s = self._dt_s / self._n_steps
        progress.timed_step_s = progress.timed_step_s or step_s
        self._mark, costs = replace(progress), progress.costs(step_s)
        left_s = limit.from_s + limit.seconds - progress.seconds
        late_s = plan.remaining_s(step, *costs) - left_s
        if abs(late_s) <= max(TOLERANCE * limit.seconds, TOLERANCE_LEFT * left_s):
            return 0
        return max(step + 1, plan.max_steps - math.ceil(late_s / plan.seconds_per_step(*costs)))
