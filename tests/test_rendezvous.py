"""Processes that meet before JAX connects them, here as threads; and what says that a process is one of several."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest

from lepton_jax import processes, rendezvous
from lepton_jax.config import MeshConfig
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def meet(port: int, *members: tuple[int, int], timeout: float = 1.0, late: float = 0.0) -> list[str]:
    """Lets (process, processes) meet, the third and later ones, or the last, after `late` seconds.

    Returns what each failed with, or "".
    """
    found = [""] * len(members)

    def member(place: int) -> None:
        process, count = members[place]
        if place >= min(2, len(members) - 1):
            time.sleep(late)
        try:
            rendezvous.meet(f"localhost:{port}", count, process, timeout)
        except UserError as error:
            found[place] = str(error)

    threads = [threading.Thread(target=member, args=(place,)) for place in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "it hangs"
    return found


@pytest.mark.parametrize("late", [0.0, 0.7])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_all_meet_whoever_comes_last(order, late):
    port = free_port()
    assert meet(port, *((process, 4) for process in order), timeout=20, late=late) == [""] * 4
    with socket.create_server(("", port)):
        pass  # JAX may listen there now
    with pytest.raises(OSError):
        socket.create_connection(("localhost", port))


def test_the_absent_are_named_by_all_that_are_there(capsys):
    port = free_port()
    message = (
        f"processes 1, 3 of 5 did not come to localhost:{port} within 1 seconds; "
        "start every process with the same mesh.coordinator"
    )
    assert meet(port, (0, 5), (4, 5), (2, 5)) == [message] * 3
    said = capsys.readouterr().err
    assert f"lepton_jax: process 0 of 5 waits for processes 1, 2, 3, 4 at localhost:{port}, up to 1 s\n" in said
    assert f"lepton_jax: process 4 of 5 waits for processes 1, 2, 3 at localhost:{port}" in said or (
        f"lepton_jax: process 4 of 5 waits for processes 1, 3 at localhost:{port}" in said
    )


def test_the_first_process_is_missed_by_name(capsys):
    port = free_port()
    (found,) = meet(port, (2, 3))
    assert found == (
        f"process 2 of 3 could not reach process 0 at localhost:{port} within 1 seconds (Connection refused); "
        "start it, or correct mesh.coordinator"
    )
    assert f"process 2 of 3 waits for process 0 at localhost:{port}, up to 1 s" in capsys.readouterr().err


def test_who_waits_says_so_again_and_again(capsys, monkeypatch):
    monkeypatch.setattr(rendezvous, "EVERY", 0.3)
    meet(free_port(), (0, 3), (1, 3), timeout=1.4)
    lines = capsys.readouterr().err.splitlines()
    for process in (0, 1):
        assert sum(f"process {process} of 3 waits for process 2 at" in line for line in lines) >= 2, lines


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes have the number 1, one of them at"),
        (
            [(0, 2), (1, 4)],
            "was started as one of 4, process 0 as one of 2; give every process the same mesh.processes",
        ),
    ],
)
def test_processes_that_cannot_fit_are_told_at_once(members, message):
    start = time.monotonic()
    found = meet(free_port(), *members, timeout=20)
    assert all(message in one for one in found) and time.monotonic() - start < 15, found


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        (found,) = meet(port, (0, 2))
    assert found.startswith(f"mesh.coordinator='localhost:{port}': process 0 cannot listen at port {port} (")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff" * 9000, b'{"process": 1}\n', b'[1, "x"]\n'])
def test_strangers_are_ignored(sent):
    port, done = free_port(), []

    def stranger() -> None:
        for _ in range(100):
            try:
                with socket.create_connection(("localhost", port), timeout=1) as connection:
                    connection.sendall(sent)
                    done.append(connection)
                    return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=stranger)
    thread.start()
    assert meet(port, (0, 2), (1, 2), timeout=20, late=0.5) == ["", ""] and done
    thread.join()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\n", b'{"a": 1}\n', b"7\n"])
def test_what_is_not_process_0_does_not_hold_anybody(answer):
    with socket.create_server(("", 0)) as server:

        def answer_once() -> None:
            connection, _ = server.accept()
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=answer_once)
        thread.start()
        (found,) = meet(server.getsockname()[1], (1, 2), timeout=5)
        thread.join()
    assert "process 1 of 2: process 0 at localhost:" in found and "ended while others were waited for" in found


def test_one_that_leaves_while_it_waits_may_come_again():
    port = free_port()

    def leaves() -> None:
        for _ in range(100):
            try:
                with socket.create_connection(("localhost", port), timeout=1) as connection:
                    connection.sendall(json.dumps({"process": 1, "processes": 4}).encode() + b"\n")
                    connection.recv(100)
                    return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=leaves)
    thread.start()
    assert meet(port, (0, 4), (2, 4), (1, 4), (3, 4), timeout=20, late=1.5) == [""] * 4
    thread.join()


@pytest.mark.parametrize("address", ["node1", "node1:", ":99", "node1:x", "node1:0", "node1:70000", "node1:-1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(
        UserError, match=r"^mesh\.coordinator='.*': must be HOST:PORT of process 0, such as node1:9876$"
    ):
        rendezvous.parse(address)


def test_addresses():
    assert rendezvous.parse("node1:9876") == ("node1", 9876)
    assert rendezvous.parse("[::1]:80") == ("::1", 80)


# What says that a process is one of several.


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment that says nothing of processes."""
    for name in list(os.environ):
        if name.startswith(
            ("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "MEGASCALE_", "JAX_COORD", "JAX_NUM", "JAX_PROC")
        ):
            monkeypatch.delenv(name)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[03-05]", "SLURM_NTASKS": "3", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}  # fmt: skip
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "n:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("mesh", "variables", "found"),
    [
        ({}, {}, None),
        ({}, BY_HAND, ("n:1", 4, 0)),
        ({}, {**BY_HAND, "JAX_NUM_PROCESSES": "", "JAX_PROCESS_COUNT": "5"}, ("n:1", 5, 0)),
        ({"process": 3}, BY_HAND, ("n:1", 4, 3)),
        ({"coordinator": "m:2", "processes": 2, "process": 1}, BY_HAND, ("m:2", 2, 1)),
        ({"processes": 1}, BY_HAND, None),
        ({}, {**BY_HAND, "JAX_NUM_PROCESSES": "1"}, None),
        ({}, SLURM, ("node03:61447", 3, 2)),
        ({"coordinator": "m:2"}, SLURM, ("m:2", 3, 2)),
        ({}, {**SLURM, **BY_HAND}, ("n:1", 4, 0)),
        ({}, {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"processes": 1}, SLURM, None),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_the_section_comes_before_the_environment_and_that_before_a_cluster(environment, mesh, variables, found):
    environment(**variables)
    assert processes.describe(MeshConfig(**mesh)) == found


@pytest.mark.parametrize(
    ("mesh", "variables", "message"),
    [
        (
            {"processes": 2},
            {},
            r"mesh\.coordinator: is missing beside mesh\.processes=2; set it, or JAX_COORDINATOR_ADD",
        ),
        (
            {"coordinator": "n:1"},
            {},
            r"mesh\.processes: is missing beside mesh\.coordinator='n:1'; set it, or JAX_NUM_",
        ),
        ({"coordinator": "n:1", "processes": 2}, {}, r"mesh\.process: is missing beside .*; set it, or JAX_PROCESS_ID"),
        ({"process": 4}, BY_HAND, r"mesh\.process=4: must be from 0 to 3, with 4 processes"),
        ({}, {**BY_HAND, "JAX_PROCESS_ID": "one"}, r"JAX_PROCESS_ID='one': must be a whole number"),
        ({}, {**BY_HAND, "JAX_COORDINATOR_ADDRESS": "n"}, r"mesh\.coordinator='n': must be HOST:PORT"),
    ],
)
def test_half_a_description_is_refused(environment, mesh, variables, message):
    environment(**variables)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        processes.describe(MeshConfig(**mesh))
    assert "\n" not in str(caught.value)


def test_a_cluster_that_cannot_be_read_says_what_to_set(environment):
    environment(**{**SLURM, "SLURM_NTASKS": "many"})
    with pytest.raises(UserError, match=r"the cluster around this process cannot be read \(.*many.*mesh\.processes=1"):
        processes.describe(MeshConfig())


def test_a_process_alone_decides_alone_and_touches_no_coordination(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", None)
    processes.start(MeshConfig())
    assert processes.gather({"a": 1}) == [{"a": 1}] and processes.on_first(lambda: 3) == 3
    for block in (processes.together, processes.in_turn):
        with block():
            pass
        with pytest.raises(UserError, match="mine") as caught, block():
            raise UserError("mine")
        assert caught.value.everywhere
        with pytest.raises(KeyError), block():
            raise KeyError("a")


@pytest.mark.parametrize("block", [processes.together, processes.in_turn])
@pytest.mark.parametrize(
    ("others", "kind", "message"),
    [
        ([None, UserError("theirs")], UserError, "^theirs$"),
        ([None, "OSError: gone"], RuntimeError, r"^process 1 failed \(OSError: gone\)$"),
        ([None, None], None, ""),
    ],
)
def test_what_one_raises_all_raise(monkeypatch, block, others, kind, message):
    shared = []
    monkeypatch.setattr(processes, "gather", lambda value: shared.append(value) or [value, *others[1:]])
    if kind is None:
        with block():
            pass
    else:
        with pytest.raises(kind, match=message) as caught, block():
            pass
        assert kind is RuntimeError or caught.value.everywhere
    assert shared == [None] * len(shared) and shared
