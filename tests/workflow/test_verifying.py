"""What `verify` can tell of models that were repaired or trained, and what it finds if weights were changed since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune as op
from onnxprune.data import open_data
from onnxprune.errors import OnnxPruneError, PlanError, VerificationError
from onnxprune.model.file import load, save
from onnxprune.model.metadata import CLEANED, write_notes
from onnxprune.planning.signature import fingerprints, note_changes, noted_changes, signed_plan
from onnxprune.workflow.verifying import require_equal
from tests.cli.support import DIGITS, document, invoke, refused
from tests.report.network import network
from tests.test_loops import elman
from tests.test_states import lstm
from tests.zoo.byhand import einsum_mixture, quantized_operators

BY = {"--recover=none": set(), "--recover=bn": {("repair",)}, "--recover=reconstruct": {("repair",)}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    save(load(network()), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)
    np.savez(path := tmp_path_factory.mktemp("data") / "data.npz", image=images, labels=np.arange(48) % 10)
    return path


@pytest.fixture(scope="module")
def repaired(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repaired") / "small.onnx"
    invoke("prune", model, "-o", path, "--ratio", 0.5, "--data", data, "-q")
    return path


def weight(proto: ModelProto, name: str) -> np.ndarray:
    return np.array(numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)))


def with_weight(proto: ModelProto, name: str, array: np.ndarray) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(proto)
    next(t for t in changed.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))
    return changed


class TestRepaired:
    @pytest.mark.parametrize("how", BY)
    def test_each_repair(self, model: Path, data: Path, tmp_path: Path, how: str) -> None:
        out = tmp_path / "small.onnx"
        invoke("prune", model, "-o", out, "--ratio", 0.5, "--data", data, how, "-q")
        found = document("verify", model, out)
        assert found["proved"] and found["verification"]["error"] < 1e-5
        weights = found["weights"]
        assert {tuple(by) for by in (weights or {"changed": {}})["changed"].values()} == BY[how]

    def test_what_was_changed_by_hand_count(self, model: Path, repaired: Path) -> None:
        """The changed weights are those that differ from a rewriting without repair, compared bit by bit."""
        plan = signed_plan(load(repaired).proto)
        assert plan is not None
        bare, proto = op.prune(model, plan).proto, onnx.load(repaired)
        names = [t.name for t in proto.graph.initializer]
        differ = {n for n in names if not np.array_equal(weight(bare, n), weight(proto, n))}
        found = document("verify", model, repaired)
        assert found["weights"]["changed"].keys() == differ and found["weights"]["slices"] == len(names) - len(differ)
        assert differ and len(differ) < len(names)
        assert found["distances"][0]["difference"] > 0.01 and found["agree"] is None

    def test_agreement_is_measured_on_data(self, model: Path, repaired: Path, data: Path) -> None:
        found = document("verify", model, repaired, "--data", data)
        same = [r.argmax(1) for r in (op_run(model, data), op_run(repaired, data))]
        measured = found["evaluation"]["scores"]["agreement"]["model"]["value"]
        assert measured == pytest.approx(float((same[0] == same[1]).mean()))
        assert "--data" in invoke("verify", model, repaired).stderr
        assert "--data" not in invoke("verify", model, repaired, "--data", data).stderr

    def test_trained(self, model: Path, data: Path, repaired: Path, tmp_path: Path) -> None:
        for args in (["--finetune", 1], ["--finetune", 1, "--steps", 2], ["--finetune", 1, "--rewind", model]):
            out = tmp_path / f"{len(args)}{args[-1] == model}.onnx"
            invoke("prune", model, "-o", out, "--target", "macs=50%", "--data", data, *args, "-q")
            found = document("verify", model, out)
            assert found["proved"] and found["weights"]["passed"], args
        tuned = tmp_path / "tuned.onnx"
        options = ("--lasso", 0.01)  # the trained model is kept
        invoke("finetune", repaired, "-o", tuned, "--data", data, "--teacher", model, "--epochs", 1, *options, "-q")
        found = document("verify", model, tuned)
        assert ["repair", "training"] in found["weights"]["changed"].values()
        again = tmp_path / "again.onnx"
        invoke("prune", tuned, "-o", again, "--ratio", 0.5, "-q")
        assert not noted_changes(load(again).proto), "a new original has no changes yet"
        assert document("verify", tuned, again)["weights"] is None

    def test_resized_states(self, tmp_path: Path) -> None:
        source, out = tmp_path / "m.onnx", tmp_path / "s.onnx"
        save(load(lstm()), source)
        shape = next(e for e in lstm().graph.input if e.name != "state").type.tensor_type.shape
        arrays = np.random.default_rng(0).standard_normal((12, *(d.dim_value or 1 for d in shape.dim)))
        np.savez(data := tmp_path / "d.npz", **{lstm().graph.input[0].name: arrays[:, 0].astype(np.float32)})
        invoke("prune", source, "-o", out, "--ratio", 0.5, "--resize-states", "--data", data, "-q")
        found = document("verify", source, out)
        assert found["proved"] and found["weights"]["changed"] and found["distances"]

    def test_swapped_models_are_told(self, model: Path, repaired: Path) -> None:
        assert "the first model was made from the second" in refused("OP306", "verify", repaired, model)
        invoke("verify", model, repaired)  # negative control

    def test_a_batch_that_is_fixed_in_the_file(self) -> None:
        """A repair runs samples together, and leaves the size of a Reshape open that the file fixes at 1."""
        rng = np.random.default_rng(0)
        arrays = {"w": (8, 3, 3, 3), "v": (8 * 36, 4), "bias": (4,)}
        graph = onnx.parser.parse_graph("""
            fixed (float[1,3,6,6] x) => (float[1,4] y) <int64[2] sizes = {1, 288}>
            {
                a = Conv <pads = [1,1,1,1]> (x, w)
                b = Relu (a)
                c = Reshape (b, sizes)
                y = Gemm (c, v, bias)
            }
        """)
        for name, shape in arrays.items():
            array = rng.standard_normal(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name))
        source = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        x = rng.standard_normal((40, 3, 6, 6)).astype(np.float32)
        small = op.prune_model(source, ratio=0.5, data={"x": x}, recover="bias").model.proto
        sizes = next(t.name for t in small.graph.initializer if t.name.startswith("sizes"))
        assert weight(small, sizes)[0] != 1
        found = op.verify(source, small)
        assert found.proved and found.weights is not None and found.weights.passed and found.weights.changed
        other = with_weight(
            small, sizes, np.array([1, -1])
        )  # negative control: neither the file's nor that of the repair
        assert (checked := op.verify(source, other).weights) is not None and checked.altered == (sizes,)

    def test_a_loop(self) -> None:
        """A trained model has its loops back, as a file may have them."""
        small = op.prune(elman(), op.plan(elman(), ratio=0.5))
        shape = [d.dim_value or 1 for d in elman().graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)
        data = open_data({elman().graph.input[0].name: x}, small.proto)
        tuned = op.finetune(small.proto, data, teacher=elman(), hold_out=0.0).proto
        onnx.checker.check_model(tuned, full_check=True)
        found = op.verify(elman(), tuned)
        assert found.proved and found.weights is not None and found.weights.changed and found.weights.passed

    def test_cleaned(self, model: Path, tmp_path: Path) -> None:
        out = tmp_path / "clean.onnx"
        invoke("prune", model, "-o", out, "--ratio", 0, "-q")
        assert document("verify", model, out)["proved"]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shrunk") / "small.onnx"
    only = ("--stages", "clean,prune", "--no-timed", "--set", 'clean.optimizers=["onnxruntime"]')
    invoke("shrink", DIGITS, "-o", path, "--target", "macs=50%", *only, "-q")
    return path


class TestShrunk:
    """What `shrink` made: the plan is for what cleaning left, and the metadata say by which optimizer."""

    def test_it_is_proved_against_the_file(self, shrunk: Path) -> None:
        found = op.verify(DIGITS, shrunk)
        require_equal(found)
        assert found.proved and any("cleaned by the optimizer" in note for note in found.notes)

    def test_a_weight_that_was_altered_is_found(self, shrunk: Path) -> None:
        proto = onnx.load(shrunk)
        name = next(t.name for t in proto.graph.initializer if len(t.dims) == 4)
        array = weight(proto, name)
        array.flat[0] += 0.1
        found = op.verify(DIGITS, with_weight(proto, name, array))
        with pytest.raises(VerificationError):
            require_equal(found)

    @pytest.mark.parametrize("said", ['{"optimizer": "nobody"}', '{"optimizer": ["onnxsim"]}', "[1]", "{", "onnxsim"])
    def test_metadata_that_name_no_optimizer_prove_nothing(self, shrunk: Path, said: str) -> None:
        proto = onnx.load(shrunk)
        write_notes(proto, {CLEANED: said})
        found = op.verify(DIGITS, proto)
        assert not found.proved and found.agree is False

    def test_a_quantized_model_is_not_held_against_the_plan(self, shrunk: Path) -> None:
        images = DIGITS.with_name("digits_train.npz")
        small = op.quantize(shrunk, data=str(images), kind=("static",), timed=False).model.proto
        found = op.verify(DIGITS, small)
        assert not found.proved and any("was quantized after it was pruned" in note for note in found.notes)


class TestTampered:
    @pytest.mark.parametrize("name", ["left_w", "right_w", "shift_b", "stem_w"])
    @pytest.mark.parametrize("how", ["a value", "slices swapped", "not finite"])
    def test_a_weight(self, model: Path, repaired: Path, tmp_path: Path, name: str, how: str) -> None:
        proto = onnx.load(repaired)
        array = weight(proto, name)
        if how == "a value":
            array.flat[0] += 1e-6
        elif how == "slices swapped":
            array[[0, 1]] = array[[1, 0]]
        else:
            array.flat[0] = np.nan
        path = tmp_path / "t.onnx"
        onnx.save(with_weight(proto, name, array), path)
        assert f'"{name}"' in refused("OP505", "verify", model, path, status=1)
        report = invoke("verify", model, path, status=1).stdout
        assert "altered since" in report and name in report

    def test_junit(self, model: Path, repaired: Path, tmp_path: Path) -> None:
        def cases(path: Path, status: int) -> dict[str, bool]:
            (suite,) = fromstring(invoke("verify", model, path, "--format", "junit", status=status).stdout)
            return {str(case.get("name")): case.find("failure") is None for case in suite.iter("testcase")}

        right = dict.fromkeys(("interface", "rewriting", "weights", "outputs", "verify"), True)
        assert cases(repaired, 0) == right
        proto = onnx.load(repaired)
        path = tmp_path / "t.onnx"
        onnx.save(with_weight(proto, "left_w", -weight(proto, "left_w")), path)
        assert cases(path, 1) == right | {"weights": False}

    def test_without_the_note(self, model: Path, repaired: Path) -> None:
        proto = onnx.load(repaired)
        note = next(e for e in proto.metadata_props if e.key == "onnxprune.changed")
        proto.metadata_props.remove(note)
        found = op.verify(model, proto)
        assert not found.proved and found.weights is None
        with pytest.raises(VerificationError, match="OP501"):
            require_equal(found)

    def test_a_repair_that_failed(self, model: Path, repaired: Path) -> None:
        """NaN is found even if the note says that the repair left it."""
        before = onnx.load(repaired)
        proto = with_weight(before, "left_b", weight(before, "left_b") * np.float32("nan"))
        note_changes(proto, fingerprints(before), "repair")
        found = op.verify(model, proto)
        assert found.weights is not None and found.weights.not_finite == ("left_b",) and not found.weights.altered
        with pytest.raises(VerificationError, match="not finite"):
            require_equal(found)

    def test_a_wrong_rewriting_behind_a_note(self, model: Path, repaired: Path) -> None:
        """Noted changes of weights don't hide a wrong graph: the proof runs with the slices in their place."""
        proto = onnx.load(repaired)
        next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Abs"
        found = op.verify(model, proto)
        assert not found.proved and found.weights is not None and found.weights.passed
        with pytest.raises(VerificationError, match="OP501"):
            require_equal(found)

    @pytest.mark.parametrize(
        ("key", "damage"),
        [
            ("onnxprune.removed", lambda text: text[: len(text) // 8 * 4]),
            ("onnxprune.removed", lambda text: "eJw" + text),
            ("onnxprune.plan", lambda text: text[::-1]),
            ("onnxprune.settings", lambda text: "[" * 10**5),
            ("onnxprune.changed", lambda text: "[1]"),
            ("onnxprune.changed", lambda text: '{"left_w": []}'),
        ],
    )
    def test_damaged_metadata(self, model: Path, repaired: Path, key: str, damage: Callable[[str], str]) -> None:
        proto = onnx.load(repaired)
        entry = next(e for e in proto.metadata_props if e.key == key)
        entry.value = damage(entry.value)
        with pytest.raises(PlanError, match="OP305"):
            op.verify(model, proto)

    def test_a_renamed_weight(self, model: Path, repaired: Path) -> None:
        proto = onnx.load(repaired)
        next(t for t in proto.graph.initializer if t.name == "left_w").name = "other"
        for node in proto.graph.node:
            node.input[:] = ["other" if n == "left_w" else n for n in node.input]
        found = op.verify(model, proto).weights
        assert found is not None and found.missing == ("left_w",) and found.altered == ("other",)


class TestPlans:
    def test_of_another_original(self, repaired: Path) -> None:
        """Then the plan isn't used, and the report says so."""
        found = op.verify(repaired, repaired)
        assert found.agree and found.verification is None and "isn't for the first" in found.notes[0]

    def test_a_plan_given_decides(self, model: Path, repaired: Path, tmp_path: Path) -> None:
        invoke("plan", model, "-o", plan := tmp_path / "p.json", "--ratio", 0.25)
        refused("OP505", "verify", model, repaired, "--plan", plan, status=1)

    def test_of_a_large_plan_the_digest_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnxprune.planning.signature._SMALL", 0)
        small = op.prune(network(), op.plan(network(), ratio=0.5))
        keys = {e.key for e in small.proto.metadata_props}
        assert "onnxprune.plan" in keys and "onnxprune.removed" not in keys
        assert signed_plan(small.proto) is None and not op.verify(network(), small.proto).proved
        assert op.verify(network(), small.proto, small.plan).proved


def test_fingerprints_tell_types_shapes_and_values_apart() -> None:
    def of(array: np.ndarray) -> str:
        proto = with_weight(network(), "shift_b", array)
        return fingerprints(proto)["shift_b"]

    zeros = np.zeros(10, np.float32)
    others = [zeros.astype(np.int32), zeros.reshape(2, 5), zeros + np.float32(1e-9), -zeros]
    assert len({of(array) for array in (zeros, *others)}) == 5
    assert of(zeros) == of(zeros.copy())


def test_digits_from_the_readme(tmp_path: Path) -> None:
    """The finding: `verify --plan` called a repaired model wrong that `prune --data` had called proved."""
    plan, out = tmp_path / "p.json", tmp_path / "o.onnx"
    images = DIGITS.with_name("digits_test.npz")
    invoke("plan", DIGITS, "-o", plan, "--target", "macs=30%")
    invoke("prune", DIGITS, "-o", out, "--plan", plan, "--data", images, "--limit", 64, "-q")
    text = invoke("verify", DIGITS, out, "--plan", plan).stdout
    assert "rewriting proved" in text and "changed by repair" in text and "NOT" not in text


def op_run(model: Path, data: Path) -> Any:
    from onnxprune.model.session import run, session

    with np.load(data, allow_pickle=False) as arrays:
        return next(iter(run(session(load(model).proto), {"image": arrays["image"]}).values()))


def test_errors_are_the_library_s() -> None:
    with pytest.raises(OnnxPruneError):
        op.verify(network(), b"")


@pytest.mark.parametrize(("build", "told"), [(quantized_operators, True), (einsum_mixture, False)])
def test_sums_of_bytes_that_may_overflow_are_told(build: Callable[[], ModelProto], told: bool) -> None:
    """A failed proof says so, of networks that have such sums only, and one that holds doesn't."""
    model = build()
    small = op.prune(model, op.plan(model, ratio=0.5))
    wrong = ModelProto.FromString(small.proto.SerializeToString())
    for tensor in wrong.graph.initializer:
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
    found = op.verify(model, wrong, small.plan).verification
    assert found is not None and not found.passed
    assert any("7-bit weights" in note for note in found.notes) is told
    assert small.verification is not None and not any("7-bit" in note for note in small.verification.notes)
