"""A sweep by one worker: what it finds, keeps, goes on with and refuses."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxprune as op
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.settings import ShrinkSettings, build
from onnxprune.sweeping import store as stores, worker as workers
from onnxprune.sweeping.candidate import Bench, bench
from onnxprune.sweeping.session import Sweep, found
from onnxprune.sweeping.store import create, join, open_store
from onnxprune.sweeping.worker import Worker, distributions
from tests.cli.support import document, invoke, refused
from tests.report.schemas import AVAILABLE, problems
from tests.sweep.cases import QUICK, needs_optuna, write
from tests.toolbox import Net

pytestmark = [pytest.mark.dev, needs_optuna]
TRIALS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network, data, and a sweep of them."""
    folder = tmp_path_factory.mktemp("sweep")
    model, data = write(folder)
    swept(model, data, folder / "a.sweep", TRIALS)
    return folder


def swept(model: Path, data: Path, store: Path, trials: int, **more: Any) -> Sweep:
    return op.sweep(model, store=str(store), data=str(data), trials=trials, **QUICK, **more)


def front(sweep: Sweep) -> list[tuple[Any, ...]]:
    return [(*sorted(row.choice.items()), row.document["sha256"], row.loss.value) for row in sweep.front]


def test_the_front_is_what_none_beats_by_brute_force(folder: Path) -> None:
    sweep = found(str(folder / "a.sweep"))
    assert sweep.counts["complete"] + sweep.counts["pruned"] == TRIALS and not sweep.counts["failed"]
    values = {r.number: np.array([r.loss.value, r.costs["macs"], r.costs["size"]]) for r in sweep.rows}
    beaten = {n for n, own in values.items() if any((v <= own).all() and (v < own).any() for v in values.values())}
    numbers = [row.number for row in sweep.front]
    assert beaten and not beaten & set(numbers)
    assert {tuple(values[n]) for n in values.keys() - beaten} == {tuple(values[n]) for n in numbers}
    assert numbers == sorted(numbers, key=lambda n: (values[n][0], n)) and len(numbers) >= 3


def test_models_of_the_front_are_kept_and_give_what_their_rows_say(folder: Path) -> None:
    """Sizes, digests and the drop are those of the files, by ONNX Runtime itself on the samples that choose."""
    sweep, kept = found(str(folder / "a.sweep")), folder / "a.sweep.models"
    files = {f"{row.number:04}.onnx" for row in sweep.front}
    assert {path.name for path in kept.glob("*.onnx")} == files
    assert any(row.document["proved"] for row in sweep.front)
    with opened(folder) as own:
        assert own.pipeline.parts is not None
        (batch,) = own.pipeline.parts.choosing.batches(1000)
    inputs, labels = batch.inputs, batch.labels
    for row in sweep.front:
        path = kept / f"{row.number:04}.onnx"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        right = (np.asarray(session.run(None, inputs)[0]).argmax(1) == labels).mean()
        assert row.loss.value == pytest.approx(1 - right)  # the labels are the file's own answers
        assert row.costs["size"] == path.stat().st_size and op.load(path).sha256 == row.document["sha256"]


def opened(folder: Path) -> Any:
    settings = build(ShrinkSettings, {**QUICK, "data": str(folder / "data.npz")})
    return bench(folder / "model.onnx", settings)


def test_a_model_is_picked_and_made_again_by_its_recipe(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    told = document("sweep pick", folder / "a.sweep", "--max-drop", "10%", "-o", out)["picked"]
    sweep = found(str(folder / "a.sweep"))
    within = [row for row in sweep.front if row.loss.value <= 0.1]
    assert told["number"] == min(within, key=lambda row: row.costs["macs"]).number and told["same"]
    assert told["evaluation"]["samples"] > 0 and told["drop"]["value"] is not None
    recipe = tomllib.loads(out.with_suffix(".toml").read_text())
    assert recipe["output"]["sha256"] == op.load(out).sha256 and "prune" in recipe["shrink"]["stages"]
    invoke("verify", folder / "model.onnx", out)
    invoke("run", out.with_suffix(".toml"), "-o", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    smallest = document(
        "sweep pick", folder / "a.sweep", "--max-drop", "10%", "--minimize", "size", "-o", out, "--force"
    )
    assert smallest["picked"]["costs"]["size"] == min(row.costs["size"] for row in within)
    assert "loses at most" in refused(
        "OP507",
        "sweep pick",
        folder / "a.sweep",
        *("--max-drop", "10%", "--latency-on", "moon", "-o", out, "--force"),
        status=1,
    )


def test_what_was_interrupted_goes_on_to_the_same_front(folder: Path, tmp_path: Path) -> None:
    """One worker and one seed give the same models again, in one go or in two, and another seed doesn't."""
    model, data, whole = folder / "model.onnx", folder / "data.npz", found(str(folder / "a.sweep"))
    swept(model, data, tmp_path / "b.sweep", TRIALS // 2)
    again = swept(model, data, tmp_path / "b.sweep", TRIALS)
    assert front(again) == front(whole)
    assert [row.choice for row in again.rows] == [row.choice for row in whole.rows]


@pytest.mark.slow
def test_another_seed_tries_other_recipes(folder: Path, tmp_path: Path) -> None:
    other = swept(folder / "model.onnx", folder / "data.npz", tmp_path / "c.sweep", TRIALS, seed=1)
    whole = found(str(folder / "a.sweep"))
    assert [row.choice for row in other.rows] != [row.choice for row in whole.rows]


def test_documents_and_pages(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    told = document("sweep show", folder / "a.sweep", "--report", page)
    assert not AVAILABLE or not problems(told)
    sweep = found(str(folder / "a.sweep"))
    assert told["front"] == [row.number for row in sweep.front] and len(told["models"]) == len(sweep.rows)
    assert told["trials"]["asked"] == TRIALS and told["objectives"] == ["accuracy", "macs", "size"]
    text = page.read_text(encoding="utf-8")
    titles = [f"<title>{row.number}: " in text for row in sweep.rows]
    assert all(titles) and "<script" not in text and "http" not in text.split("<svg")[1].partition(">")[0]
    shown = invoke("sweep show", folder / "a.sweep").stdout
    assert f"{len(sweep.front)} models that no other one beats" in shown
    assert json.dumps(told)  # no NaN


def at_work(folder: Path, store: Path, trials: int) -> tuple[Any, Iterator[Bench]]:
    """Return a store that has a copy of the sweep's description, and no trials."""
    spec = join(open_store(str(folder / "a.sweep"), create=False))[1]
    from dataclasses import replace

    study = create(open_store(str(store), create=True), replace(spec, trials=trials), [])
    return study, opened(folder)


def test_a_dead_worker_loses_one_trial_which_is_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BEAT", 0.05)
    study, opening = at_work(folder, tmp_path / "d.sweep", 3)
    spec = join(open_store(str(tmp_path / "d.sweep"), create=False))[1]
    lost = study.ask(fixed_distributions=distributions(spec.space))
    lost.set_user_attr("worker", "gone:1")
    with opening as own:
        Worker(study, spec, own).run()
    states = [trial.state.name for trial in study.get_trials()]
    assert sorted(set(states)) in (["COMPLETE", "FAIL"], ["COMPLETE", "FAIL", "PRUNED"])
    assert states[0] == "FAIL" and len(states) == 4
    (again,) = [trial for trial in study.get_trials() if trial.user_attrs.get("tries") == 1]
    assert again.params == lost.params and again.state.name in ("COMPLETE", "PRUNED")
    with pytest.raises(Exception, match=r"finished|COMPLETE|FAIL"):  # nor is it counted twice if the worker wakes up
        study.tell(lost, [0.0, 0.0, 0.0])


@pytest.mark.slow
def test_a_worker_whose_trial_was_given_away_goes_on(folder: Path, tmp_path: Path) -> None:
    study, opening = at_work(folder, tmp_path / "e.sweep", 2)
    spec = join(open_store(str(tmp_path / "e.sweep"), create=False))[1]
    with opening as own:
        worker, make = Worker(study, spec, own), own.make

        def stolen(choice: Any, progress: Any = None) -> Any:
            if len(study.get_trials()) == 1:
                study.tell(0, state=stores.optuna().trial.TrialState.FAIL)
            return make(choice)

        own.make = stolen  # type: ignore[method-assign]
        worker.run()
    states = [trial.state.name for trial in study.get_trials()]
    assert states[0] == "FAIL" and len([s for s in states if s in ("COMPLETE", "PRUNED")]) == 2


def test_other_models_and_data_are_refused(folder: Path, tmp_path: Path) -> None:
    model, data, store = folder / "model.onnx", folder / "data.npz", folder / "a.sweep"
    changed = onnx.load(model)
    changed.producer_name = "another"
    onnx.save(changed, tmp_path / "other.onnx")
    assert "of another model" in refused("OP613", "sweep", tmp_path / "other.onnx", "--join", store)
    with np.load(data) as kept:
        np.savez(tmp_path / "other.npz", image=kept["image"] + 1, labels=kept["labels"])
    assert "of another data" in refused("OP613", "sweep", "--join", store, "--data", tmp_path / "other.npz")
    assert "another sweep" in refused(
        "OP613", "sweep", model, "--data", data, "--store", store, "--seed", 5, "--effort", "quick", "--threads", 1
    )
    assert "isn't here" in refused("OP613", "sweep", tmp_path / "gone.onnx", "--join", store)
    assert "no such store" in refused("OP613", "sweep", "--join", tmp_path / "gone.sweep")
    (tmp_path / "bad.onnx").write_text("no model")
    refused("OP103", "sweep", tmp_path / "bad.onnx", "--data", data, "--store", tmp_path / "new.sweep")
    assert not (tmp_path / "new.sweep").exists()  # no sweep began
    assert "no such store" in refused("OP613", "sweep show", tmp_path / "gone.sweep")
    (tmp_path / "text.db").write_text("no database" * 100)
    refused("OP613", "sweep show", f"sqlite:///{tmp_path / 'text.db'}")
    refused(
        "OP605" if stores.find_spec("psycopg") is None else "OP613", "sweep show", "postgresql://nobody@127.0.0.1:1/x"
    )


def test_wrong_usage_is_one_clear_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = folder / "model.onnx", folder / "data.npz"
    refused("OP602", "sweep", model, "--data", data)
    refused("OP602", "sweep", "--store", tmp_path / "x.sweep", "--data", data)
    refused("OP604", "sweep", model, "--store", tmp_path / "x.sweep")
    refused("OP302", "sweep", model, "--store", tmp_path / "x.sweep", "--join", tmp_path / "x.sweep")
    refused("OP302", "sweep", "--join", folder / "a.sweep", "--trials", "7")
    refused("OP303", "sweep", model, "--store", tmp_path / "x.sweep", "--data", data, "--objective", "macs,size")
    refused("OP303", "sweep", model, "--store", tmp_path / "x.sweep", "--data", data, "--time", "soon")
    refused("OP602", "sweep", model, "--store", tmp_path / "x.sweep", "--data", data, "--on", "moon://here")
    with pytest.raises(ModelError):
        swept(tmp_path / "gone.onnx", data, tmp_path / "x.sweep", 1)
    with pytest.raises(DataError):
        swept(model, tmp_path / "gone.npz", tmp_path / "x.sweep", 1)
    monkeypatch.setattr(stores, "find_spec", lambda name: None)
    assert "onnxprune[sweep]" in refused("OP605", "sweep show", folder / "a.sweep")
    with pytest.raises(UsageError, match="OP605"):
        swept(model, data, tmp_path / "x.sweep", 1)


@pytest.mark.slow
def test_resolutions_are_tried_with_channels(tmp_path: Path) -> None:
    """A network of larger images: recipes with both, whose MACs are counted by hand."""
    rng, net = np.random.default_rng(0), Net()
    image = net.input((1, 3, 64, 64), "image", symbols={0: "N"})
    first = net.op("Relu", net.conv(image, 16, 3, strides=[2, 2], name="first"), name="relu1")
    second = net.op("Relu", net.conv(first, 16, 3, strides=[2, 2], name="second"), name="relu2")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", second, name="pool"), name="flat")
    net.output(net.linear(pooled, 10, name="head"), symbols={0: "N"})
    onnx.save(net.model(), model := tmp_path / "model.onnx")
    images = (rng.standard_normal((240, 3, 64, 64)) + 3 * rng.standard_normal((240, 3, 1, 1))).astype(np.float32)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = np.asarray(session.run(None, {"image": images})[0]).argmax(1)
    np.savez(data := tmp_path / "data.npz", image=images, labels=labels)
    settings = build(ShrinkSettings, {**QUICK, "data": str(data)})
    with bench(model, settings) as own:
        space = own.explore(lambda *_: None, forms=False)
        (sizes,) = [axis.choices for axis in space if axis.name == "resolution"]
        assert sizes[0] == "whole" and len(sizes) > 2
        size = sizes[-1]
        small, narrow = own.make({"resolution": size}), own.make({"resolution": size, "channels": 50})
    height, _ = map(int, size.split("x"))
    shrunk = [(height + 1) // 2, ((height + 1) // 2 + 1) // 2]
    convs = shrunk[0] ** 2 * 16 * 27 + shrunk[1] ** 2 * 16 * 16 * 9 + 160
    assert small.costs["macs"] == pytest.approx(convs, rel=0.2)  # and what resizing takes
    assert narrow.costs["macs"] <= 0.55 * small.costs["macs"] and small.proved and narrow.proved
    swept(model, data, tmp_path / "a.sweep", 12)
    assert any(row.choice["resolution"] != "whole" for row in found(str(tmp_path / "a.sweep")).rows)
