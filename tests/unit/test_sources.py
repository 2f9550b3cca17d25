"""What a user may name, and models in local folders."""

import os
import shutil

import pytest

from engine.errors import InputError, ModelError, ModelFailedError, ModelRefusedError, Reason
from indexers.loaders import load
from indexers.sources import ModelSource, expand, fetch, revision_of
from tests.support.tiny_models import change_json, change_weights, timm_model, vit_model, write_json


def names(arguments):
    return [source.repo for source in expand([str(argument) for argument in arguments])]


def make_empty(root, *repos):
    for repo in repos:
        folder = root / repo
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")


def test_hub_ids():
    assert expand(["timm/resnet50.a1_in1k", "google/vit-base@main", "a/b@refs/pr/3"]) == [
        ModelSource("timm/resnet50.a1_in1k"),
        ModelSource("google/vit-base", "main"),
        ModelSource("a/b", "refs/pr/3"),
    ]
    assert [str(source) for source in expand(["a/b", "c/d@v1"])] == ["a/b", "c/d@v1"]
    assert expand([]) == []


@pytest.mark.parametrize(
    "argument",
    [
        "gpt2",
        "a/b/c",
        "./missing",
        "/missing/folder",
        "~/missing/folder",
        "../x",
        "a//b",
        "/b",
        "a/",
        "a/b@",
        "a/b@c@d",
        "a/b c",
        "a/b..c",
        "a/b--c",
        "a/b.git",
        "-a/b",
        "a/b@../../x",
        "https://huggingface.co/a/b",
        "",
        "a/" + "b" * 96,
        "ä/b",
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id(argument):
    with pytest.raises(InputError, match="neither a folder nor a model on the Hub") as caught:
        expand([argument])
    assert "\n" not in str(caught.value)


def test_a_folder_is_called_by_its_last_two_parts(tmp_path, monkeypatch):
    make_empty(tmp_path, "models/org/name")
    assert expand([str(tmp_path / "models/org/name")]) == [
        ModelSource("org/name", folder=tmp_path / "models" / "org" / "name")
    ]
    monkeypatch.chdir(tmp_path / "models" / "org")
    assert names(["name"]) == ["org/name"]
    assert names(["./name/"]) == ["org/name"]
    monkeypatch.chdir(tmp_path / "models" / "org" / "name")
    assert names(["."]) == ["org/name"]


def test_a_folder_comes_before_a_hub_id_of_the_same_name(tmp_path, monkeypatch):
    make_empty(tmp_path, "org/name")
    monkeypatch.chdir(tmp_path)
    assert expand(["org/name"]) == [ModelSource("org/name", folder=tmp_path / "org" / "name")]


def test_a_folder_of_folders(tmp_path):
    make_empty(tmp_path, "models/b/two", "models/a/one", "models/a/three", "models/deep/er/x/y")
    make_empty(tmp_path, "models/.cache/org/hidden", "models/a/one/org/inside")
    only_weights = tmp_path / "models" / "w" / "only"
    only_weights.mkdir(parents=True)
    (only_weights / "model.safetensors").touch()
    (tmp_path / "models" / "empty" / "folder").mkdir(parents=True)
    assert names([tmp_path / "models"]) == ["a/one", "a/three", "b/two", "x/y", "w/only"]
    assert names([tmp_path / "models" / "a"]) == ["a/one", "a/three"]


def test_folders_that_are_links(tmp_path):
    make_empty(tmp_path, "real/org/name")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names([tmp_path / "link"]) == ["org/name"]
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert names([tmp_path / "real"]) == ["org/name"]


def test_a_folder_without_models(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "README.md").write_text("nothing here")
    with pytest.raises(InputError, match=r"no model in .*config\.json"):
        expand([str(tmp_path)])


def test_a_model_at_the_root_of_the_disk_has_no_org(monkeypatch):
    monkeypatch.setattr(os, "walk", lambda root: [("/model", [], ["config.json"])])
    with pytest.raises(InputError, match="has no org"):
        expand(["/"])


def test_a_list_in_a_file(tmp_path, monkeypatch):
    make_empty(tmp_path, "local/org/name", "local/org/with#sign")
    monkeypatch.chdir(tmp_path)
    text = "\ufeff# my models\n\n a/b \nc/d@v1   # good\n#e/f\n./local/org/name\nlocal/org/with#sign\na/b\n"
    (tmp_path / "models.txt").write_text(text, encoding="utf-8")
    assert names(["@models.txt"]) == ["a/b", "c/d", "org/name", "org/with#sign"]
    assert names(["x/y", "@models.txt", "a/b"]) == ["x/y", "a/b", "c/d", "org/name", "org/with#sign"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "names no models"),
        ("# only\n\n", "names no models"),
        ("a/b\nnonsense\n", "list.txt, line 2: 'nonsense' is neither"),
        ("@other.txt", "line 1: a list of models cannot name another"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        expand([f"@{tmp_path / 'list.txt'}"])


def test_lists_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"missing\.txt cannot be read: No such file"):
        expand([f"@{tmp_path / 'missing.txt'}"])
    with pytest.raises(InputError, match="Is a directory"):
        expand([f"@{tmp_path}"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8 text"):
        expand([f"@{tmp_path / 'binary'}"])
    with pytest.raises(InputError, match=r"write @.*binary"):
        expand([str(tmp_path / "binary")])


def test_each_model_once(tmp_path):
    make_empty(tmp_path, "models/org/name")
    (tmp_path / "again").symlink_to(tmp_path / "models")
    folder = tmp_path / "models" / "org" / "name"
    assert names([folder, tmp_path / "models", tmp_path / "again", "a/b", "a/b"]) == ["org/name", "a/b"]


def test_two_models_of_the_same_name(tmp_path):
    make_empty(tmp_path, "one/org/name", "two/org/name")
    for arguments in (
        [tmp_path / "one", tmp_path / "two"],
        [tmp_path],
        ["org/name", tmp_path / "one"],
        ["org/name@v1", "org/name@v2"],
    ):
        with pytest.raises(InputError, match="both called org/name"):
            expand([str(argument) for argument in arguments])


@pytest.fixture
def local(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    return ModelSource("org/vit", folder=folder)


def test_the_revision_of_a_folder_follows_what_matters(local, tmp_path):
    folder = local.folder
    revision, metadata = revision_of(local)
    assert len(revision) == 40
    assert set(revision) <= set("0123456789abcdef")
    assert (metadata.licence, metadata.tags, metadata.downloads) == ("apache-2.0", ("tiny",), None)
    seen = {revision}
    (folder / "notes.txt").write_text("of no importance")
    (folder / "pytorch_model.bin").write_text("not used where there are safetensors")
    os.utime(folder / "config.json", (0, 0))
    assert revision_of(local)[0] == revision
    copied = ModelSource("else/where", folder=shutil.copytree(folder, tmp_path / "else" / "where"))
    assert revision_of(copied)[0] == revision
    for name in ("config.json", "preprocessor_config.json", "README.md", "model.safetensors"):
        with (folder / name).open("ab") as stream:
            stream.write(b" ")
        changed = revision_of(local)[0]
        assert changed not in seen
        seen.add(changed)
    (folder / "preprocessor_config.json").unlink()
    assert revision_of(local)[0] not in seen


def test_the_revision_of_a_folder_that_cannot_be_loaded(tmp_path):
    folder = vit_model(tmp_path / "org" / "vit")
    (folder / "model.safetensors").unlink()
    source = ModelSource("org/vit", folder=folder)
    revision, _ = revision_of(source)
    with pytest.raises(ModelFailedError) as caught:
        fetch(source, revision)
    assert (caught.value.reason, caught.value.revision) == (Reason.NO_WEIGHTS, revision)


def test_shards_count_too(tmp_path):
    folder = timm_model(tmp_path / "org" / "name")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "one.safetensors"}})
    source = ModelSource("org/name", folder=folder)
    before = revision_of(source)[0]
    change_json(folder / "model.safetensors.index.json", metadata={})
    between = revision_of(source)[0]
    with (folder / "one.safetensors").open("ab") as stream:
        stream.write(b" ")
    assert len({before, between, revision_of(source)[0]}) == 3


def test_fetching_a_folder_takes_it_where_it_is(local):
    revision, _ = revision_of(local)
    repository = fetch(local, revision)
    assert (repository.repo, repository.revision, repository.folder) == ("org/vit", revision, local.folder)
    assert repository.metadata.licence == "apache-2.0"
    assert load(repository).licence == "apache-2.0"


def refused(source, reason, *parts, **how):
    with pytest.raises(ModelError) as caught:
        fetch(source, "f" * 40, **how)
    assert caught.value.reason is reason, caught.value
    assert caught.value.revision == "f" * 40
    for part in parts:
        assert part in caught.value.detail
    return caught.value


def test_folders_that_are_not_worth_loading(local):
    folder = local.folder
    assert isinstance(refused(local, Reason.TOO_LARGE, "--max-size", max_size_bytes=1000), ModelRefusedError)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(local, Reason.PICKLE_ONLY, "--allow-pickle")
    assert fetch(local, "f" * 40, allow_pickle=True).folder == folder
    change_json(folder / "config.json", architectures=["ViTModel"])
    refused(local, Reason.NOT_A_CLASSIFIER, "ViTModel")
    (folder / "config.json").write_text("{")
    refused(local, Reason.BROKEN_CONFIG)
    shutil.rmtree(folder)
    refused(local, Reason.MISSING)
    with pytest.raises(ModelFailedError) as caught:
        revision_of(local)
    assert caught.value.reason is Reason.MISSING


@pytest.mark.parametrize(
    "name, reason",
    [
        ("model.safetensors", Reason.BROKEN_WEIGHTS),
        ("config.json", Reason.BROKEN_CONFIG),
        ("preprocessor_config.json", Reason.BROKEN_CONFIG),
    ],
)
def test_links_out_of_a_folder_are_not_followed(local, tmp_path, name, reason):
    file = local.folder / name
    outside = tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    refused(local, reason, f"{name} is a link out of")
    linked = revision_of(local)[0]
    with outside.open("ab") as stream:
        stream.write(b" ")
    assert revision_of(local)[0] == linked
    file.unlink()
    (local.folder / "inside").write_bytes(outside.read_bytes()[:-1])
    file.symlink_to("inside")
    assert fetch(local, "f" * 40).folder == local.folder


def test_a_card_that_is_a_link_is_not_read(local, tmp_path):
    card = local.folder / "README.md"
    card.rename(tmp_path / "card")
    card.symlink_to(tmp_path / "card")
    assert fetch(local, "f" * 40).metadata.licence is None


@pytest.mark.parametrize(
    "card, licence, tags, library",
    [
        ("---\nlicense: mit\ntags: [a, 3, b]\nlibrary_name: timm\n---\n", "mit", ("a", "b"), "timm"),
        ("---\nlicense:\n- mit\n- other\n---\n", "mit, other", (), None),
        ("---\nlicense: {}\ntags: text\nlibrary_name: [x]\n---\n", None, (), None),
        ("---\n: : :\n---\n", None, (), None),
        ("no header", None, (), None),
        ("", None, (), None),
    ],
)
def test_what_cards_state(local, card, licence, tags, library):
    (local.folder / "README.md").write_text(card)
    metadata = revision_of(local)[1]
    assert (metadata.licence, metadata.tags, metadata.library) == (licence, tags, library)


def test_weights_changed_in_place_are_another_revision(local):
    before = revision_of(local)[0]
    change_weights(local.folder, classifier__bias=load(fetch(local, before)).module.classifier.bias + 1)
    assert revision_of(local)[0] != before
