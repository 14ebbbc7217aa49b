"""What varied from seed to seed, read off records."""

from layergraft.report.variation import draws, variation
from layergraft.store.records import RunRecord, summarized


def record(seed, split=None, few=None, donor=None, host=None, drawn=("train", "val", "test")):
    """A completed run; None: drawn by the run's seed."""

    def by(fixed):
        return seed if fixed is None else fixed

    return RunRecord(
        f"run{seed}", "completed", {"seed": seed}, data={"seeds": {"split_seed": by(split), "few_shot_seed": few}, "drawn": [*drawn]},
        donors=[{"spec": {"seed": by(donor)}}], host={"network": "n", "seed": by(host), "head": "kept"},
    )  # fmt: skip


def of(*records):
    return variation((r.axes["seed"], draws(r)) for r in records)


SPLIT = "the split into training, validation and test images"
ORDER = "the order of the training images"


def test_a_seed_varies_all_that_no_key_fixes():
    found = of(*(record(seed) for seed in range(3)))
    assert found.varied == [SPLIT, "the donors", "the host's pretraining", ORDER] and found.fixed == []
    fixed = of(*(record(seed, split=0, few=5, donor=0, host=7) for seed in range(3)))
    assert fixed.varied == [ORDER]
    assert fixed.fixed == [
        f"{SPLIT} (by seed 0)", "the few-shot images (by seed 5)", "the donors (by seed 0)", "the host's pretraining (by seed 7)",
    ]  # fmt: skip


def test_fixed_initial_weights_and_order_are_told():
    made = [record(seed) for seed in range(2)]
    for one in made:
        one.host, one.config = {"head": "new"}, {"init_seed": 4, "order_seed": 5}
    assert of(*made).fixed == ["the host's initial weights (by seed 4)", f"{ORDER} (by seed 5)"]


def test_what_nobody_draws_and_what_only_some_runs_fix():
    found = of(
        *(record(seed, drawn=("train", "val")) for seed in range(2)), *(record(seed, donor=0) for seed in range(2))
    )
    assert "the test images, which are the set's own split" in found.fixed
    assert "the donors (in some runs; others share one)" in found.varied
    gabor = record(0), record(1)
    for one in gabor:
        one.donors, one.host = [{"spec": {}}], {"weights": "a.pt", "head": "new"}
    found = of(*gabor)
    assert found.fixed == ["the donors from a file or a formula", "the host's weights, which are from a file"]
    assert of(record(0), record(0)).varied == of(record(0)).fixed == []


def test_notes_of_many_runs_are_told_once():
    notes = ["the donor saw 3 of 10 images", "the donor saw 4 of 10 images", "one", "one", "alone"]
    assert summarized(notes) == ["in 2 runs, such as: the donor saw 3 of 10 images", "in 2 runs: one", "alone"]
