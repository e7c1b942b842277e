"""Tables in Markdown and LaTeX: numbers as they are read, bold where a test says so, names escaped."""

from __future__ import annotations

import pytest
from made import make_sweep, tuned

from lepton_jax import results
from lepton_jax.results import tables
from lepton_jax.results.groups import group, judge

pytestmark = pytest.mark.once
METRICS = ("finetune.accuracy", "finetune.loss", "wall_seconds")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    quality = {"a_b & 50% of $x$ {#1} ~^\\": 0.7, "other|name": 0.9}
    make_sweep(folder, {name: {} for name in quality}, lambda name, seed: tuned(
        quality[name], 10 * seed + len(name), wall_seconds=60.0 + seed + (seed == 2 and name != "other|name") * 0.25,
        **{"finetune.loss": 1.25 - quality[name] + 0.0625 * seed}))  # fmt: skip
    return group(results.find(folder))


def both(groups, metrics=METRICS):
    verdicts = {metric: judge(groups, metric) for metric in metrics}
    return tables.markdown(groups, metrics, verdicts), tables.latex(groups, metrics, verdicts)


def test_markdown(groups):
    text, _ = both(groups)
    head, rule, first, second, blank, note, *rest = text.splitlines()
    assert head == "|  | accuracy, % ↑ | loss ↓ | wall seconds ↓ | runs |" and rule.count("---:") == 4 and not blank
    mean, std = (100 * value for value in (tables.statistic(groups[0], METRICS[0]).mean,
                                           tables.statistic(groups[0], METRICS[0]).std))  # fmt: skip
    assert first.startswith(f"| a_b & 50% of $x$ {{#1}} ~^\\ | {mean:.1f} ± {std:.1f} | 0.6125 ± 0.0625 |")
    assert second.startswith("| other\\|name | **") and second.endswith("| 61.0 s ± 1.0 s | 3 |")
    assert "**" not in second.split("|")[-3], "it is the first by wall time, but not surely"
    assert note.startswith("Mean ± standard deviation over 3 seeds, 6 runs. Bold:")
    assert rest[1].startswith(
        "- accuracy: other|name is better than a_b & 50% of $x$ {#1} ~^\\, p at most 0.002 by the paired bootstrap"
    )
    assert "400 examples, 3 seeds" in rest[1] and "t-test over seeds (3 seeds)" in rest[2]
    assert rest[3].startswith(
        "- wall seconds: other|name is ahead, but not surely of a_b & 50% of $x$ {#1} ~^\\, p of 0.42 by"
    )


def test_latex_is_escaped(groups):
    _, text = both(groups)
    assert r"a\_b \& 50\% of \$x\$ \{\#1\} \textasciitilde{}\textasciicircum{}\textbackslash{} & " in text
    assert r"other\textbar{}name & \textbf{" in text and r" $\pm$ " in text and r"accuracy, \% $\uparrow$" in text
    assert text.count("\\\\\n") == 3 and "\\toprule" in text and "\\begin{tabular}{lrrrr}" in text
    assert all(line.startswith("%") for line in text.partition("\\end{tabular}\n\n")[2].splitlines())


def test_nothing_is_bold_without_a_verdict(groups):
    text = tables.markdown(groups, METRICS, {})
    assert "**" not in text and "Bold" not in text and "61.0 s" in text
    assert r"\textbf" not in tables.latex(groups, METRICS, {})


def test_metrics_of_one_last_name_keep_their_groups(groups, tmp_path):
    make_sweep(tmp_path, {"a": {}}, lambda name, seed: tuned(0.7, seed, **{"int8.accuracy": 0.69}), seeds=1)
    found = group(results.find(tmp_path))
    text = tables.markdown(found, ("finetune.accuracy", "int8.accuracy"), {})
    assert "| finetune accuracy, % ↑ | int8 accuracy, % ↑ |" in text and "| 69.0 | 1 |" in text
    assert "One seed each, 1 runs." in text
