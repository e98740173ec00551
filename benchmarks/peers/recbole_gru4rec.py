"""GRU4Rec of RecBole: every prefix of a history is a row; full softmax."""

import logging
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from protocol import (
    Histories,
    Options,
    Reporter,
    best_unseen,
    ndcg,
    padded,
    read_histories,
    read_options,
    timed,
)
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model


def prepare(options: Options, histories: Histories, folder: str):
    """RecBole's model, training batches and data set, from a file in RecBole's format."""
    path = Path(folder, "shop")
    path.mkdir()
    with (path / "shop.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(len(histories.offsets) - 1):
            events = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
            for position, item in enumerate(events):
                file.write(f"{user}\t{item}\t{position}\n")
    config = Config(
        model="GRU4Rec",
        dataset="shop",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "embedding_size": options.hidden_size,
            "hidden_size": options.hidden_size,
            "num_layers": options.num_layers,
            "dropout_prob": options.dropout,
            "MAX_ITEM_LIST_LENGTH": options.history,
            "train_batch_size": 2048,
            "train_neg_sample_args": None,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "use_gpu": False,
            "show_progress": False,
            "checkpoint_dir": folder,
        },
    )
    dataset = create_dataset(config)
    batches, _, _ = data_preparation(config, dataset)
    model = get_model(config["model"])(config, batches.dataset).to(config["device"])
    return model, batches, dataset


def top_items(
    model, dataset, options: Options, histories: Histories
) -> tuple[np.ndarray, np.ndarray]:
    """The ten best unseen items and the target of every user, both in RecBole's numbering."""
    number = dataset.field2token_id["item_id"]
    to_recbole = np.zeros(histories.num_items + 1, np.int64)
    for token, index in number.items():
        if token.isdigit():
            to_recbole[int(token)] = index
    seen = [to_recbole[items] for items in histories.train()]
    rows, ranked = padded(seen, options.history), []
    lengths = np.minimum([len(items) for items in seen], options.history)
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(seen), 256):
            part = slice(begin, begin + 256)
            vectors = model(torch.as_tensor(rows[part]).long(), torch.as_tensor(lengths[part]))
            scores = (vectors @ model.item_embedding.weight.T).numpy()
            ranked.append(best_unseen(scores, seen[part]))
    model.train()
    return np.concatenate(ranked), to_recbole[histories.validation_targets()]


def main() -> None:
    """Measure training time, ranking time and NDCG@10 of RecBole, epoch by epoch."""
    logging.disable(logging.CRITICAL)
    options = read_options()
    histories = read_histories(options)
    with TemporaryDirectory() as folder:
        model, batches, dataset = prepare(options, histories, folder)
    optimizer, reporter = torch.optim.Adam(model.parameters(), lr=1e-3), Reporter(options)

    def epoch() -> int:
        targets = 0
        for rows in islice(batches, options.batches or None):
            optimizer.zero_grad()
            model.calculate_loss(rows).backward()
            optimizer.step()
            targets += len(rows)
        return targets

    while reporter.wants_more():
        targets, seconds = timed(epoch)
        (ranked, items_to_find), ranking = timed(top_items, model, dataset, options, histories)
        score = ndcg(ranked, items_to_find)
        reporter.report(seconds, targets, targets * options.history, score, ranking)


if __name__ == "__main__":
    main()
