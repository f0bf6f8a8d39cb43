"""BoN inside the trainer of sentence-transformers: rows, labels, losses in pieces, resuming."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("sentence_transformers")
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bonlib.integrations.sentence_transformers import TextBag

ROWS, BATCH = 200, 16
# Most runs here are shorter than a pass, and do not begin with a table that is filled.
pytestmark = pytest.mark.filterwarnings("ignore:All .* steps had random batches")


@pytest.fixture
def model():
    return new_model()


def new_model():
    torch.manual_seed(0)
    alphabet = {character: i for i, character in enumerate("?0123456789ab ")}
    tokenizer = Tokenizer(models.WordLevel(alphabet, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16), Normalize()], device="cpu")


@pytest.fixture
def bert(model, tmp_path):
    """A transformer without dropout, for losses that embed a batch in pieces."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=16, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer, pad_token="?", unk_token="?")
    tokenizer.save_pretrained(tmp_path / "bert")
    return SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(16, "mean")], device="cpu")


def pairs(**more):
    return Dataset.from_dict(
        {"anchor": [f"{i} a" for i in range(ROWS)], "positive": [f"b {i}" for i in range(ROWS)]} | more
    )


def train(model, mined, folder, *, steps=8, save=None, resume=False, gradient_accumulation_steps=1, **evaluate):
    arguments = SentenceTransformerTrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=BATCH, batch_sampler=mined.sampler, use_cpu=True,
        save_strategy="steps" if save else "no", save_steps=save or 1, ignore_data_skip=True, report_to="none",
        disable_tqdm=True, logging_strategy="no", seed=0, per_device_eval_batch_size=7,
        gradient_accumulation_steps=gradient_accumulation_steps, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=mined.dataset, loss=mined.loss, callbacks=[mined], **evaluate
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def watched(mined):
    """The rows and embeddings that the bag learns from, batch by batch."""
    told, learn = [], mined.learn

    def tell(rows, embeddings):
        told.append((rows.tolist(), embeddings.clone()))
        learn(rows, embeddings)

    mined.learn = tell
    return told


def test_both_texts_of_a_pair_are_hashed_by_their_own_embeddings(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH, unit="sample", seed=3)
    told = watched(mined)
    train(model, mined, tmp_path, steps=1)
    ((rows, embeddings),) = told
    assert len(set(rows)) == len(rows) == BATCH
    ids = np.concatenate([np.array(rows) * 2, np.array(rows) * 2 + 1])
    codes = mined.bag.hasher.encode(embeddings).numpy()
    assert mined.bag.table.codes(ids).tolist() == codes.tolist()
    assert mined.bag.table.filled == 2 * BATCH


def test_the_bag_learns_what_the_loss_embedded_in_pieces_or_at_once(bert, tmp_path):
    weights = {name: values.clone() for name, values in bert.state_dict().items()}
    seen = []
    for make, options in (
        (losses.MultipleNegativesRankingLoss, {}),
        (losses.CachedMultipleNegativesRankingLoss, {"mini_batch_size": 5}),
    ):
        bert.load_state_dict(weights)
        mined = TextBag(pairs(), make(bert, **options), batch_size=BATCH)
        seen.append(watched(mined))
        train(bert, mined, tmp_path, steps=3)
    assert [rows for rows, _ in seen[0]] == [rows for rows, _ in seen[1]]
    for (_, once), (_, pieces) in zip(*seen, strict=True):
        assert torch.allclose(once, pieces, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"negative": [f"not {i}" for i in range(ROWS)]}], ids=["pairs", "triplets"])
def test_rows_of_one_label_are_never_in_one_batch(model, tmp_path, more):
    labels = [i // 4 + 100 for i in range(ROWS)]
    rows = pairs(**more, place=labels)
    mined = TextBag(rows, losses.MultipleNegativesRankingLoss(model), batch_size=BATCH, label="place")
    told = watched(mined)
    train(model, mined, tmp_path)
    for drawn, _ in told:
        assert len({labels[row] for row in drawn}) == len(drawn) == BATCH


def test_single_texts_of_a_label_come_in_groups(model, tmp_path):
    labels = [i // 4 + 100 for i in range(ROWS)]
    texts = Dataset.from_dict({"text": [f"{i} a" for i in range(ROWS)], "place": labels})
    mined = TextBag(texts, losses.BatchHardTripletLoss(model), batch_size=BATCH, label="place")
    told, given = watched(mined), []
    mined.loss.loss.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1].tolist()))
    train(model, mined, tmp_path)
    for (rows, _), got in zip(told, given, strict=True):
        assert sorted(np.unique([labels[row] for row in rows], return_counts=True)[1]) == [4] * 4
        assert got == [labels[row] for row in rows]


def test_a_run_that_was_stopped_goes_on_with_the_batches_of_one_that_was_not(model, tmp_path):
    weights = {name: values.clone() for name, values in model.state_dict().items()}

    def run(folder, **options):
        model.load_state_dict(weights)
        mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
        told = watched(mined)
        train(model, mined, folder, **options)
        return [rows for rows, _ in told], mined.bag.state_dict()

    whole, state = run(tmp_path / "whole", steps=18)  # an epoch and a half
    run(tmp_path / "parts", steps=7, save=7)
    rest, resumed = run(tmp_path / "parts", steps=18, resume=True)
    assert rest == whole[7:]
    assert torch.equal(state["table"]["members"], resumed["table"]["members"])
    assert state["updates"] == resumed["updates"] == 18


@pytest.mark.parametrize(("many", "stop"), [(3, 2), (5, 1), (5, 3), (4, 2)])
def test_a_run_that_accumulates_gradients_goes_on_as_it_would_have_or_is_refused(model, tmp_path, many, stop):
    weights = {name: values.clone() for name, values in model.state_dict().items()}

    def run(folder, **options):
        model.load_state_dict(weights)
        mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
        told = watched(mined)
        train(model, mined, folder, gradient_accumulation_steps=many, **options)
        return [rows for rows, _ in told], {name: values.clone() for name, values in model.state_dict().items()}

    updates = -(-12 // many)  # of an epoch
    run(tmp_path / "parts", steps=stop, save=stop)
    if stop % updates and (12 - stop % updates * many) % many:
        with pytest.raises(ValueError, match=f"gradient_accumulation_steps is {many}, and .* of 12 batches are left"):
            run(tmp_path / "parts", steps=2 * updates, resume=True)
        return
    whole, expected = run(tmp_path / "whole", steps=2 * updates)
    rest, found = run(tmp_path / "parts", steps=2 * updates, resume=True)
    assert rest == whole[len(whole) - len(rest) :]
    assert len(whole) == 24
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def shared_worker(rank, folder, cases):
    """One of two processes: for each case a run to its end, and one that is stopped and goes on."""
    torch.set_num_threads(1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29536}
    os.environ |= {name: str(value) for name, value in own.items()}

    def run(name, batches, **options):
        model = new_model()
        data = pairs().select(range(batches * BATCH))
        mined = TextBag(data, losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
        told = watched(mined)
        train(model, mined, folder / name, **options)
        return [rows for rows, _ in told], mined.bag.state_dict()["table"]["members"].tolist()

    found = []
    for batches, stop in cases:
        whole, name = run(f"whole {batches}", batches, steps=9), f"{batches} stopped at {stop}"
        run(name, batches, steps=stop, save=stop)
        found.append([whole, run(name, batches, steps=9, resume=True)])
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_that_were_stopped_go_on_to_the_bag_of_those_that_were_not(tmp_path):
    cases = [(12, 4), (11, 3), (11, 5)]  # batches of an epoch, of which each process has half, and where to stop
    mp.start_processes(shared_worker, (tmp_path, cases), nprocs=2, start_method="spawn")
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for (_, stop), *of_ranks in zip(cases, *told, strict=True):
        tables = []
        for (drawn, table), (rest, resumed) in of_ranks:
            assert (len(drawn), len(rest)) == (9, 9 - stop)
            assert (rest, resumed) == (drawn[stop:], table)
            tables.append(table)
        assert tables[0] == tables[1]


def test_the_checkpoint_of_another_folder_does_not_get_the_bag_of_this_one(model, tmp_path):
    for name in ("one", "other"):
        mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
        train(model, mined, tmp_path / name, steps=2, save=2)
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    with pytest.raises(ValueError, match="is of another run; resume in the output folder of the checkpoint"):
        train(model, mined, tmp_path / "other", steps=4, resume=str(tmp_path / "one" / "checkpoint-2"))


def test_a_checkpoint_without_its_bag_is_refused(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    train(model, mined, tmp_path, steps=2, save=2)
    (tmp_path / "checkpoint-2" / "bag_of_negatives.pt").unlink()
    with pytest.raises(ValueError, match="is missing"):
        train(model, mined, tmp_path, steps=4, resume=True)


def test_rows_to_evaluate_on_are_taken_as_they_are(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    others = Dataset.from_dict({"anchor": [f"a{i}" for i in range(21)], "positive": [f"{i}b" for i in range(21)]})
    trainer = train(model, mined, tmp_path, steps=2, eval_dataset=others)
    updates = mined.bag.stats()["age_max"]
    assert trainer.evaluate()["eval_loss"] > 0
    assert mined.bag.stats()["age_max"] == updates


@pytest.mark.parametrize("taken", [lambda rows: rows.select(range(3, 24)), lambda rows: rows.shuffle(seed=1)])
def test_rows_whose_labels_are_numbers_are_not_evaluated_on(model, tmp_path, taken):
    rows = pairs(place=[i // 2 for i in range(ROWS)])
    mined = TextBag(rows, losses.MultipleNegativesRankingLoss(model), batch_size=BATCH, label="place")
    with pytest.raises(ValueError, match="evaluate on rows of your own dataset"):
        train(model, mined, tmp_path, steps=2, eval_dataset=taken(mined.dataset)).evaluate()
    own = rows.rename_column("place", "label").select(range(3, 24))  # these labels are places
    assert train(model, mined, tmp_path, steps=2, eval_dataset=own).evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("more", "options", "text"),
    [
        ({"label": [0] * ROWS}, {}, "column 'label'"),
        ({}, {"label": "place"}, "columns are anchor, positive"),
        ({}, {"batch_size": 1}, "batch_size is 1"),
        ({}, {"batch_size": ROWS + 1}, f"dataset has {ROWS} rows"),
        ({}, {"bits": 99}, "bits is 99"),
        ({"score": [0.5] * ROWS}, {}, "without score"),
        ({"label": ["a"] * ROWS, "place": [0] * ROWS}, {"label": "place"}, "column 'label'"),
        ({}, {"form": "triplet"}, "options has form"),
    ],
)
def test_what_cannot_be_is_refused(model, more, options, text):
    with pytest.raises(ValueError, match=text):
        TextBag(pairs(**more), losses.MultipleNegativesRankingLoss(model), **({"batch_size": BATCH} | options))


def test_texts_that_stand_in_several_rows_are_told_whatever_their_column(model):
    loss = losses.MultipleNegativesRankingLoss(model)
    both = pairs()["anchor"][:], pairs()["positive"][:]
    symmetric = Dataset.from_dict({"anchor": [*both[0], *both[1]], "positive": [*both[1], *both[0]]})
    with pytest.warns(UserWarning, match=f"{2 * ROWS} texts stand in rows of several identities"):
        TextBag(symmetric, loss, batch_size=BATCH)


def test_small_classes_and_several_processes_are_refused(model, monkeypatch):
    rows = pairs(label=[i // 4 for i in range(ROWS - 1)] + [999]).select_columns(["anchor", "label"])
    mined = TextBag(rows, losses.BatchAllTripletLoss(model), batch_size=BATCH, label="label")
    assert mined.sampler(mined.dataset, BATCH) is not None
    monkeypatch.setattr("bonlib.integrations.sentence_transformers.world_size", lambda: 2)
    with pytest.raises(ValueError, match="label has a class of 1 rows, and with several processes each needs 4"):
        mined.sampler(mined.dataset, BATCH)


def test_rows_that_the_bag_did_not_draw_are_refused(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    mined.dataset = mined.dataset.shuffle(seed=1)  # the numbers go along, the places do not
    with pytest.raises(ValueError, match="not those that the bag drew"):
        train(model, mined, tmp_path, steps=1)
    with pytest.raises(ValueError, match="is a DatasetDict"):
        TextBag(DatasetDict(train=pairs()), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    anchors = ["0 a", *(f"{i} a" for i in range(ROWS - 1))]
    repeated = Dataset.from_dict({"anchor": anchors, "positive": [f"b {i}" for i in range(ROWS)]})
    with pytest.warns(UserWarning, match="1 texts stand in rows of several identities"):
        TextBag(repeated, losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)


def test_a_loss_that_shortens_embeddings_tells_the_bag_of_whole_ones(bert, tmp_path):
    loss = losses.MatryoshkaLoss(bert, losses.MultipleNegativesRankingLoss(bert), matryoshka_dims=[16, 8])
    mined = TextBag(pairs(), loss, batch_size=BATCH)
    told = watched(mined)
    train(bert, mined, tmp_path, steps=2)
    assert [tuple(rows.shape) for _, rows in told] == [(2 * BATCH, 16)] * 2


def test_a_loss_that_embeds_more_than_the_batch_in_pieces_is_told(bert):
    for pieces in (5, BATCH, 2 * BATCH):  # whole ones too: the guide's come between those of two columns
        with pytest.raises(ValueError, match="whose guide is the encoder itself"):
            TextBag(pairs(), losses.CachedGISTEmbedLoss(bert, bert, mini_batch_size=pieces), batch_size=BATCH)


def test_a_trainer_with_other_batches_or_rows_is_told(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    with pytest.raises(ValueError, match="batch_size of the bag is 16"):
        mined.sampler(mined.dataset, 8)
    model.train()
    with pytest.raises(ValueError, match="train_dataset"):
        mined.loss([], None)


@pytest.mark.parametrize("labelled", [False, True])
def test_filling_gives_each_row_the_code_of_its_texts(model, labelled):
    rows = pairs(place=[i // 2 for i in range(ROWS)]) if labelled else pairs()
    options = {"label": "place"} if labelled else {}
    mined = TextBag(rows, losses.MultipleNegativesRankingLoss(model), batch_size=BATCH, **options)
    mined.fill()
    texts = [torch.from_numpy(model.encode(rows[name][:])) for name in ("anchor", "positive")]
    means = torch.stack(texts).mean(dim=0)  # (rows, dim)
    if labelled:
        means = means.view(ROWS // 2, 2, -1).mean(dim=1)
    assert (mined.bag.means - means).abs().max() < 0.02
    assert mined.bag.stats()["filled"] == 1
    next(iter(mined.draw()))
    assert mined.bag.stats()["from_unseen"] == 0


def test_a_training_without_a_bag_is_told(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    with pytest.warns(UserWarning, match="All 4 steps had random batches"):
        train(model, mined, tmp_path, steps=4)


def test_a_run_is_not_resumed_over_other_rows(model, tmp_path):
    mined = TextBag(pairs(), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    train(model, mined, tmp_path, steps=2, save=2)
    other = TextBag(pairs().shuffle(seed=5), losses.MultipleNegativesRankingLoss(model), batch_size=BATCH)
    with pytest.raises(ValueError, match="is of other rows, or of these in another order"):
        train(model, other, tmp_path, steps=4, resume=True)


def test_texts_under_several_labels_are_told_those_under_one_are_not(model):
    loss = losses.MultipleNegativesRankingLoss(model)
    rows = pairs(place=[i // 2 for i in range(ROWS)])
    one = rows.map(lambda row: row | {"anchor": f"{row['place']} a"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextBag(one, loss, batch_size=BATCH, label="place")
    several = rows.map(lambda row: row | {"anchor": f"{row['place'] // 2} a"})
    with pytest.warns(UserWarning, match=f"{ROWS // 4} texts stand in rows of several identities"):
        TextBag(several, loss, batch_size=BATCH, label="place")


def test_what_would_have_no_effect_or_make_negatives_of_positives_is_refused(model, bert, monkeypatch):
    loss = losses.MultipleNegativesRankingLoss(model)
    rows = pairs(place=[i // 2 for i in range(ROWS)])
    with pytest.raises(ValueError, match="and per_class 1, so that no tuple is active"):
        TextBag(rows, loss, batch_size=BATCH, label="place", pool=256, target=0.5)
    inner = losses.CachedGISTEmbedLoss(bert, bert, mini_batch_size=BATCH)
    with pytest.raises(ValueError, match="loss has a CachedGISTEmbedLoss whose guide is the encoder itself"):
        TextBag(pairs(), losses.MatryoshkaLoss(bert, inner, matryoshka_dims=[16, 8]), batch_size=BATCH)
    shared = losses.MultipleNegativesRankingLoss(model, gather_across_devices=True)
    mined = TextBag(pairs(), shared, batch_size=BATCH)
    monkeypatch.setattr("bonlib.integrations.sentence_transformers.world_size", lambda: 2)  # joined since
    with pytest.raises(ValueError, match="loss has gather_across_devices=True"):
        mined.sampler(mined.dataset, BATCH)
    with pytest.raises(ValueError, match=r"labels has shape .* dtype <U"):
        TextBag(pairs(place=[f"p{i // 2}" for i in range(ROWS)]), loss, batch_size=BATCH, label="place")
