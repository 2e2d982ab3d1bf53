"""The number of threads follows the machine: on a clock of its own."""

from collections.abc import Callable

from common.thread_tuner import LONG_S, TRIAL_SHARE, ThreadTuner, halved

# Seconds of an update by the number of threads, as measured on two cores (thread_tuner.py).
ALONE, BUSY = {1: 0.040, 2: 0.029}, {1: 0.045, 2: 1.070}
SMALL = {1: 0.013, 2: 0.024}


def run(tuner: ThreadTuner, update_s: Callable[[int], float], seconds: float) -> float:
    """Update for so long; return the updates a second."""
    elapsed_s, n_updates = 0.0, 0
    while elapsed_s < seconds:
        dt_s = update_s(tuner.n)
        tuner.add(dt_s)
        elapsed_s += dt_s
        n_updates += 1
    return n_updates / elapsed_s


def test_alone_all_threads_work_and_trials_cost_hardly_anything() -> None:
    tuner = ThreadTuner([1, 2])
    assert run(tuner, ALONE.__getitem__, 60) > 0.98 / ALONE[2]
    assert tuner.n == 2


def test_beside_a_busy_process_one_thread_works_within_seconds_and_later_both_again() -> None:
    tuner = ThreadTuner([1, 2])
    run(tuner, ALONE.__getitem__, 10)
    run(tuner, BUSY.__getitem__, 5)
    assert tuner.n == 1
    assert run(tuner, BUSY.__getitem__, 600) > (1 - 2 * TRIAL_SHARE) / BUSY[1]
    run(tuner, ALONE.__getitem__, 120)
    assert tuner.n == 2


def test_a_machine_that_is_busy_from_the_start_is_met_with_fewer_threads_after_two_updates() -> (
    None
):
    tuner = ThreadTuner([1, 2], usual_s=LONG_S / 3)
    tuner.add(LONG_S)
    tuner.add(LONG_S)
    assert tuner.n == 1


def test_updates_that_take_long_anywhere_are_not_made_longer_at_the_start() -> None:
    tuner = ThreadTuner([1, 2], usual_s=20.0)
    assert run(tuner, {1: 18.0, 2: 10.0}.__getitem__, 300) == 1 / 10.0


def test_where_a_change_costs_much_only_a_slow_machine_makes_it_and_it_is_undone_later() -> None:
    compiled = {1: 60.0, 2: 0.0}  # seconds, in the first step with a number

    def update_s(times: dict[int, float], n: int) -> float:
        cost = compiled[n]
        compiled[n] = 0.0
        return times[n] + cost

    def run_compiled(times: dict[int, float], seconds: float) -> None:
        elapsed_s = 0.0
        while elapsed_s < seconds:
            dt_s = update_s(times, tuner.n)
            tuner.add(dt_s, changes_cost=True)
            elapsed_s += dt_s

    tuner = ThreadTuner([1, 2])
    run_compiled(ALONE, 600)
    assert compiled[1] == 60.0
    run_compiled(BUSY, 100)
    assert tuner.n == 1
    run_compiled(ALONE, 100 + 60 / TRIAL_SHARE)
    assert tuner.n == 2


def test_a_network_too_small_for_two_threads_has_one() -> None:
    tuner = ThreadTuner([1, 2])
    assert run(tuner, SMALL.__getitem__, 60) > 0.97 / SMALL[1]
    assert tuner.n == 1


def test_eight_threads_beside_a_busy_process_become_four_not_one() -> None:
    alone = {n: 0.8 / n for n in (1, 2, 4, 8)}
    tuner = ThreadTuner(halved(8))
    run(tuner, alone.__getitem__, 10)
    run(tuner, (alone | {8: 3.0}).__getitem__, 60)
    assert tuner.n == 4


def test_updates_that_vary_by_a_third_keep_their_threads() -> None:
    tuner, times = ThreadTuner([1, 2]), iter(range(10**9))
    run(tuner, lambda n: ALONE[n] * (1 + next(times) % 3 / 6), 60)
    assert tuner.n == 2


def test_halves_go_down_to_one() -> None:
    assert [halved(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 3, 6], [1, 2, 4, 8]]


def test_a_single_processor_is_never_shared_by_two_threads() -> None:
    tuner = ThreadTuner([1], 4)
    run(tuner, lambda n: 0.1, 10)
    assert tuner.n == 1
