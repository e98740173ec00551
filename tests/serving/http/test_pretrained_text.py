"""Words steer lists of a model whose text encoder was trained further."""

import pytest
from fastapi.testclient import TestClient
from helpers.paths import GOLDEN
from helpers.servers import payload, wait_until_ready
from helpers.training import config

from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions
from jaxrec.training.fit import fit
from jaxrec.training.pretraining.loop import pretrain
from jaxrec.training.pretraining.options import PretrainOptions

TEXT = {"model.experts": ["text+graph"], "text.pretrained": str(GOLDEN / "tiny_bert")}


@pytest.fixture(scope="module")
def encoder(known_shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder") / "out"
    pretrain(config(**TEXT), PretrainOptions(learning_rate=1e-3), out, tables=known_shop)
    return out


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_words_steer_after_further_training_of_the_text_encoder(
    encoder, mode, known_shop, tmp_path
):
    text = {**TEXT, "text.pretrained": str(encoder), "text.mode": mode}
    run = tmp_path / "run"
    fit(config(**text, **{"train.epochs": 1}), run, tables=known_shop)
    options = LiveOptions(store=str(tmp_path / "store.db"), list_timeout=60)
    with TestClient(create_app(run, options)) as client:
        wait_until_ready(client)
        client.post("/events", json=[payload("bob", n) for n in range(3)])
        words = "brand x item f. brand1. Beauty > Shelf 0"
        query = {"user_id": "bob", "words": words, "strength": 1}
        steered = client.post("/query", json=query).json()["items"]
        plain = client.get("/users/bob/recommendations").json()["items"]
    assert sum(i["id"][1] == "1" for i in steered) > sum(i["id"][1] == "1" for i in plain)
