"""`jaxrec embed` with small images and a tiny encoder."""

import json
import sys

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper
from PIL import Image

from jaxrec.cli import main
from jaxrec.inference.image_encoder import ImageEncoder

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_encoder(path, size=4, batch="N", outputs=("vector",), kind=TensorProto.FLOAT):
    """The mean of each channel."""
    given = helper.make_tensor_value_info("pixels", kind, [batch, 3, size, size])
    shapes = {"map": [batch, 3, size, size], "wide": [batch, 3]}
    made = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name, [batch, 3]))
        for name in outputs
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    nodes = [helper.make_node("Cast", ["pixels"], ["map"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["map", "axes"], ["vector"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["vector", "vector"], ["wide"]))
    graph = helper.make_graph(nodes, "encoder", [given], made, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Three images, one of them broken, of four items."""
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    Image.new("RGB", (8, 6), COLOURS["red"]).save(images / "a.b.png")
    Image.new("RGB", (6, 8), COLOURS["blue"]).save(images / "more" / "c.webp", lossless=True)
    (images / "d.jpg").write_bytes(b"no image")
    items = pl.DataFrame(
        {
            "item_id": ["a.b", "x", "more/c", "d"],
            "title": ["A", "X", "C", "D"],
            "photo": ["a.b.png", None, "more/c.webp", "gone.jpg"],
        }
    )
    items.write_csv(tmp_path / "items.csv")
    write_encoder(tmp_path / "model.onnx")
    return tmp_path


def embed(shop, *arguments, out="out/items.parquet"):
    main(
        [
            *("embed", "--data", str(shop / "items.csv"), "--images", str(shop / "images")),
            *("--model", str(shop / "model.onnx"), "--out", str(shop / out)),
            *map(str, arguments),
        ]
    )
    return pl.read_parquet(shop / out)


def scale(value, mean, std):
    return [(v / 255 - m) / s for v, m, s in zip(value, mean, std, strict=True)]


def test_images_become_a_column_of_vectors(shop, capsys):
    items = embed(shop)
    assert items.columns == ["item_id", "title", "photo", "image_vector"]
    assert items["image_vector"].dtype == pl.List(pl.Float32)
    red, missing, blue, broken = items["image_vector"]
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_allclose(red, scale(COLOURS["red"], *imagenet), rtol=1e-5)
    np.testing.assert_allclose(blue, scale(COLOURS["blue"], *imagenet), rtol=1e-5)
    assert missing is None and broken is None
    streams = capsys.readouterr()
    assert "d.jpg: is no image that can be read" in streams.err
    assert "2 of 4 items have a vector of 3 numbers" in streams.out
    assert "(1 without an image or with several, 1 with one that cannot be read)" in streams.out


def test_images_in_subdirectories_are_found_by_a_name_that_only_they_have(shop, capsys):
    images = shop / "images"
    for folder in ("left", "right"):
        (images / folder).mkdir()
        Image.new("RGB", (8, 8), COLOURS["green"]).save(images / folder / "x.png")
    Image.new("RGB", (8, 8), COLOURS["green"]).save(images / "left" / "a.b.jpg")
    items = pl.DataFrame({"item_id": ["a.b", "x", "c", "left/x"]})
    items.write_csv(shop / "items.csv")
    red, several, blue, green = embed(shop)["image_vector"]
    assert red[0] > red[1] and blue[2] > blue[1]  # the relative path comes first
    assert several is None and green[1] > green[0]
    shown = capsys.readouterr().err
    assert "item 'x' gets no vector, because it could have" in shown
    assert str(images / "left" / "x.png") in shown and str(images / "right" / "x.png") in shown
    assert "'a.b'" not in shown


def test_links_are_followed_once_and_accents_may_be_characters_of_their_own(shop):
    images = shop / "images"
    (shop / "elsewhere").mkdir()
    (images / "shoes").symlink_to(shop / "elsewhere")
    (shop / "elsewhere" / "again").symlink_to(images)
    (images / "folder.jpg").mkdir()
    for path in (shop / "elsewhere" / "x.png", images / "cafe\u0301.png"):
        Image.new("RGB", (8, 8), COLOURS["green"]).save(path)
    pl.DataFrame({"item_id": ["shoes/x", "x", "caf\u00e9", "folder"]}).write_csv(shop / "items.csv")
    *found, missing = embed(shop)["image_vector"]
    assert all(vector[1] > vector[0] for vector in found) and missing is None


def test_a_data_set_gives_its_items_table(shop, capsys):
    data = shop / "data"
    data.mkdir()
    pl.DataFrame({"user_id": ["u"], "item_id": ["d"], "timestamp": [1]}).write_csv(
        data / "events.csv"
    )
    with pytest.raises(SystemExit):
        embed(shop, "--data", data)
    assert "it has no items table" in capsys.readouterr().err
    (shop / "items.csv").rename(data / "items.csv")
    assert embed(shop, "--data", data)["image_vector"].null_count() == 2


def test_paths_in_a_column_and_the_preprocessing_beside_the_model(shop):
    config = {
        **{"size": {"shortest_edge": 6}, "crop_size": {"height": 4, "width": 4}},
        **{"do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    (shop / "preprocessor_config.json").write_text(json.dumps(config))
    items = embed(shop, "--image-column", "photo", "--column", "photo_vector")
    red, missing, blue, gone = items["photo_vector"]
    assert red.to_list() == [1, -1, -1] and blue.to_list() == [-1, -1, 1]
    assert missing is None and gone is None


def test_the_middle_of_an_image_is_cut_out_and_transparent_becomes_white(shop):
    image = Image.new("RGBA", (12, 4), (0, 0, 0, 0))
    image.paste(COLOURS["green"], (0, 0, 4, 4))
    image.save(shop / "images" / "x.png")
    (shop / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 4}, "resample": 0}')
    vectors = embed(shop)["image_vector"]
    white = scale((255, 255, 255), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    np.testing.assert_allclose(vectors[1], white, rtol=1e-5)


def test_a_command_that_was_stopped_encodes_the_rest_alone(shop, monkeypatch):
    encode, sizes = ImageEncoder.encode, []

    def counted(self, images):
        sizes.append(len(images))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(ImageEncoder, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        embed(shop, "--batch-size", 1)
    assert not (shop / "out").exists()
    (shop / "images" / "a.b.png").rename(shop / "images" / "x.png")  # the content decides
    assert embed(shop)["image_vector"].null_count() == 2
    assert sizes == [1, 1, 1]
    write_encoder(shop / "model.onnx", size=2)
    embed(shop)
    assert sizes == [1, 1, 1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 3},
        {"size": "any"},
        {"outputs": ("map", "vector")},
        {"kind": TensorProto.FLOAT16},
    ],
    ids=str,
)
def test_encoders_of_other_shapes(shop, change):
    write_encoder(shop / "model.onnx", **change)
    np.testing.assert_allclose(embed(shop)["image_vector"][0][0], 2.2489, rtol=1e-3)


def test_pixels_of_an_encoder_that_takes_bytes(shop):
    write_encoder(shop / "model.onnx", kind=TensorProto.UINT8)
    assert embed(shop)["image_vector"][0].to_list() == [255, 0, 0]


def test_one_output_can_be_named_and_a_directory_holds_the_model(shop):
    (shop / "encoder" / "onnx").mkdir(parents=True)
    write_encoder(shop / "encoder" / "onnx" / "model.onnx", outputs=("vector", "wide"))
    (shop / "encoder" / "preprocessor_config.json").write_text('{"size": 4, "do_normalize": false}')
    items = embed(shop, "--model", shop / "encoder", "--output", "wide")
    assert items["image_vector"][0].to_list() == [1, 0, 0]


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda shop: (shop / "model.onnx").unlink(), (), "name one ONNX file; there is none"),
        (lambda shop: (shop / "model.onnx").write_text("no"), (), "model.onnx:"),
        (
            lambda shop: write_encoder(shop / "model.onnx", outputs=("map",)),
            (),
            "no output with one vector",
        ),
        (lambda shop: None, ("--output", "wide"), "has no output 'wide'; it has vector"),
        (lambda shop: None, ("--image-column", "pic"), "no column 'pic'; it has item_id, title"),
        (lambda shop: (shop / "images").rename(shop / "moved"), (), "no such directory"),
        (
            lambda shop: (shop / "preprocessor_config.json").write_text('{"size": 8}'),
            (),
            "makes images of 8 x 8, but model.onnx takes 4 x 4",
        ),
        (
            lambda shop: (shop / "preprocessor_config.json").write_text(
                '{"size": 4, "resample": 9}'
            ),
            (),
            "is no preprocessing of images (9 is not a valid Resampling)",
        ),
        (
            lambda shop: (shop / "preprocessor_config.json").write_text('{"image_std": [0, 0, 0]}'),
            (),
            "makes images of 224 x 224",
        ),
        (
            lambda shop: (shop / "preprocessor_config.json").write_text(
                '{"size": 4, "image_mean": [1e999, 0, 0]}'
            ),
            (),
            "holds NaN or infinite numbers",
        ),
        (lambda shop: None, ("--out", "items.csv"), "ending in .parquet"),
        (lambda shop: None, ("--column", "item_id"), "item_id holds the ids"),
        (lambda shop: None, ("--image-column", "title"), "no item has an image there"),
    ],
)
def test_what_cannot_be_used_is_said(shop, capsys, prepare, arguments, message):
    prepare(shop)
    with pytest.raises(SystemExit) as stop:
        embed(shop, *arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_library_is_named_with_the_extra(shop, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit):
        embed(shop)
    assert "pip install 'jaxrec[images]'" in capsys.readouterr().err


def test_a_damaged_cache_is_named(shop, capsys):
    embed(shop)
    [cache] = (shop / "cache" / "images").glob("*.db")
    cache.write_bytes(b"no database" * 100)
    with pytest.raises(SystemExit):
        embed(shop)
    assert f"{cache.name}: file is not a database; remove the file" in capsys.readouterr().err
