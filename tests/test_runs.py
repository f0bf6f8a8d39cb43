"""Records of runs, their statistics, and an experiment from config to record."""

import json
import subprocess
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from bonlib.core.paths import write_atomically
from bonlib.datasets.characters.glyphs import default_fonts
from bonlib.study import experiment as experiment_module
from bonlib.study.config import Config, make_config
from bonlib.study.experiment import Experiment
from bonlib.study.records import config_key, find_run, load_galleries, load_history, load_runs, provenance, save_run
from bonlib.study.statistics import (
    against,
    ahead_of,
    cost_table,
    leads_by,
    mean_interval,
    of_shared_seeds,
    paired_difference,
    summary,
    time_to_accuracy,
    verdicts,
)

FEW = {"fonts": [str(path) for path in default_fonts()[:8]], "characters": list(range(0x41, 0x250))}


def test_a_record_is_found_by_its_config_and_by_no_other(folders):
    config = {"dataset": "glyphs", "miner": "bag", "form": "set", "seed": 1, "lr": 0.001}
    path = save_run(config, "trial", metrics={"recall@1": 0.5}, history=[{"step": 1, "churn": float("nan")}])
    assert path.parent == folders / "results" / "trial"
    assert find_run(dict(reversed(config.items())), "trial")["metrics"] == {"recall@1": 0.5}
    assert find_run(config | {"lr": 0.002}, "trial") is None
    assert find_run(config, "other") is None
    record = json.loads(path.read_text())
    assert record["history"] == [{"step": 1, "churn": None}]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=path.parents[0])
    assert record["provenance"]["versions"]["torch"]
    assert record["provenance"]["cores"] >= 1
    assert commit.returncode != 0  # the record's folder is no checkout, and yet
    assert record["provenance"]["commit"] is None or len(record["provenance"]["commit"]) == 40


def test_a_failed_run_is_not_finished_but_is_told_of(folders):
    config = {"miner": "bag", "seed": 0}
    save_run(config, "trial", error="boom")
    assert find_run(config, "trial") is None
    assert load_runs("trial")["error"].tolist() == ["boom"]


def test_an_empty_sweep_has_no_runs(folders):
    for load in (load_runs, load_history):
        with pytest.warns(UserWarning, match="no records in .*nothing; python -m bonlib.study"):
            assert load("nothing").empty


def test_an_experiment_writes_what_load_runs_reads(folders):
    config = Config(dataset_options=FEW, steps=4, evaluate_every=2, batch_size=24, bits=4)
    experiment = Experiment(config)
    assert [step.step for step in experiment] == [1, 2, 3, 4]
    experiment.save("trial")
    run = load_runs("trial").iloc[0]
    history = load_history("trial")
    assert run["loss"] == "batch-hard"
    assert run["miner_stats.bits"] == 4
    assert 0.1 < run["peak_memory_gib"] < 24
    assert 0 < run["metrics.recall@1"] <= 1
    assert run["provenance.processor"]
    assert run["seconds.compute"] == pytest.approx(experiment.seconds["compute"])
    assert history["step"].tolist() == [2, 4]
    assert history["loss"].tolist() == ["batch-hard"] * 2
    assert history["mean_loss"].tolist() == [point["loss"] for point in experiment.history]
    assert history["images"].tolist() == [48, 96]
    assert history["training_seconds"].is_monotonic_increasing


def test_the_same_config_gives_the_same_numbers(folders):
    def losses(**options):
        return [s.loss for s in Experiment(Config(dataset_options=FEW, steps=5, batch_size=24, **options))]

    assert losses(loss="distance-weighted") == losses(loss="distance-weighted")
    assert losses(seed=1) != losses(seed=2)


def test_a_run_without_test_classes_measures_validation_and_bags(folders):
    options = {"dataset_options": FEW, "steps": 4, "evaluate_every": 4, "batch_size": 24, "bits": 4}
    config = Config(**options, test=False, measure_bags=True, name="a trial", miner_options={"hasher": "pca"})
    experiment = Experiment(config)
    assert len(list(experiment)) == 4
    experiment.save("trial")
    run = load_runs("trial").iloc[0]
    assert run["method"] == "a trial"
    assert "metrics.recall@1" not in run
    assert run["validation.recall@1"] == experiment.history[-1]["recall@1"]
    assert 0 <= run["bags.found"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"miner": "magic"}, "miner is 'magic'"),
        ({"loss": "magic"}, "loss 'magic' does not go"),
        ({"encoder": "magic"}, "name is 'magic'"),
        ({"batch_size": 7}, "batch_size is 7"),
        ({"miner_options": {"bag": 1}}, "does not go with these options"),
        ({"dataset": "toponyms", "miner": "subspaces", "miner_options": {"subspaces": 39_000}}, "data are drawn"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said_before_the_data_are_drawn(settings, message, monkeypatch):
    def load(*_, **__):
        raise ValueError("data are drawn")

    monkeypatch.setattr(experiment_module, "load_dataset", load)
    with pytest.raises(ValueError, match=message):
        Experiment(Config(**settings))


def test_options_of_loss_and_data_reach_them(folders):
    options = {"dataset_options": FEW, "batch_size": 24, "identities": 30, "label_noise": 0.5}
    experiment = Experiment(Config(**options, loss="cosface", loss_options={"scale": 8}, loss_lr=0.1))
    assert experiment.loss.loss.scale == 8
    assert experiment.train.num_classes == 30
    assert Experiment(Config(**options, split_identities=0.1)).train.num_classes == 33
    clean = Experiment(Config(**options | {"label_noise": 0.0})).train
    assert float((clean.labels != experiment.train.labels).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_the_usual_loss_is_part_of_the_config():
    assert [Config(form=form).loss for form in ("set", "triplet", "pair")] == ["batch-hard", "triplet", "contrastive"]
    assert config_key({"loss": "triplet"}) != config_key({"loss": "soft-triplet"})


def test_a_run_is_the_same_run_on_any_device():
    config = asdict(Config(dataset_options=FEW, start={"steps": 3}))
    assert config_key(config | {"device": "cuda:1"}) == config_key(config)
    assert config_key(config | {"precision": "bfloat16"}) != config_key(config)
    with pytest.raises(ValueError, match="start sets device"):
        Config(start={"steps": 3, "device": "cuda"})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def broken(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, broken)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_intervals_equal_those_of_scipy():
    values = [0.81, 0.86, 0.79, 0.9]
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, low, high, seeds = mean_interval(values)
    assert (mean, low, high, seeds) == pytest.approx((np.mean(values), expected.low, expected.high, 4))
    assert np.isnan(mean_interval([0.5]).low)
    assert str(mean_interval([0.5])) == "0.500 (one seed)"


def frame(miner, scores, form="set"):
    runs = [{"miner": miner, "form": form, "loss": "batch-hard", "seed": i, "score": s} for i, s in enumerate(scores)]
    return pd.DataFrame(runs)


def test_differences_are_paired_by_seed():
    bag, random = frame("bag", [0.8, 0.9, 0.7]), frame("random", [0.7, 0.85, 0.6])
    expected = scipy_stats.ttest_rel(bag["score"], random["score"]).confidence_interval(0.95)
    found = paired_difference(bag, random.sample(frac=1, random_state=0), "score")
    assert (found.mean, found.low, found.high) == pytest.approx((0.25 / 3, expected.low, expected.high))
    with pytest.raises(ValueError, match="several runs of one seed"):
        paired_difference(pd.concat([bag, bag]), random, "score")
    with pytest.raises(ValueError, match="share no seed"):
        paired_difference(bag, random.assign(seed=random["seed"] + 10), "score")


def test_a_method_is_ahead_level_or_behind_by_the_paired_interval():
    scores = {
        "BoN": [0.8, 0.82, 0.84],
        "easy": [0.5, 0.53, 0.54],
        "alike": [0.82, 0.8, 0.84],
        "best": [0.9, 0.92, 0.93],
    }
    runs = pd.concat([frame("bag", values).assign(method=name) for name, values in scores.items()])
    table = against(runs, "score", "BoN")
    assert table["verdict"].to_dict() == {"best": "behind", "alike": "level", "easy": "ahead"}
    assert table.index[0] == "best"
    expected = scipy_stats.ttest_rel(scores["BoN"], scores["easy"]).confidence_interval(0.95)
    assert table.loc["easy", ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    with pytest.raises(ValueError, match=r"method is 'BON'; allowed are .'BoN'"):
        against(runs, "score", "BON")


def test_a_summary_tells_means_and_seeds():
    table = summary(pd.concat([frame("bag", [0.8, 0.9]), frame("random", [0.5])]), ["miner"], ["score"])
    assert table.loc["bag"].tolist() == [str(mean_interval([0.8, 0.9])), 2]
    runs = pd.concat([frame("bag", [0.8]).assign(noise=None), frame("bag", [0.6]).assign(noise=0.1)])
    assert len(summary(runs, ["miner", "noise"], ["score"])) == 2  # a setting of none is a group too
    with pytest.raises(ValueError, match="A group of miner has several runs of one seed"):
        summary(runs, ["miner"], ["score"])


def test_a_run_that_never_gets_there_is_not_dropped():
    def history(key, method, values, seed=0):
        points = [{"step": 10 * (i + 1), "training_seconds": i + 1.0, "recall@1": v} for i, v in enumerate(values)]
        return pd.DataFrame(points).assign(key=key, method=method, seed=seed)

    records = pd.concat([
        *(history(key, "random sets + batch-hard", [0.4, 0.6, 0.8], seed) for seed, key in enumerate("afg")),
        history("b", "bag", [0.7, 0.8, 0.9]),
        history("c", "bag", [0.7, 0.7, 0.8], 1),
        history("d", "bag", [0.1, 0.2, 0.3], 2),
        history("e", "slow", [0.1, 0.2, 0.3]),
    ])  # fmt: skip
    runs = pd.DataFrame({"key": list("afgbcde"), "seed": [0, 1, 2, 0, 1, 2, 0]})
    with pytest.raises(ValueError, match="as data set"):
        time_to_accuracy(runs.assign(dataset=list("xxxxxyy")), records)
    table = time_to_accuracy(runs, pd.concat([records, history("z", "random sets + batch-hard", [1.0])]))  # no run's
    assert table.loc["bag", ["step", "reached", "seeds"]].tolist() == [30, 2, 3]
    assert np.isinf(table.loc["slow", "seconds"])
    assert table.loc["random sets + batch-hard", "seconds"] == 3
    several = runs.assign(device=["cpu"] * (len(runs) - 1) + ["cuda"])
    steps = time_to_accuracy(several, records)
    assert "seconds" not in steps
    assert steps["step"].tolist() == time_to_accuracy(runs, records)["step"].tolist()
    with pytest.raises(ValueError, match=r"runs of \['cpu', 'cuda'\]; choose those of one device"):
        cost_table(several)
    with pytest.raises(ValueError, match=r"random sets . batch-hard has several runs of one seed"):
        time_to_accuracy(runs.assign(seed=0), records)
    machine = {"provenance.processor": "Xeon", "provenance.cores": 2, "device": "cpu", "provenance.gpu": "H100"}
    for other in ({"provenance.cores": 16}, {"device": "cuda"}, {"provenance.processor": "EPYC"}):
        mixed = pd.concat([runs.iloc[:2].assign(**machine), runs.iloc[2:].assign(**machine | other)])
        assert "seconds" not in time_to_accuracy(mixed, records)
    assert "seconds" in time_to_accuracy(runs.assign(**machine), records)


def test_a_target_is_of_the_same_seed():
    records = pd.concat([
        pd.DataFrame({"step": [10, 20], "training_seconds": [1.0, 2.0], "recall@1": values}).assign(
            key=f"{method}{seed}", method=method, seed=seed
        )
        for method, seed, values in [
            ("random", 0, [0.4, 0.5]), ("bag", 0, [0.5, 0.6]), ("random", 1, [0.7, 0.8]), ("bag", 1, [0.7, 0.75])
        ]
    ])  # fmt: skip
    runs = records.drop_duplicates("key")[["key", "seed"]]
    table = time_to_accuracy(runs, records, baseline="random")
    assert table["reached"].to_dict() == {"random": 2, "bag": 1}  # the hard seed's bag is above the easy seed's target
    assert table.loc["bag", "target"] == pytest.approx(0.65)
    with pytest.raises(ValueError, match=r"no run of the seeds \[1\]"):
        time_to_accuracy(*(of[of["key"] != "random1"] for of in (runs, records)), baseline="random")


def lead_runs(seeds=3, steps=100):
    rng = np.random.default_rng(0)
    return pd.DataFrame([
        {"dataset": name, "miner": miner, "seed": seed, "steps": steps, "data.identities": count,
         "data.images": 9 * count, "metrics.recall@1": rng.random()}
        for name, count in (("large", 500), ("little", 40)) for miner in ("random", "bag", "exact")
        for seed in range(seeds)
    ])  # fmt: skip


def test_leads_by_data_set_are_the_paired_ones():
    runs = lead_runs()
    table = leads_by(runs, "dataset")
    assert table.index.tolist() == ["little", "large"]  # by rising number of identities
    for name, row in table.iterrows():
        of = {miner: runs[(runs["dataset"] == name) & (runs["miner"] == miner)] for miner in ("bag", "random")}
        expected = paired_difference(of["bag"], of["random"], "metrics.recall@1")
        assert row[["lead", "low", "high", "seeds"]].tolist() == pytest.approx(list(expected[:4]))
        assert row["bag"] - row["random"] == pytest.approx(row["lead"])
        assert row["images"] == 9 * row["identities"]


def test_leads_of_mixed_budgets_or_one_miner_are_refused():
    with pytest.raises(ValueError, match=r"large has runs of \[100, 200\] steps; choose those of one budget"):
        leads_by(pd.concat([lead_runs(), lead_runs(steps=200)]), "dataset")
    with pytest.raises(ValueError, match="No dataset has runs of both 'bag' and 'smart'"):
        leads_by(lead_runs(), "dataset", baseline="smart")


def test_runs_of_one_data_set(folders):
    for name in ("glyphs", "hangul"):
        save_run({"dataset": name, "miner": "bag"}, "trial", history=[{"step": 1}])
    assert load_runs("trial", "hangul")["dataset"].tolist() == ["hangul"]
    assert load_history("trial")["dataset"].tolist() == ["glyphs", "hangul"]
    assert len(load_runs("trial")) == 2
    with pytest.raises(ValueError, match="dataset is 'cjk'; the sweep 'trial' has runs on glyphs, hangul"):
        load_runs("trial", "cjk")
    with pytest.warns(UserWarning, match="no records"):
        assert load_runs("none", "cjk").empty


def test_a_small_set_gets_smaller_batches_with_a_warning(folders):
    config = Config(dataset_options=FEW, identities=10, steps=1)
    with pytest.warns(UserWarning, match="10 training identities make batches of 40, not 132"):
        experiment = Experiment(config)
    assert experiment.miner.batch_size == 40
    assert Experiment(Config(dataset_options=FEW, identities=10, form="triplet")).miner.batch_size == 132


def test_damaged_foreign_and_newer_records_are_told_of_and_made_again(folders):
    config = {"dataset": "glyphs", "miner": "bag"}
    path = save_run(config, "trial", metrics={})
    whole = path.read_text()
    newer = json.dumps(json.loads(whole) | {"format": 2})
    for text, message in ((whole[:50], "is damaged"), ("[1]", "is no record of a run"), (newer, "has the format 2")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_runs("trial")
        with pytest.warns(UserWarning, match=f"{message}.*The run is made again"):
            assert find_run(config, "trial") is None
    save_run(config, "trial", metrics={})
    assert find_run(config, "trial")["format"] == 1
    assert len(load_runs("trial")) == 1


def test_one_seed_tells_nothing_and_says_so():
    runs = pd.concat([frame("bag", [0.9]).assign(method="BoN"), frame("random", [0.1]).assign(method="random")])
    table = against(runs, "score", "BoN")
    assert table.loc["random", "verdict"] == "not known: one seed"
    assert np.isnan(table.loc["random", ["low", "high", "p"]].astype(float)).all()
    assert table.loc["random", "lead"] == pytest.approx(0.8)


def test_seeds_without_a_partner_are_named_and_left_out_of_lead_and_mean_alike():
    runs = pd.concat([
        frame("bag", [0.9, 0.8, 0.7]).assign(method="BoN"),
        frame("random", [0.1, 0.2, 0.3, 0.99]).assign(method="random"),
    ])  # fmt: skip
    row = against(runs, "score", "BoN").loc["random"]
    assert (row["without seeds"], row["seeds"]) == ("3", 3)
    shared = of_shared_seeds(runs)
    assert sorted(shared["seed"].unique()) == [0, 1, 2]
    assert len(shared) == 3 * runs["method"].nunique()
    with pytest.raises(ValueError, match="share no seed"):
        of_shared_seeds(runs[(runs["method"] == "BoN") == (runs["seed"] == 0)])
    with pytest.raises(ValueError, match="share no seed"):  # all runs of a method failed
        of_shared_seeds(runs.assign(error=np.where(runs["method"] == "BoN", "boom", None)))
    assert row["value"] == pytest.approx(0.2)
    assert row["lead"] == pytest.approx(0.6)
    failed = runs.assign(score=runs["score"].where(runs["seed"] != 0))  # a run without the measure
    assert against(failed, "score", "BoN").loc["random", "without seeds"] == "3"


def test_verdicts_are_holms_over_the_table():
    from statsmodels.stats.multitest import multipletests

    rng, runs = np.random.default_rng(0), [frame("bag", [0.80, 0.81, 0.79, 0.82]).assign(method="BoN")]
    for i in range(12):
        runs.append(frame("random", rng.normal(0.79, 0.02, 4).tolist()).assign(method=f"m{i}"))
    table = against(pd.concat(runs), "score", "BoN")
    raw = [scipy_stats.ttest_rel([0.80, 0.81, 0.79, 0.82], r["score"]).pvalue for r in runs[1:]]
    expected = dict(zip((f"m{i}" for i in range(12)), multipletests(raw, method="holm")[1], strict=True))
    for name, row in table.iterrows():
        assert row["p"] == pytest.approx(expected[name])
        assert row["verdict"] == ("level" if row["p"] >= 0.05 else "ahead" if row["lead"] > 0 else "behind")
    assert (table["p"] >= 0.05).sum() > (np.array(raw) >= 0.05).sum()  # some would have been found by luck


@pytest.mark.parametrize(("second", "verdict"), [([0.5, 0.6, 0.7], "level"), ([0.25, 0.35, 0.45], "level")])
def test_differences_without_any_spread_have_a_verdict(second, verdict):
    runs = [frame("bag", [0.5, 0.6, 0.7]).assign(method="BoN"), frame("random", second).assign(method="random")]
    assert against(pd.concat(runs), "score", "BoN")["verdict"].tolist() == [verdict]


def test_a_missing_baseline_or_history_is_an_error_that_names_it():
    history = pd.DataFrame([{"key": "a", "method": "BoN", "step": 1, "training_seconds": 1.0, "recall@1": 0.5}])
    runs = pd.DataFrame({"key": ["a", "b"]})
    with pytest.raises(
        ValueError, match=r"baseline is 'random sets \+ batch-hard', which has no history here; allowed are"
    ):
        time_to_accuracy(runs, history)
    with pytest.raises(ValueError, match="The runs b have no history; run them again"):
        time_to_accuracy(runs, history, baseline="BoN")
    with pytest.raises(ValueError, match="has no history here"):
        time_to_accuracy(runs, pd.DataFrame())
    with pytest.raises(ValueError, match="values is empty"):
        mean_interval([])


SMALL_RUN = {
    "dataset_options": FEW, "identities": 30, "batch_size": 24, "steps": 4, "evaluate_every": 2, "test": False,
}  # fmt: skip


def test_a_run_begins_with_the_weights_of_another(folders):
    start = {"steps": 3, "lr": 0.01}
    first = Experiment(make_config(SMALL_RUN | {"start": start}))
    (file,) = (folders / "data" / "starts").iterdir()
    made = file.stat().st_mtime_ns
    other = Experiment(make_config(SMALL_RUN | {"start": start, "miner": "random"}))
    assert file.stat().st_mtime_ns == made  # made once, for all methods
    plain = Experiment(make_config(SMALL_RUN))
    weights = [next(run.encoder.parameters()).detach().clone() for run in (first, other, plain)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    again = Experiment(make_config(SMALL_RUN | {"start": str(file)}))
    assert torch.equal(next(again.encoder.parameters()), weights[0])
    with pytest.raises(ValueError, match="holds another encoder than 'small'"):
        Experiment(make_config(SMALL_RUN | {"start": str(file), "dim": 8}))
    with pytest.raises(ValueError, match="start has no setting stepz"):
        make_config(SMALL_RUN | {"start": {"stepz": 8}})
    with pytest.raises(ValueError, match="own_split is True and dataset_options has split_seed"):
        make_config(SMALL_RUN | {"own_split": True, "dataset_options": {"split_seed": 1}})
    with pytest.raises(ValueError, match="start sets dim"):
        make_config(SMALL_RUN | {"start": {"dim": 8}})
    with pytest.raises(ValueError, match="start sets own_split, seed, which could train on what this run tests"):
        make_config(SMALL_RUN | {"start": {"seed": 3, "own_split": True}})
    make_config(SMALL_RUN | {"start": {"dataset": "hangul", "seed": 3}})  # other identities altogether


def test_a_bag_that_is_filled_first_knows_every_sample_and_tells_its_seconds(folders):
    run = Experiment(make_config(SMALL_RUN | {"miner": "two-stage-bag", "fill": True}))
    next(iter(run))
    assert run.miner.stats()["filled"] == 1
    assert run.seconds["refresh"] > 0
    few = Experiment(make_config(SMALL_RUN | {"miner": "two-stage-bag", "fill": True, "fill_per_class": 2}))
    next(iter(few))
    assert few.miner.stats()["filled"] == 1
    on_another = Experiment(make_config(SMALL_RUN | {"miner": "two-stage-bag", "fill": True}))
    object.__setattr__(on_another.config, "device", "meta")  # any other than where the encoder was made
    with pytest.raises(ValueError, match="device is 'meta'"):
        on_another._fill()
    assert next(on_another.encoder.parameters()).device.type == "meta"
    for wrong in ({"miner": "two-stage-bag"}, {"miner": "bag", "fill": True}, {"miner": "random", "fill": True}):
        with pytest.raises(ValueError, match="fill_per_class is 2; it goes with fill True and a bag of identities"):
            make_config(SMALL_RUN | {"fill_per_class": 2} | wrong)
    with pytest.raises(ValueError, match="no table to fill"):
        next(iter(Experiment(make_config(SMALL_RUN | {"miner": "random", "fill": True}))))


def test_each_seed_may_have_its_own_split(folders):
    names = [
        set(Experiment(make_config(SMALL_RUN | {"own_split": own, "seed": seed, "identities": None})).train.class_names)
        for own, seed in ((False, 0), (False, 1), (True, 0), (True, 1))
    ]
    assert names[0] == names[1] == names[2] != names[3]


def test_galleries_come_into_the_record(folders):
    run = Experiment(make_config(SMALL_RUN | {"test": True, "test_queries": 500}))
    list(run)
    run.save("trial")
    table = load_galleries("trial")
    assert table["gallery"].iloc[0] == 1000 < table["gallery"].iloc[-1]
    assert table["recall@1"].is_monotonic_decreasing
    assert (table["method"] == "first-stage sets + batch-hard").all()


def test_a_lead_over_training_is_paired_by_seed_and_step():
    rows = [
        {"dataset": "d", "method": method, "seed": seed, "step": step, "recall@1": value + seed + step / 100}
        for method, value in (("a", 0.5), ("b", 0.2)) for seed in (0, 1) for step in (10, 20)
    ]  # fmt: skip
    found = ahead_of(pd.DataFrame(rows), "b")
    assert found.loc[found["method"] == "a", "lead"].tolist() == pytest.approx([0.3] * 4)
    assert set(found["method"]) == {"a"}
    with pytest.raises(ValueError, match="method is 'c'"):
        ahead_of(pd.DataFrame(rows), "c")
    with pytest.raises(ValueError, match="no run for each"):
        ahead_of(pd.DataFrame(rows[:-1]), "b")


def test_the_same_lead_at_two_seeds_is_not_certain():
    """Recall is a count: equal differences come by chance, and leave the t-test without a spread."""
    runs = {
        name: pd.DataFrame({"seed": [0, 1], "r": values}) for name, values in (("a", [0.5, 0.6]), ("b", [0.4, 0.5]))
    }
    found = paired_difference(runs["a"], runs["b"], "r")
    assert found.p == 0.5  # two coins fall alike
    assert verdicts([found]) == [("level", 0.5)]


def test_a_baseline_reaches_its_own_best():
    best = next(value for value in np.arange(1, 1000) / 1000 if pd.Series([value] * 3).mean() > value)
    records = pd.DataFrame(
        {"key": list("abc"), "method": "random", "step": 1, "training_seconds": 1.0, "recall@1": best, "seed": range(3)}
    )
    table = time_to_accuracy(records[["key", "seed"]], records, baseline="random")
    assert table["reached"].tolist() == [3]


def test_one_name_for_several_conditions_is_refused():
    runs = pd.concat(
        [frame("bag", [0.5, 0.6]).assign(method="BoN"), frame("random", [0.4, 0.5]).assign(method="random")]
    )
    mixed = pd.concat([runs.assign(label_noise=0.0), runs.assign(label_noise=0.1, seed=runs["seed"] + 2)])
    with pytest.raises(ValueError, match="has runs of several label_noise; choose those of one"):
        against(mixed, "score", "BoN")
    assert len(against(runs.assign(label_noise=0.1), "score", "BoN")) == 1


def test_an_installed_package_names_no_commit_of_a_stranger(monkeypatch):
    monkeypatch.setattr("bonlib.study.records.project_dir", lambda: None)
    of = provenance()
    assert (of["commit"], of["dirty"]) == (None, None)
