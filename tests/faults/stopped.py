"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 in every phase: a documented end, soon, and nothing lost."""

import importlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.checkpoint import newest_valid
from common.dataset import open_data, verify_data
from sample.chat.transcript import load_conversation
from tests.faults.calls import Row
from tests.faults.commands import (
    GENERATE,
    Ended,
    prepare_command,
    resume_command,
    run,
    train_command,
)
from tests.faults.jobs import sources
from tests.prepare.making import prepare
from tests.processes import environment
from train.signals import STOPPING

SOON_S = 5.0
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHAT = ["sample", "chat", "tiny", "--device", "cpu", "--transcript", "talk.jsonl",
        "--max-new-tokens", "100"]  # fmt: skip
BPE = ["--tokenizer", "bpe", "--vocab-size", "300"]
# of each command: which function is called, and which call of it, when the signal comes
PHASES = {
    "prepare": [
        ("set-up", "prepare.pipeline.make_tasks", 1),
        ("first pass", "prepare.pipeline.SampleJob.__call__", 1),
        ("learning", "prepare.tokens.sample.train_bpe", 1),
        ("encoding", "prepare.output.shard_writer.join_documents", 1),
        ("merge", "prepare.output.dataset_writer.TokenWriter.finish", 1),
        ("commit", "prepare.output.commit._old_others", 1),
    ],
    "train": [
        ("set-up", "train.pretrain.initial_model", 1),
        ("measuring", "train.setup.autotune.step_time", 1),
        ("planning", "train.setup.autotune.make_plan", 1),
        ("begun", "train.pretrain.write_json", 1),
        ("update", "train.loop.learning_rate_at", 3),
        ("backward", "train.loop.backward", 9),
        ("save", "train.trainer.save_checkpoint", 1),
        ("flushing", "common.checkpoint._write_manifest", 2),
        ("pointing", "common.run_dir.write_pointer", 1),
        ("after a save", "common.run_dir.prune", 1),
        ("log", "train.trainer.append_metrics", 1),
        ("evaluation", "train.loop.evaluate", 1),
    ],
    "compile": [("compiling", "torch._inductor.compile_fx.compile_fx", 1)],
    "resume": [
        ("loading", "train.pretrain.load_checkpoint", 1),
        ("assembling", "train.pretrain.make_optimizer", 1),
        ("cutting", "train.recovery.cut_metrics", 1),
        ("update", "train.loop.learning_rate_at", 2),
    ],
    "generate": [
        ("loading", "common.checkpoint.load_checkpoint", 1),
        ("prefill", "common.inference.decoder.Decoder._forward", 1),
        ("streaming", "common.inference.decoder.Decoder.step", 9),
    ],
    "chat": [
        ("prefill", "common.inference.decoder.Decoder._forward", 1),
        ("streaming", "common.inference.decoder.Decoder.step", 9),
    ],
}


def signal_at(root: Path, where: str, n_calls: int, number: int) -> Callable[[], None]:
    """Return what has a process send itself a signal at the nth call of the function ``where``."""

    def before() -> None:
        path, _, name = where.rpartition(".")
        try:
            owner = importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, class_name = path.rpartition(".")
            owner = getattr(importlib.import_module(module), class_name)
        whole, calls = getattr(owner, name), itertools.count(1)

        def there(*given: object, **options: object) -> object:
            if next(calls) == n_calls:
                Path(f"{root}.met").write_text(str(time.monotonic()), encoding="utf-8")
                os.kill(os.getpid(), number)
            return whole(*given, **options)

        setattr(owner, name, there)

    return before


def complaint(stage: str, root: Path, ended: Ended, number: int) -> str:
    """Return what is wrong with how a command ended and what it left, if anything is."""
    if not ended.met:
        return f"never came there: {ended.stderr[-300:]}"
    if ended.ended_at - float(ended.met) > SOON_S:
        return f"took {ended.ended_at - float(ended.met):.1f} s"
    if "Traceback" in ended.stderr or ended.code != 128 + number:
        return f"exit code {ended.code}: {ended.stderr[-600:]}"
    if stage in ("train", "compile", "resume"):
        last = ended.stderr.splitlines()[-1]
        if "Stopped after step" in last:
            step = int(last.split("step ")[1].split(",")[0])
            if newest_valid(root / "runs" / "tiny", "latest").name != f"step-{step:08d}":
                return f"not saved: {last}"
        elif not last.startswith("Stopped before the first step"):
            return f"ends on {last}"
    if stage == "prepare":
        verify_data(open_data(root / "data"))  # the old one
    if stage == "chat" and not load_conversation(root / "talk.jsonl")[-1].stopped:
        return "the answer is not in the transcript"
    return ""


def cases(stages: list[str]) -> Iterator[tuple[str, str, str, int, int]]:
    """Yield (stage, phase, where, call, signal)."""
    for stage in stages:
        for phase, where, n_calls in PHASES[stage]:
            for number in STOPPING if stage in ("train", "compile", "resume") else HEARD:
                yield stage, phase, where, n_calls, number


def in_phases(place: Path, at_most: int) -> Iterator[Row]:
    """Send each signal in each phase, or at most so many, and go on to the end."""
    old = sources(place)[0]
    template = place / "template"
    template.mkdir()
    prepare([old], template / "data")
    long = {"max_steps": 100, "eval_interval": 50}
    stopped = signal_at(template, "train.loop.learning_rate_at", 8, signal.SIGTERM)
    assert run(template, train_command("data", **long), before=stopped).code == 143
    commands = {
        "prepare": [*prepare_command(place), *BPE],
        "train": train_command("data", **long | {"max_steps": 8, "eval_interval": 4}),
        "compile": train_command("data", compile="on"),
        "resume": resume_command(),
        "generate": GENERATE,
        "chat": CHAT,
    }
    # compiling takes some ten seconds before it can be interrupted
    chosen = list(cases([stage for stage in PHASES if at_most > 100 or stage != "compile"]))
    if len(chosen) > at_most:
        chosen = random.Random(2).sample(chosen, at_most)
    wrong, slowest = [], 0.0
    for stage, phase, where, n_calls, number in chosen:
        root = place / "stopped"
        shutil.copytree(template, root)
        if stage in ("train", "compile"):
            shutil.rmtree(root / "runs")
        (root / "typed").write_text("the stone\n", encoding="utf-8")

        def before() -> None:
            os.dup2(os.open("typed", os.O_RDONLY), 0)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            signal_at(root, where, n_calls, number)()  # noqa: B023

        ended = run(root, commands[stage], before=before)
        if found := complaint(stage, root, ended, number):
            wrong.append(f"{stage}, {phase}, {signal.Signals(number).name}: {found}")
        else:
            slowest = max(slowest, ended.ended_at - float(ended.met))
            if stage in ("prepare", "train", "generate"):
                again = run(root, commands[stage])
                if again.code != 0:
                    wrong.append(f"{stage}, {phase}: does not go on: {again.stderr[-600:]}")
        shutil.rmtree(root)
    detail = f"{slowest:.1f} s at most until the end"
    yield Row("a signal in each phase", len(chosen), detail, wrong)


def while_importing(place: Path, n: int) -> Iterator[Row]:
    """Send signals to processes that were started a moment ago."""
    drawn, wrong, n_documented = random.Random(3), [], 0
    data = prepare([sources(place)[0]], place / "to-import").path
    commands = [prepare_command(place), train_command(data, max_steps=100_000), GENERATE]
    for i in range(n):
        root = place / f"importing-{i}"
        root.mkdir()
        command = commands[i % 3]
        number = drawn.choice(HEARD)
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=root, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(drawn.uniform(0.15, 1.5))  # Python itself takes less to begin
        process.send_signal(number)
        sent_at = time.monotonic()
        stderr = process.communicate(timeout=60)[1]
        code = process.returncode
        n_documented += code == 128 + number
        # before a handler is there the system ends the process; a short command may be over
        if code not in (128 + number, -number, 0, 1) or "Traceback" in stderr:
            wrong.append(f"{command[:2]}, {number}: exit code {code}: {stderr[-600:]}")
        if time.monotonic() - sent_at > SOON_S:
            wrong.append(f"{command[:2]}, {number}: took {time.monotonic() - sent_at:.1f} s")
        shutil.rmtree(root)
    yield Row("a signal at a random moment of imports", n, f"{n_documented} heard", wrong)
