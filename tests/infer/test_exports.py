from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lepton_jax import infer, manifest
from lepton_jax.config import InferConfig
from lepton_jax.core.errors import UserError
from lepton_jax.infer.predictor import Predictor
from lepton_jax.infer.programs import of

SMALL = InferConfig((8,), (1, 4), 1)
TEXTS = ["abc de", "", "gh", "abc def gh ij kl mnop abc", "b", "[MASK] de"]
BIO = ("O", "B-A", "I-A")


@pytest.fixture(scope="module")
def exported(make_bundle, tmp_path_factory) -> tuple[Predictor, Path]:
    predictor = infer.from_bundle(make_bundle(type_vocab_size=2), "int8", SMALL)
    predictor.profile = infer.measure(predictor, TEXTS)
    folder = tmp_path_factory.mktemp("export") / "model"
    predictor.export(folder)
    return predictor, folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported[1], tmp_path / "copy"))


def test_an_export_gives_bit_for_bit_the_same(exported):
    predictor, folder = exported
    loaded = infer.load(folder, config=InferConfig((), (1, 4), 1))
    assert loaded.buckets == predictor.buckets and loaded.program.precision == "int8"
    assert loaded(TEXTS) == predictor(TEXTS) and loaded(TEXTS, TEXTS[::-1]) == predictor(TEXTS, TEXTS[::-1])
    assert np.ptp(predictor.scores(TEXTS), axis=0).min() > 0.01, "texts must differ"
    assert loaded.profile == predictor.profile and infer.drift(loaded.profile, TEXTS) == infer.drift(
        predictor.profile, TEXTS
    )
    shared = infer.load(folder, config=InferConfig((), (8,), 4))
    np.testing.assert_allclose(shared.scores(TEXTS), predictor.scores(TEXTS), atol=2e-3)
    with pytest.raises(UserError, match="exported already; copy its folder"):
        loaded.export(folder.parent / "again")


@pytest.mark.parametrize(("head", "labels", "precision"), [
    ("token_classification", BIO, "float32"), ("masked_lm", (), "float32"), ("none", (), "bfloat16")
])  # fmt: skip
def test_every_task_can_be_exported(make_bundle, tmp_path, head, labels, precision):
    predictor = infer.from_bundle(make_bundle(head, labels), precision, SMALL)
    predictor.export(tmp_path / "model", ("cpu",))
    assert infer.load(tmp_path / "model", precision, InferConfig((), (1, 4), 1))(TEXTS) == predictor(TEXTS)


WITHOUT_MODELS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("flax", "lepton_jax.hub", "lepton_jax.models", "lepton_jax.compress"):
            raise ImportError(f"{name} is not to be loaded")

sys.meta_path.insert(0, Refuse())
from lepton_jax import infer
from lepton_jax.config import InferConfig
import json
print(json.dumps(infer.load(sys.argv[1], config=InferConfig((), (4,), 1))(json.loads(sys.argv[2]))))
"""


def test_an_export_runs_without_the_code_of_its_model(exported):
    predictor, folder = exported
    command = [sys.executable, "-c", WITHOUT_MODELS, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, wanted = (
        [list(each["scores"].values()) for each in out] for out in (json.loads(done.stdout), predictor(TEXTS))
    )
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("name", ["programs/8.bin", "params/params.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["a bit", "cut short", "missing"])
def test_a_damaged_export_is_refused(copy, name, harm):
    path, data = copy / name, (copy / name).read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        changed = bytearray(data[: len(data) - 3] if harm == "cut short" else data)
        changed[-2 if harm == "a bit" else -1] ^= harm == "a bit"
        path.write_bytes(changed)
    what = "config.json|no model here" if (name, harm) == ("manifest.json", "missing") else "export the model again"
    with pytest.raises(UserError, match=what) as caught:
        infer.load(copy)
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, **changes) -> None:
    """Changes fields of a manifest, and makes its checksum right."""
    tree = json.loads((folder / "manifest.json").read_text())
    for name in ("files", "sha256"):
        del tree[name]
    (folder / "manifest.json").unlink()
    manifest.write(folder, tree | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "'lepton_jax.export' of version 2; this package .* reads 'lepton_jax.export' of version 1"),
        ({"form": "other"}, "form 'other' of version 1; this package"),
        ({"platforms": ["cuda", "tpu"]}, r"is for cuda, tpu, and this is cpu; export it with platforms=\('cpu',\)"),
        ({"precision": "int4"}, "precision='int4': must be one of float32, bfloat16, int8"),
        ({"signature": {"task": "x"}}, "not the signature of a predictor of this version"),
    ],
)
def test_an_export_of_another_kind_is_refused(copy, changes, message):
    rewrite(copy, **changes)
    with pytest.raises(UserError, match=message):
        infer.load(copy)


def test_a_program_of_a_newer_jax_is_refused(copy):
    rewrite(copy, jax="99.1.2")
    message = f"was written by JAX 99.1.2, and this is JAX {jax.__version__}, which cannot read it; take that version"
    with pytest.raises(UserError, match=message):
        infer.load(copy)
    rewrite(copy, jax="0.4.1")
    infer.load(copy, config=InferConfig((), (4,), 1), compiled=False)


def test_a_program_that_jax_cannot_read_is_refused(copy):
    (copy / "programs" / "8.bin").write_bytes(b"what is no program")
    rewrite(copy)
    with pytest.raises(UserError, match=f"JAX {jax.__version__} cannot read what JAX .* wrote .*take that version"):
        infer.load(copy)


def test_what_an_export_does_not_have_is_refused(exported, tmp_path):
    predictor, folder = exported
    with pytest.raises(UserError, match="was exported with precision='int8', and is nothing else; precision='float32'"):
        infer.load(folder, "float32")
    with pytest.raises(UserError, match="was exported with task='classification', and is nothing else"):
        infer.load(folder, task="embedding")
    with pytest.raises(UserError, match=r"infer.lengths: 12 is not a length of this program; it has 8, 16"):
        infer.load(folder, config=InferConfig((8, 12)))
    with pytest.raises(UserError, match=r"platforms=\('cpu', 'rocm'\): must be some of 'cpu', 'cuda', 'tpu'"):
        predictor.export(tmp_path / "model", ("cpu", "rocm"))
    with pytest.raises(UserError, match="is there already; choose another folder"):
        predictor.export(folder)
    assert not (tmp_path / "model").exists()


def test_an_export_is_for_each_platform(make_bundle):
    from jax import export

    predictor = infer.from_bundle(make_bundle(), "int8", SMALL)
    program = of(make_bundle(), "int8")
    batch = [jax.ShapeDtypeStruct((2, 8), np.int32)] * 2
    for platform in ("cuda", "tpu"):
        assert program.portable is not None
        text = export.export(jax.jit(program.portable), platforms=(platform,))(predictor.params, *batch).mlir_module()
        assert "i8" in text and "custom_call" not in text
