import os
from dataclasses import replace

import pytest
import torch

from hero_model.config import base, debug
from hero_model.tasks import Fom, Mlm, MomentRetrieval
from hero_platform import config_io, files, home
from hero_platform.config import (
    CheckpointConfig,
    Entry,
    EvaluationConfig,
    RunConfig,
    ScaleConfig,
    StoreRef,
    differences,
    identity,
)
from hero_platform.store.manifest import Manifest
from hero_platform.store.reader import FeatureStore
from hero_platform.train.checkpoint import Checkpointer
from hero_platform.train.resolve import (
    check_same_run,
    load_weights,
    resolve,
    weights_of,
    with_batch,
    with_model,
    with_stores,
)
from hero_platform.train.snapshot import shapes
from hero_platform.train.worker import Surroundings, build_module, train


def recipe(**changes) -> RunConfig:
    run = RunConfig(
        recipe="tiny",
        mixture=(Entry(Mlm(), "synthetic"), Entry(MomentRetrieval(), "synthetic")),
        model=debug(),
        batch=8,
        pool=8,
        nce_pool=2,
        steps=2,
        evaluation=EvaluationConfig(every=0),
        scale=ScaleConfig(threads_per_worker=1, deterministic=False),  # torch's own, which other tests expect
        checkpoint=CheckpointConfig(every=1),
    )
    return replace(run, **changes)


@pytest.fixture
def run(tiny_store) -> RunConfig:
    return resolve(recipe(stores=(StoreRef("synthetic", tiny_store),)))


def refused(words: str, call, *arguments) -> None:
    """It raises one sentence with these words."""
    with pytest.raises(ValueError, match=words) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)


def test_the_store_decides_sizes_and_digests(run, tiny_store):
    store = FeatureStore.open(tiny_store)
    assert run.model.frame_dim == store.frame_dim == 16
    assert run.text == store.text_ids
    assert run.model.vocab_size % 8 == 0 and 0 <= run.model.vocab_size - store.text_ids.vocab_size < 8
    assert run.stores[0].digest == store.digest
    assert run.stores[0].annotations == store.annotations("moments", "train").digest
    assert run.name == "tiny"
    assert resolve(run) == run


def test_a_task_without_annotations_depends_on_no_table(run):
    assert resolve(replace(run, mixture=run.mixture[:1])).stores[0].annotations == ""


def test_a_model_size_by_name():
    assert with_model(recipe(), "base").model == base()
    small = with_model(recipe(steps=10_000), "debug")
    assert small.model == debug() and small.steps == small.schedule.total == 200
    refused("debug or base, not 'large'", with_model, recipe(), "large")


@pytest.mark.parametrize("batch", [1, 4, 6, 7, 48, 100])
def test_a_batch_takes_pool_and_groups_with_it(batch):
    published = recipe(batch=1024, pool=512, nce_pool=32)
    small = with_batch(published, batch)  # RunConfig checks that they divide
    assert small.batch == batch and small.pool <= 512 and small.nce_pool <= 32
    if batch % 4 == 0:
        assert small.pool // small.nce_pool >= 4  # four workers can share a pool
    refused("at least 1, not 0", with_batch, published, 0)


def test_stores_by_flag_and_by_place(tiny_store, hero_home):
    assert with_stores(recipe(), [f"synthetic={tiny_store}"]).stores == (StoreRef("synthetic", tiny_store),)
    assert with_stores(recipe(), []).stores == (StoreRef("synthetic", ""),)
    folder = hero_home / "stores" / "synthetic"
    folder.mkdir(parents=True)
    (folder / "one").symlink_to(tiny_store)
    assert with_stores(recipe(), []).stores[0].path == str(folder / "one")
    (folder / "two").symlink_to(tiny_store)
    refused("several feature sets .one, two.: choose with --store synthetic=PATH", with_stores, recipe(), [])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("/data/tv", "takes CORPUS=PATH, not '/data/tv'"),
        ("synthetic=", "takes CORPUS=PATH"),
        ("tv=/data/tv", "reads no corpus 'tv' but synthetic"),
    ],
)
def test_a_wrong_store_flag(flag, words):
    refused(words, with_stores, recipe(), [flag])


def test_a_missing_store(tmp_path):
    refused("add --store synthetic=PATH", resolve, recipe())
    refused("no manifest|not a store|no store", resolve, recipe(stores=(StoreRef("synthetic", str(tmp_path)),)))


def test_a_batch_larger_than_the_corpus(run):
    large = replace(run, batch=32, pool=32)
    refused("batch 32 is larger than the 24 examples of mlm/synthetic in split 'train': use --batch 24", resolve, large)


def test_stores_that_do_not_fit_together(run, tiny_store, tmp_path):
    other = tmp_path / "other"
    files.copy_tree(tiny_store, str(other))
    replace(Manifest.read(tiny_store), frame_dim=32).write(str(other))
    both = replace(
        run,
        mixture=(Entry(Mlm(), "synthetic"), Entry(Fom(), "tv")),
        stores=(*run.stores, StoreRef("tv", str(other))),
    )
    refused("must agree: synthetic has frame features of width 16; tv has .* 32", resolve, both)


def test_stores_of_different_encoders(tiny_store, store_made_by):
    """Equal widths are no sign of equal features; a store that does not say what made it is taken as it is."""

    def both(one: str, other: str) -> RunConfig:
        mixture = (Entry(Mlm(), "synthetic"), Entry(Fom(), "tv"))
        return recipe(mixture=mixture, stores=(StoreRef("synthetic", one), StoreRef("tv", other)))

    first = store_made_by("vit", "1" * 64)
    said = r"made by the same encoders: synthetic by vit \(111111111111\); tv by clip \(222222222222\)"
    refused(said, resolve, both(first, store_made_by("clip", "2" * 64)))
    refused("made by the same encoders", resolve, both(first, store_made_by("vit", "1" * 64, side=256)))
    resolve(both(first, store_made_by("a copy of vit", "1" * 64, version="another")))
    assert [encoder.name for encoder in resolve(both(tiny_store, first)).encoders] == ["vit"]


def test_weights_that_have_learnt_other_features(tiny_store, store_made_by):
    """A run keeps what made its features, and what starts from it inherits that where its own store does not know."""

    def on(store: str, name: str, start: str = "") -> RunConfig:
        mixture = (Entry(Mlm(), "synthetic"),)
        return recipe(mixture=mixture, stores=(StoreRef("synthetic", store),), name=name, init_from=start)

    def trained(config: RunConfig) -> RunConfig:
        run = resolve(config)
        train(run, Surroundings(write_config(run)))
        return config_io.from_json(files.read_bytes(files.join(weights_of(config.name), "config.json")).decode())

    vit, clip = store_made_by("vit", "1" * 64), store_made_by("clip", "2" * 64)
    assert [str(encoder) for encoder in trained(on(vit, "base")).encoders] == ["vit (111111111111)"]
    said = r"base/checkpoints/step_00000002 has learnt features of vit \(1{12}\), and those of .* clip \(2{12}\): build"
    refused(said, resolve, on(clip, "tuned", "base"))
    refused("has learnt features of vit", resolve, on(store_made_by("vit", "1" * 64, side=256), "tuned", "base"))
    resolve(on(store_made_by("another name", "1" * 64), "tuned", "base"))

    trained(on(tiny_store, "between", "base"))
    refused("between/checkpoints/.* has learnt features of vit", resolve, on(clip, "tuned", "between"))
    files.remove_tree(home.run_dir("base"))  # what a run began from may go, once it has a checkpoint
    assert [encoder.name for encoder in resolve(on(tiny_store, "between", "base")).encoders] == ["vit"]

    trained(on(tiny_store, "ready-made"))
    resolve(on(clip, "tuned", "ready-made"))


def write_config(run: RunConfig) -> str:
    folder = home.run_dir(run.name)
    files.write_bytes(files.join(folder, "config.json"), config_io.to_json(run).encode())
    return folder


def test_a_name_is_an_identity(run):
    assert not check_same_run(run, home.run_dir(run.name))
    folder = write_config(run)
    assert check_same_run(replace(run, steps=100), folder)  # execution fields may change
    refused(
        r"already exists with other settings: seed \(77 in the run, 1 now\)",
        check_same_run,
        replace(run, seed=1),
        folder,
    )


def test_weights_by_run_and_by_folder(run, hero_home):
    refused("neither a run with a checkpoint", weights_of, "nothing")
    refused("neither a run with a checkpoint", weights_of, str(hero_home))
    train(run, Surroundings(home.run_dir("first")))
    last = weights_of("first")
    assert last == weights_of(last) and os.path.exists(f"{last}/model.safetensors")
    begun = resolve(replace(run, name="second", init_from="first"))
    assert begun.init_digest == files.sha256_file(f"{last}/model.safetensors")
    folder = write_config(begun)
    train(replace(run, steps=3), Surroundings(home.run_dir("first")))  # the first run goes on and has other weights
    moved = resolve(begun)
    assert moved.init_digest != begun.init_digest
    assert not check_same_run(moved, folder)  # it has no result yet: other initial weights are no other experiment
    refused(r"other settings: init_digest \(.*; seed", check_same_run, replace(moved, seed=1), folder)
    files.write_bytes(files.join(folder, "metrics.jsonl"), b"")
    assert not check_same_run(moved, folder)
    files.write_bytes(files.join(folder, "metrics.jsonl"), b"{}\n")
    refused("other settings: init_digest", check_same_run, moved, folder)
    train(begun, Surroundings(folder))  # once it has a checkpoint of its own, where it began does not matter any more
    again = resolve(moved)
    assert again.init_digest == begun.init_digest and check_same_run(again, folder)


def test_a_folder_of_checkpoints_stands_for_one(run, hero_home, tmp_path, monkeypatch):
    folder = home.run_dir("first")
    train(replace(run, steps=2), Surroundings(folder))
    root = home.checkpoints_dir("first")
    for name in (folder, root, f"{root}/step_00000002"):
        assert weights_of(name) == f"{root}/step_00000002"
    files.write_json(f"{root}/best.json", {"step": 1, "score": 1.0, "metric": "x"})
    assert weights_of(folder) == weights_of(root) == weights_of("first") == f"{root}/step_00000001"
    begun = resolve(replace(run, name="second", init_from=folder))
    assert begun.init_digest == files.sha256_file(f"{root}/step_00000001/model.safetensors")
    monkeypatch.chdir(hero_home)
    for name, kept in (("first", "first"), ("runs/first", folder)):  # workers may run in another folder
        assert resolve(replace(run, name="second", init_from=name)).init_from == kept

    monkeypatch.chdir(tmp_path)
    converted = saved("first", {"x": torch.ones(1)})  # as `jobs.convert --out first` leaves it beside such a run
    assert weights_of("first") == f"{root}/step_00000001"
    assert weights_of("./first") == converted == str(tmp_path / "first" / "step_00000001")


def saved(folder: str, weights: dict[str, torch.Tensor]) -> str:
    """A checkpoint folder with these weights."""
    writer = Checkpointer(folder)
    writer.save(1, weights, {}, {})
    writer.close()
    return weights_of(files.join(folder, "step_00000001"))


def test_heads_of_one_side_only_are_told(run, tmp_path):
    other = replace(run, mixture=(Entry(Mlm(), "synthetic"), Entry(Fom(), "synthetic")), seed=1)
    source = build_module(other).state_dict()
    module = build_module(run)
    line = load_weights(module, replace(run, init_from=saved(str(tmp_path), source)))
    assert "new: heads.query; not used: heads.order" in line
    own = module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.items() if "order" not in name)


def test_a_flat_model_is_a_run_of_its_own(run):
    flat = resolve(replace(run, name="flat", model=replace(run.model, flat=True)))
    assert all(entry.task.flat for entry in flat.mixture)
    assert {"model.flat (False in the run, True now)"} <= set(differences(identity(run), identity(flat)))
    back = resolve(replace(flat, model=replace(flat.model, flat=False)))
    assert not any(entry.task.flat for entry in back.mixture)
    train(run, Surroundings(home.run_dir("tiny")))
    train(flat, Surroundings(home.run_dir("flat")))
    again = resolve(replace(flat, name="again", init_from="flat"))
    assert "hero.cross" not in load_weights(build_module(again), again).split("new:")[1]
    refused("holds a hierarchical model and this run's is flat", resolve, replace(again, init_from="tiny"))
    refused("holds a flat model and this run's is hierarchical", resolve, replace(run, name="x", init_from="flat"))
    wide = replace(flat.model, max_segment_frames=50)
    refused("max_frames 100 is more than the model's max_segment_frames 50", lambda: replace(flat, model=wide))


def test_weights_that_do_not_fit(run, tmp_path):
    module = build_module(run)
    rows = module.hero.mask.rows.weight.detach()
    narrow = replace(run, init_from=saved(str(tmp_path / "narrow"), {"hero.mask.rows.weight": rows[:, :4]}))
    refused(r"hero.mask.rows.weight has shape \(2, 4\) there and \(2, 16\) in this run", load_weights, module, narrow)
    foreign = replace(run, init_from=saved(str(tmp_path / "foreign"), {"encoder.w": rows}))
    refused(r"holds no weight of this model; its first names are \['encoder.w'\]", load_weights, module, foreign)
    for wrong in (narrow, foreign):  # before the run takes its name, from the file's head alone
        refused("has shape|holds no weight", resolve, wrong)


@pytest.mark.parametrize("content", [b"", b"x" * 40, (12).to_bytes(8, "little") + b"[1, 2, 3, 4]"])
def test_a_damaged_head_of_weights(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused("model.safetensors is damaged", shapes, str(tmp_path))
