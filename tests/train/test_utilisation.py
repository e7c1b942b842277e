"""The peak that a run's utilisation is a share of."""

import types

import jax
import pytest

from lepton_jax.train.utilisation import PEAKS, measured_flops, peak_flops


def device(kind: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(platform="gpu", device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5p", "TPU v5p"),
    ],
)
def test_a_device_has_the_peak_of_its_kind_and_several_have_its_multiple(kind: str, name: str) -> None:
    assert peak_flops([device(kind)] * 3) == 3 * PEAKS[name]


def test_the_peak_of_an_unknown_kind_is_unknown() -> None:
    assert peak_flops([device("NVIDIA GeForce GTX 1080")]) is None


def test_a_cpu_is_measured_and_its_simulated_devices_are_one_machine() -> None:
    one, eight = peak_flops(jax.devices()[:1]), peak_flops(jax.devices())
    assert one is not None and eight is not None and 1e8 < one < 1e14 and eight < 6 * one
    assert measured_flops(256) > 1e8
