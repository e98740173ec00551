"""Train a recommender: `python train.py --help`."""

from jaxrec.cli.scripts import train

if __name__ == "__main__":
    train()
