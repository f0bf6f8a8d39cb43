"""sentence-transformers: python examples/sentence_transformers_loop.py [steps], pairs of names of one place."""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bonlib import load_dataset
from bonlib.datasets.example import example_names
from bonlib.integrations.sentence_transformers import TextBag

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
names = load_dataset("table", "train", root=str(example_names()), column="name")
groups = [group for group in map(names.of_class, names.class_names) if len(group) > 1]
dataset = Dataset.from_dict({"anchor": [g[0] for g in groups], "positive": [g[1] for g in groups]})

# A model made here, so that nothing is downloaded; take your own instead.
tokenizer = Tokenizer(models.BPE(unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
tokenizer.train_from_iterator(names.strings, trainers.BpeTrainer(vocab_size=2000, special_tokens=["?"]))
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64), Normalize()], device="cpu")

mined = TextBag(dataset, MultipleNegativesRankingLoss(model), batch_size=64)  # BoN
arguments = SentenceTransformerTrainingArguments(
    "build/sentence-transformers", max_steps=steps, per_device_train_batch_size=64, learning_rate=1e-2, use_cpu=True,
    save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
    batch_sampler=mined.sampler,  # BoN: the batches
)  # fmt: skip
SentenceTransformerTrainer(
    model, arguments, train_dataset=mined.dataset, loss=mined.loss, callbacks=[mined]  # BoN: rows, loss, state
).train()  # fmt: skip
print({name: round(value, 3) for name, value in mined.bag.stats().items()})
