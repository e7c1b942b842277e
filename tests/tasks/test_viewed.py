"""A task through a view of its parameters."""

import dataclasses

import jax
import numpy as np

from lepton_jax.tasks.viewed import Viewed


@dataclasses.dataclass(frozen=True)
class Square:
    head: str = "classification"
    num_outputs: int = 3

    def scored(self, length):
        return length // 2

    def loss(self, model, params, batch, rng, train=True):
        loss = model * batch["x"] * params["w"] ** 2 + (0 if train else 100)
        return loss, {"loss": loss}

    def outputs(self, model, params, batch):
        return model + params["w"]


def test_loss_gradient_and_outputs_come_through_the_view():
    task = Viewed(Square(), lambda params: {"w": 3 * params["w"]})
    batch, params = {"x": 5.0}, {"w": 2.0}
    grads, metrics = jax.grad(lambda params: task.loss(7.0, params, batch, None), has_aux=True)(params)
    assert float(metrics["loss"]) == 7 * 5 * 6**2 and float(grads["w"]) == 7 * 5 * 2 * 6 * 3
    assert float(task.loss(7.0, params, batch, None, train=False)[0]) == 7 * 5 * 6**2 + 100
    assert task.outputs(1.0, params, batch) == np.float32(7)
    assert (task.head, task.num_outputs, task.scored(8)) == ("classification", 3, 4)
