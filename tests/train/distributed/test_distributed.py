"""Several processes train as one does: the same losses, one writer, and one end for all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.checkpoint import load_checkpoint, newest_valid, verify_checkpoint
from common.dataset import DataFolder, Split
from common.errors import CheckpointError, ConfigError
from common.run_dir import checkpoints
from tests.train.chats import echoes, prepare_chats, two_answers, write_chats
from tests.train.distributed.launch import Ended, Job, run_jobs
from tests.train.runs import metrics, options
from train.data import dropout_seed
from train.distributed.comm import ProcessGroup, RankInfo, rank_device, rank_info_from
from train.pretrain import resume_run
from train.signals import StopRequest

# no step's rate depends on the length, and every step is logged; float32, whose sums are compared
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "n_layer": 2, "dropout": 0.0, "optimizer": "muon", "min_lr": 1e-2, "warmup_steps": 0,
    "log_interval": 1, "n_kv_head": 1, "ngrams": 3, "ngram_rows": 64, "ngram_dim": 8,
    "ngram_min_count": 2, "ngram_dropout": 0.0,
}  # fmt: skip
NO_DROPOUT = ["--dropout", "0", "--ngram-dropout", "0"]  # each process draws its own
DROPPED = {"dropout": 0.2, "max_steps": 6}
LONG = {"max_steps": 10_000, "eval_interval": 10_000, "save_interval": 10, "compile": "off"}

# Each is run in process 1 of two, when it has made seven updates.
AT_STEP_7 = """
import os, signal, train.loop
update = train.loop.update
def there(trainer, step, lr):
    if rank == 1 and step == 7:
        {what}
    return update(trainer, step, lr)
train.loop.update = there
"""
NO_MEMORY = """
import torch, train.loop, train.setup.autotune
backward = train.loop.backward
def too_much(trainer, rows, n_learned):
    if rank == 1 and len(rows) > 1:
        raise torch.OutOfMemoryError("injected")
    return backward(trainer, rows, n_learned)
train.loop.backward = train.setup.autotune.backward = too_much
"""
LATER_NO_MEMORY = """
import torch, train.loop, train.setup.autotune
backward, n = train.loop.backward, []
def too_much(trainer, rows, n_learned):
    n.append(1)
    if rank == 1 and len(n) > 12:
        raise torch.OutOfMemoryError("injected")
    return backward(trainer, rows, n_learned)
train.loop.backward = train.setup.autotune.backward = too_much
"""
IMPATIENT = "import train.distributed.comm; train.distributed.comm.TIMEOUT_S = 1"
NAN = """
import train.loop
backward = train.loop.backward
def broken(trainer, rows, n_learned):
    loss = backward(trainer, rows, n_learned)
    return loss * float("nan") if rank == 1 and trainer.optimizer.optimizers[0].lr > 0 else loss
train.loop.backward = broken
"""
SPOILT_AT_7 = """
import train.loop
from train.distributed.fsdp import to_local
update = train.loop.update
def spoilt(trainer, step, lr):
    if step == 7 and lr == 1e-2:
        for parameter in trainer.model.parameters():
            to_local(parameter.data).fill_(float("nan"))
    return update(trainer, step, lr)
train.loop.update = spoilt
"""
FULL = """
import train.distributed.fsdp
save = train.distributed.fsdp.save_sharded
def full(tensors, folder):
    if rank == 1:
        import errno
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        def nothing_left(*given):
            raise OSError(errno.ENOSPC, "No space left on device")
        HuggingFaceStorageWriter.write_data = nothing_left
    save(tensors, folder)
train.distributed.fsdp.save_sharded = full
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def new(data: DataFolder, world_size: int, name: str, *more: str, **changed: Any) -> Job:
    """Return a job that trains place/runs/NAME, of TINY's settings with SETTINGS and changes."""
    before = changed.pop("before", "")
    n_started = changed.pop("n_started", -1)
    settings = options(**(SETTINGS | changed))
    command = ["pretrain", "--data", str(data.path), "--run", name, *settings, *more]
    return Job(world_size, command, before, n_started)


def at_step_7(what: str) -> dict[str, Any]:
    return {"before": AT_STEP_7.format(what=what)} | LONG


def run_all(jobs: dict[str, Job], place: Path, name: str) -> dict[str, Ended]:
    streams = place / name
    streams.mkdir()
    return run_jobs(jobs, place, streams)


@pytest.fixture(scope="module")
def quick(data: DataFolder, place: Path) -> dict[str, Ended]:
    """Return how the jobs ended whose tests are always run."""
    talks: dict[Split, Any] = {
        "train": echoes(40, seed=0, n_turns=1), "val": echoes(9, seed=1, n_turns=1)
    }  # fmt: skip
    write_chats(place / "chats", data.tokenizer(), talks)

    def tuned(world_size: int, name: str) -> Job:
        """Return a job that goes on from run "one" with conversations and a share of its text."""
        command = ["finetune", "--from", "one:latest", "--data", "chats", "--run", name]
        settings = ["--max-steps", "6", "--mix", "0.25", "--log-interval", "1", "--device", "cpu"]
        return Job(world_size, [*command, *settings, "--batch-size", "1", *NO_DROPOUT])

    jobs = {
        "one": new(data, 0, "one"),
        "two": new(data, 2, "two"),
        "tuned by one": tuned(0, "tuned-one"),
        "tuned by two": tuned(2, "tuned-two"),
        "sharded": new(data, 2, "sharded", "--shard"),
        "SIGTERM": new(data, 2, "SIGTERM", **at_step_7("os.kill(os.getpid(), signal.SIGTERM)")),
    }
    return run_all(jobs, place, "quick")


@pytest.fixture(scope="module")
def ended(data: DataFolder, place: Path, quick: dict[str, Ended]) -> dict[str, Ended]:
    """Return how all jobs ended."""

    def resumed(world_size: int, name: str, *more: str) -> Job:
        command = ["resume", name, "--max-steps", "12", "--device", "cpu", *more]
        return Job(world_size, command)

    half = {"max_steps": 6}
    term, kill = (f"os.kill(os.getpid(), signal.{name})" for name in ("SIGTERM", "SIGKILL"))
    jobs = {
        "of one": new(data, 1, "of-one", "--shard"),
        "dropped": new(data, 2, "dropped", **DROPPED),
        "two, then one": new(data, 2, "two-one", **half),
        "one, then two": new(data, 0, "one-two", **half),
        "sharded, then one": new(data, 2, "sharded-one", "--shard", **half),
        "one, then sharded": new(data, 0, "one-sharded", **half),
        "sharded, then three": new(data, 2, "sharded-three", "--shard", tokens_per_step=96, **half),
        "three": new(data, 3, "three", tokens_per_step=96),
        "2-1": resumed(0, "two-one"),
        "1-2": resumed(2, "one-two"),
        "s-1": resumed(0, "sharded-one"),
        "1-s": resumed(2, "one-sharded", "--shard"),
        "s-3": resumed(3, "sharded-three", "--no-shard"),
        "SIGTERM, sharded": new(data, 2, "SIGTERM-sharded", "--shard", **at_step_7(term)),
        "SIGKILL": new(data, 2, "SIGKILL", **(at_step_7(kill) | {"save_interval": 5})),
        "no memory": new(data, 2, "no-memory", before=NO_MEMORY),
        "later no memory": new(data, 2, "later", before=LATER_NO_MEMORY),
        "nan": new(data, 2, "nan", before=NAN, max_bad_steps=2, max_steps=8),
        "back, one": new(data, 0, "back-one", before=SPOILT_AT_7, max_bad_steps=2),
        "back, sharded": new(
            data, 2, "back-sharded", "--shard", before=SPOILT_AT_7, max_bad_steps=2
        ),
        "full": new(data, 2, "full", "--shard", before=FULL),
        "alone": new(data, 2, "alone", n_started=1, before=IMPATIENT),
        "uneven": new(data, 3, "uneven"),
    }
    return quick | run_all(jobs, place, "all")


@pytest.fixture(scope="module")
def tuned(data: DataFolder, place: Path, quick: dict[str, Ended]) -> dict[str, Ended]:
    """Return how jobs ended that go on from a run that has learned conversations."""
    prepare_chats(two_answers(40), place, "pairs", data.path)
    more = "--from tuned-one:latest --device cpu --max-steps 6 --log-interval 1"
    more = " ".join([more, *NO_DROPOUT, "--run"])
    pairs, adapters = "preference --data pairs --block-size 32", "finetune --data chats --lora 2"
    commands = {
        "pairs-one": (0, pairs),
        "pairs-two": (2, pairs),
        "pairs-sharded": (2, f"{pairs} --shard"),
        "adapters-one": (0, adapters),
        "adapters-two": (2, adapters),
    }
    jobs = {
        name: Job(world_size, [*command.split(), *more.split(), name])
        for name, (world_size, command) in commands.items()
    }
    return run_all(jobs, place, "tuned")


def run_of(place: Path, name: str) -> Path:
    return place / "runs" / name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(newest_valid(run, "latest") / "model.safetensors"))


def assert_same_to_rounding(run: Path, other: Path) -> None:
    """Hold that two runs logged the same steps and losses, and ended with the same weights."""
    lines, others = metrics(run), metrics(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, expected in zip(lines, others, strict=True):
        for key in ("loss", "grad_norm", "train_loss", "val_loss", "train_bpb", "val_bpb"):
            value = expected.get(key)
            assert line.get(key) == (value and pytest.approx(value, rel=1e-3)), line["step"]
    for name, tensor in weights(run).items():
        if not tensor.is_floating_point():  # tags of n-grams
            assert tensor.equal(weights(other)[name])
            continue
        # not by element: AdamW and Muon make full steps of gradients that are but rounding
        distance = (tensor - weights(other)[name]).norm() / tensor.norm()
        assert distance < 0.05, name


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_the_losses_and_weights_are_those_of_one_process_with_accumulation(
    quick: dict[str, Ended], place: Path, name: str
) -> None:
    assert quick[name].codes == [0, 0], quick[name].said
    assert_same_to_rounding(run_of(place, name), run_of(place, "one"))


def test_conversations_are_learned_by_several_processes_as_by_one(
    quick: dict[str, Ended], place: Path
) -> None:
    """Though each has other numbers of ids that are learned."""
    for name in ("tuned by one", "tuned by two"):
        assert set(quick[name].codes) == {0}, quick[name].said
    assert_same_to_rounding(run_of(place, "tuned-two"), run_of(place, "tuned-one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by_one"),
    [("pairs-two", "pairs-one"), ("pairs-sharded", "pairs-one"), ("adapters-two", "adapters-one")],
)
def test_so_are_preferences_and_adapters(
    tuned: dict[str, Ended], place: Path, name: str, by_one: str
) -> None:
    for each in (name, by_one):
        assert set(tuned[each].codes) == {0}, tuned[each].said
    assert_same_to_rounding(run_of(place, name), run_of(place, by_one))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["of one", "no memory"])
def test_so_they_are_with_shards_of_one_process_and_where_memory_ran_out(
    ended: dict[str, Ended], place: Path, name: str
) -> None:
    job = ended[name]
    assert set(job.codes) == {0}, job.said
    assert_same_to_rounding(run_of(place, name.replace(" ", "-")), run_of(place, "one"))


def test_dropout_differs_between_processes_and_the_first_has_that_of_a_single_one() -> None:
    seeds = {dropout_seed(1, step, rank) for step in range(3) for rank in range(3)}
    assert len(seeds) == 9
    assert dropout_seed(1, 2, 0) == dropout_seed(1, 2)


@pytest.mark.slow
def test_with_dropout_the_processes_drop_other_numbers(
    ended: dict[str, Ended], place: Path
) -> None:
    assert set(ended["dropped"].codes) == {0}
    losses = [
        [line["loss"] for line in metrics(run_of(place, name))[:6]] for name in ("dropped", "one")
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("two-one", "two, then one", "2-1"),
        ("one-two", "one, then two", "1-2"),
        ("sharded-one", "sharded, then one", "s-1"),
        ("one-sharded", "one, then sharded", "1-s"),
    ],
)
def test_a_checkpoint_of_n_processes_goes_on_with_m(
    ended: dict[str, Ended], place: Path, name: str, first: str, then: str
) -> None:
    assert set(ended[first].codes) == {0}, ended[first].said
    assert set(ended[then].codes) == {0}, ended[then].said
    assert_same_to_rounding(run_of(place, name), run_of(place, "one"))


@pytest.mark.slow
def test_three_processes_go_on_with_the_shards_of_two(ended: dict[str, Ended], place: Path) -> None:
    for name in ("sharded, then three", "three", "s-3"):
        assert set(ended[name].codes) == {0}, ended[name].said
    assert_same_to_rounding(run_of(place, "sharded-three"), run_of(place, "three"))


def test_only_the_first_process_writes_and_speaks(quick: dict[str, Ended], place: Path) -> None:
    for name in ("two", "sharded"):
        first, second = quick[name].said
        assert second == ""
        lines = [line for line in first.splitlines() if line.startswith("step ")]
        assert len(lines) == len(set(lines)) == 12
        steps = [line["step"] for line in metrics(run_of(place, name))]
        assert steps == list(range(1, 13))
        assert not list(run_of(place, name).glob("*.tmp"))


def test_whoever_reads_a_sharded_checkpoint_finds_whole_weights(
    quick: dict[str, Ended], place: Path
) -> None:
    saved = newest_valid(run_of(place, "sharded"), "best")
    model = load_checkpoint(saved, torch.device("cpu")).model
    assert {*model.state_dict()} == {*weights(run_of(place, "one"))}
    shards = sorted(path.name for path in (saved / "optimizer").iterdir())
    assert [name[:11] for name in shards] == ["shard-00001", "shard-00002"]
    sizes = [(saved / "optimizer" / name).stat().st_size for name in shards]
    assert max(sizes) < 0.7 * sum(sizes)  # each wrote its own
    assert not (saved / "optimizer.safetensors").exists()


def test_a_changed_bit_in_a_shard_is_found(
    quick: dict[str, Ended], place: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(newest_valid(run_of(place, "sharded"), "latest"), copy)
    shard = max((copy / "optimizer").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-00002.*changed after it was written"):
        verify_checkpoint(copy)
    verify_checkpoint(copy, skip_optimizer=True)


def assert_stopped_after_step_8(job: Ended, run: Path) -> None:
    assert job.codes == [143, 143], job.said
    assert newest_valid(run, "latest").name == "step-00000008"
    assert "Stopped after step 8, everything saved." in job.said[0]


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    quick: dict[str, Ended], place: Path
) -> None:
    assert_stopped_after_step_8(quick["SIGTERM"], run_of(place, "SIGTERM"))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_that_share_the_weights(
    ended: dict[str, Ended], place: Path
) -> None:
    assert_stopped_after_step_8(ended["SIGTERM, sharded"], run_of(place, "SIGTERM-sharded"))


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_with_the_reason(
    ended: dict[str, Ended], place: Path
) -> None:
    assert ended["SIGKILL"].codes == [1, -9]
    last = ended["SIGKILL"].said[0].splitlines()[-1]
    assert last.startswith("Error: process 0 of 2: another process has ended")
    assert "Traceback" not in ended["SIGKILL"].said[0]
    assert [each.name for each in checkpoints(run_of(place, "SIGKILL"))] == ["step-00000005"]


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_halves_the_rows_in_all(
    ended: dict[str, Ended],
) -> None:
    first, second = ended["no memory"].said
    assert "out of memory: from now on 2 x 1 rows of 16 in each process" in first
    assert second == ""


@pytest.mark.slow
def test_memory_that_runs_out_where_others_wait_ends_the_job_with_a_sentence(
    ended: dict[str, Ended],
) -> None:
    job = ended["later no memory"]
    assert job.codes == [1, 1]
    assert job.said[1].startswith("Error: process 1 of 2: out of memory with 2 rows at a time")
    assert "another process has ended" in job.said[0].splitlines()[-1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_in_one_process_is_skipped_by_all(
    ended: dict[str, Ended],
) -> None:
    job = ended["nan"]
    assert job.codes == [1, 1]
    assert "step 1: the loss is nan" in job.said[0]
    for said in job.said:
        assert "the run has diverged" in said.splitlines()[-1]


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_given_up_for_a_checkpoint_by_all(
    ended: dict[str, Ended], place: Path
) -> None:
    job = ended["back, sharded"]
    assert job.codes == [0, 0], job.said
    assert "step-00000006, with the learning rate times 0.5" in job.said[0]
    assert_same_to_rounding(run_of(place, "back-sharded"), run_of(place, "back-one"))


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_leaves_nothing_half_written(
    ended: dict[str, Ended], place: Path
) -> None:
    job = ended["full"]
    assert job.codes == [1, 1]
    assert "process 1: " in job.said[0].splitlines()[-1]
    assert "No space left on device" in job.said[0].splitlines()[-1]
    assert checkpoints(run_of(place, "full")) == []


@pytest.mark.slow
def test_a_failed_rendezvous_is_a_sentence(ended: dict[str, Ended]) -> None:
    assert ended["alone"].codes == [1]
    last = ended["alone"].said[0].splitlines()[-1]
    assert last.startswith("Error: process 0 of 2: the 2 processes did not connect at 127.0.0.1:")


@pytest.mark.slow
def test_rows_that_cannot_be_shared_evenly_are_refused_before_there_is_a_run(
    ended: dict[str, Ended], place: Path
) -> None:
    assert ended["uneven"].codes == [1, 1, 1]
    for said in ended["uneven"].said:
        assert "3 processes cannot share the 4 rows" in said
        assert "--tokens-per-step 96" in said
    assert not run_of(place, "uneven").exists()


def test_a_run_that_is_finished_by_two_is_finished_for_one(
    quick: dict[str, Ended], place: Path
) -> None:
    assert quick["two"].codes == [0, 0]
    assert resume_run(run_of(place, "two"), "cpu", StopRequest()) is None


WHOLE = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1",
}  # fmt: skip


def test_the_rank_is_read_from_the_variables_of_torchrun() -> None:
    assert rank_info_from({}) is None
    assert rank_info_from({"WORLD_SIZE": "1"}) is None
    assert rank_info_from(WHOLE) == RankInfo(rank=1, world_size=4, local_rank=1, master="host:1")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR is not set, MASTER_PORT is not"),
        ({"RANK": "4"}, "RANK is 4, WORLD_SIZE is 4"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is many"),
    ],
)
def test_variables_that_make_no_sense_are_refused(
    changed: dict[str, str | None], said: str
) -> None:
    environment = {k: v for k, v in (WHOLE | changed).items() if v is not None}
    with pytest.raises(ConfigError) as refusal:
        rank_info_from(environment)
    assert said in refusal.value.message


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = RankInfo(rank=1, world_size=2, local_rank=1, master="host:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert rank_device(second, "auto") == rank_device(second, "cuda") == "cuda:1"
    assert rank_device(None, "auto") == "auto"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="has 1 GPUs: start --nproc-per-node 1"):
        rank_device(second, "auto")
    with pytest.raises(ConfigError, match="cpu or cuda only"):
        rank_device(second, "mps")


def test_one_process_agrees_with_itself() -> None:
    alone = ProcessGroup()
    assert alone.broadcast_from_rank0(lambda: "said") == "said"
    assert alone.all_reduce_max(3.0) == 3.0
    assert alone.all_reduce(1.0, 2.0) == [1.0, 2.0]
    assert alone.rows_per_rank(7, 16) == 7
