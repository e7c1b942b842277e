"""From raw text to a served int8 classifier in a few minutes on a laptop's CPU."""

from lepton_jax.config import default_config


def get_config(arg: str = ""):
    config = default_config("quickstart")
    pretrain, finetune = config.pretrain, config.finetune
    pretrain.data.train = "tfds:movie_sentiment:train,tfds:news_articles:train"
    pretrain.data.validation = "tfds:movie_sentiment:validation"
    pretrain.data.max_length = 64
    pretrain.data.tokenizer_size = 8000
    pretrain.model.update({"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 512, "max_positions": 64, "unroll": 0})
    pretrain.train.update({"steps": 1000, "batch_size": 64, "learning_rate": 2e-3})
    pretrain.optim.warmup_steps = 50
    pretrain.evaluate.every = 200
    finetune.data.train = "tfds:movie_sentiment"
    finetune.data.max_length = 64
    for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions", "unroll"):
        finetune.model[name] = pretrain.model[name]
    finetune.task.name = "classification"
    finetune.train.update({"steps": 300, "batch_size": 64, "learning_rate": 5e-4})
    finetune.optim.warmup_steps = 30
    finetune.model.dropout = 0.1
    finetune.evaluate.every = 50
    finetune.checkpoint.every = 50
    finetune.checkpoint.best = "accuracy"
    finetune.checkpoint.best_mode = "max"
    finetune.compress.method = "int8"
    finetune.infer.lengths = (16, 32, 64)
    finetune.infer.texts = ("A warm, funny film with a heart.", "Two hours of my life that I will never get back.")
    return config
