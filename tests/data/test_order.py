from __future__ import annotations

import json

import grain
import numpy as np
import pytest

from lepton_jax.data.order import Order


def take(order, count):
    return [next(order) for _ in range(count)]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("size", [300, 3000])  # few rows and many are shuffled in two ways
def test_all_streams_together_see_each_row_once_an_epoch_in_a_new_order(streams, size):
    parts = [take(Order([size], [1.0], 5, number, streams), 2 * size // streams) for number in range(streams)]
    order = [parts[place % streams][place // streams] for place in range(2 * size)]
    assert order == take(Order([size], [1.0], 5), 2 * size), "the streams share one order"
    first, second = order[:size], order[size:]
    assert sorted(first) == sorted(second) == list(range(size)) and first != second


def test_a_mixture_keeps_its_weights_everywhere_and_each_source_its_epochs():
    sizes, weights = [50, 7, 400], [2.0, 1.0, 1.0]
    starts = np.cumsum([0, *sizes])
    order = np.array(take(Order(sizes, weights, 0), 4000))
    source = np.searchsorted(starts, order, side="right") - 1
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        assert np.abs(np.cumsum(source == number) - share * np.arange(1, 4001)).max() <= 1
        rows = order[source == number] - starts[number]
        epochs = len(rows) // sizes[number]
        assert epochs >= 2
        for epoch in np.split(rows[: epochs * sizes[number]], epochs):
            assert sorted(epoch) == list(range(sizes[number]))


def test_every_stream_of_a_mixture_has_every_source():
    for number in range(4):
        order = np.array(take(Order([100, 100], [3.0, 1.0], 0, number, 4), 400))
        assert (order >= 100).sum() == 100
        assert set(order[order >= 100] - 100) != set(range(100)), "a stream has its part of a source alone"


def test_many_rows_come_as_grain_shuffles_them():
    theirs = grain.MapDataset.range(600).seed(5).shuffle().repeat()[1::2]
    assert take(Order([600], [1.0], 5, 1, 2), 900) == [theirs[place] for place in range(900)]


@pytest.mark.parametrize("steps", [0, 1, 1500])
def test_a_position_goes_on_exactly(steps):
    def make():
        return Order([900, 20], [1.0, 0.3], 7, 1, 2)

    straight = make()
    take(straight, steps)
    state = json.loads(json.dumps(straight.get_state()))
    expected = take(straight, 2000)
    resumed = make()
    take(resumed, 3)
    resumed.set_state(state)
    assert take(resumed, 2000) == expected
    assert (take(make(), 2000) == expected) == (steps == 0)


@pytest.mark.parametrize(("sizes", "weights"), [([3], [1.0, 1.0]), ([3, 0], [1.0, 1.0]), ([3, 3], [1.0, 0.0])])
def test_an_impossible_mixture_is_refused(sizes, weights):
    with pytest.raises(ValueError, match="must be as many, and positive"):
        Order(sizes, weights, 0)
