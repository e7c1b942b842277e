"""What devices send each other in a step, counted in the compiled program, against the least that a layout needs."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lepton_jax.config import Config, DataConfig, ModelConfig, TaskConfig, TrainConfig
from lepton_jax.core import sharding
from lepton_jax.core.collectives import Collective, collectives, parse
from lepton_jax.models.transformer import Transformer, abstract_params
from lepton_jax.tasks.masked_lm import MaskedLM
from lepton_jax.train.forecast import abstract_batch
from lepton_jax.train.step import make_program

V, D, F, L, T, B, N = 1024, 128, 512, 4, 64, 16, 12  # N predicted positions a row
CONFIG = Config(
    model=ModelConfig(
        vocab_size=V, hidden_size=D, num_layers=L, num_heads=8, intermediate_size=F, max_positions=T, dtype="float32"
    ),
    task=TaskConfig(mask_rate=N / T),
    data=DataConfig(max_length=T),
    train=TrainConfig(batch_size=B),
)
FLOAT = 4  # bytes


@functools.cache
def compile_step(shape, config=CONFIG):
    mesh = sharding.make_mesh(shape, None if shape else jax.devices()[:1])
    task = MaskedLM(config.task, V, 4, (0, 1, 2, 3, 4))
    program = make_program(config, mesh, task, Transformer(config.model, "masked_lm"))
    return program.step.lower(program.abstract, abstract_batch(config, mesh)).compile(), program.abstract


def least(shape, params):
    """Returns the bytes of the arrays that a step has to gather or reduce, each once, per device group.

    Matrices that are sharded over fsdp are gathered for the forward and for the backward pass, and their gradients
    scattered; what is left of the gradients is summed over data, and over sequence apart from it. The table and the
    transform of the head are gathered once or twice and reduced likewise, the table once for both of its uses. With
    tensor each block sums its two outputs, and the gradients of its two inputs; the embeddings sum the rows that one
    device has, the head the gradient of its input. With sequence each block gathers keys and values, and sums theirs.
    """
    sizes = dict(sharding.make_mesh(shape).shape)
    d, f, t, s = sizes["data"], sizes["fsdp"], sizes["tensor"], sizes["sequence"]
    b = B // (d * f)

    def gradients(matrix, gathers):
        part = matrix / t
        over_fsdp = (gathers + 1) * part if f > 1 else 0
        over_data = part / f if d > 1 else 0
        return over_fsdp + over_data + (part if s > 1 else 0)

    matrices = L * (4 * D * D + 2 * D * F)
    vectors = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) - matrices - V * D - D * D
    elements = gradients(matrices, gathers=2) + gradients(V * D, gathers=1)
    elements += gradients(D * D, gathers=1) * t  # the transform of the head is not spread over tensor
    elements += vectors * ((d * f > 1) + (s > 1))
    if t > 1:
        elements += 4 * L * b * (T // s) * D + b * (T // s) * D + b * (N // s) * D
    if s > 1:
        elements += 4 * L * b * T * D // t + 3 * b * N * D  # the last: predicted positions taken from a spread row
    return elements * FLOAT


LAYOUTS = ["data=8", "fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2", "data=4,sequence=2",
           "data=2,tensor=2,sequence=2"]  # fmt: skip


@pytest.mark.parametrize("shape", LAYOUTS)
def test_no_layout_sends_more_than_it_must(shape, capfd):
    compiled, abstract = compile_step(shape)
    found = collectives(compiled)
    total, minimum = sum(each.bytes * each.times for each in found), least(shape, abstract.params)
    assert 0.9 * minimum < total < 1.05 * minimum, (total / minimum, found)
    logits = B // sharding.row_shards(sharding.make_mesh(shape)) * N * V * FLOAT  # of one device's rows
    assert not any(each.kind == "all-gather" and each.bytes % logits == 0 for each in found)
    assert "nvoluntary full rematerialization" not in capfd.readouterr().err


def test_the_layouts_differ_in_what_they_send():
    gathered = {shape: sum(c.bytes * c.times for c in collectives(compile_step(shape)[0]) if c.kind == "all-gather")
                for shape in ("data=8", "fsdp=8")}  # fmt: skip
    assert 100 * gathered["data=8"] < gathered["fsdp=8"]


def test_one_device_has_no_collectives():
    assert collectives(compile_step("")[0]) == []


def test_the_count_of_a_loop_equals_that_of_the_loop_unrolled():
    unrolled = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, unroll=0))
    one, other = (collectives(compile_step("data=8", config)[0]) for config in (CONFIG, unrolled))
    assert max(each.times for each in one) == L and {each.times for each in other} == {1}
    np.testing.assert_allclose(*(sum(c.bytes * c.times for c in found) for found in (one, other)), rtol=0.01)


def test_hidden_states_are_pinned_at_both_ends_of_every_block():
    """In the traced program: what enters the scan over blocks, and what each block hands on."""
    mesh = sharding.make_mesh("data=2,tensor=2,sequence=2")
    model = Transformer(CONFIG.model).on(mesh)
    params, ids = abstract_params(model), jax.ShapeDtypeStruct((B, T), np.int32)
    traced = jax.make_jaxpr(lambda params, ids: model.apply({"params": params}, ids))(params, ids).jaxpr
    (loop,) = (eqn for eqn in traced.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == L)
    body = loop.params["jaxpr"].jaxpr
    shape = (B, T, D)
    before = [var for var in loop.invars if var.aval.shape == shape]
    after = [var for var in body.outvars if var.aval.shape == shape]
    for eqns, (var,) in ((traced.eqns, before), (body.eqns, after)):
        (source,) = (eqn for eqn in eqns if var in eqn.outvars)
        assert source.primitive.name == "sharding_constraint"
        assert source.params["sharding"].spec == PartitionSpec(sharding.ROW_AXES, "sequence", None)


def test_forms_of_the_text():
    text = """
HloModule jit_step, num_partitions=8
%body (p: (s32[])) -> (s32[]) {
  %ag = (bf16[4,8]{1,0}, bf16[16,8]{1,0:T(8,128)}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %rs = f32[2,8]{1,0} reduce-scatter(%y), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%condition (p: (s32[])) -> pred[] {
  %limit = s32[] constant(3)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[]) while(%init), condition=%condition, body=%body
  %ar = (f32[8]{0}, pred[3]{0}) all-reduce(%a, %b), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %ar2 = s32[] all-reduce(%c), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, to_apply=%add
  %ar3 = s8[5] all-reduce(%d), replica_groups={}, to_apply=%add
}
"""
    found = {(each.kind, each.bytes, each.group, each.times) for each in parse(text)}
    assert found == {
        ("all-gather", 256, 4, 3), ("reduce-scatter", 128, 2, 3), ("all-reduce", 35, 4, 1), ("all-reduce", 4, 4, 1),
        ("all-reduce", 5, 8, 1)
    }  # fmt: skip
    assert Collective("all-reduce", 800, 8, 2).sent == 2 * 2 * 700
    assert Collective("all-gather", 800, 8, 2).sent == 2 * 700
    with pytest.raises(ValueError, match="how often it runs is not known"):
        parse(text.replace("constant(3)", "parameter(0)"))
