"""The options of private training, and those that it refuses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxrec.config.ranges import Amount, Bounded, Positive, Quantile
from jaxrec.errors import ConfigError

if TYPE_CHECKING:
    from jaxrec.config.options import Config


@dataclass(frozen=True)
class PrivacyConfig(Bounded, section="train.privacy"):
    """User-level differential privacy of the model."""

    epsilon: Amount = 0.0
    """Privacy budget of every user (0: no privacy): training adds as much noise as is needed to
    stay within it after `train.epochs` epochs. `train.batch_size` is then the expected number of
    users in a step."""
    delta: Quantile = 1e-5
    """Probability with which the budget may be exceeded. Choose less than 1 / number of users."""
    clip: Positive = 1.0
    """Largest norm of what one user adds to the sum of the gradients of a step."""


def refuse_unprotected(config: "Config") -> None:
    """Raise a ConfigError for an option by which events reach the model without noise."""
    data, train = config.data, config.train
    filtered = (
        "leaves out items by what users did, but the list of items is public; leave the option "
        "out, and filter items by what the shop knows of them"
    )
    reasons = {
        "data.shops": (
            data.shops,
            "joins several shops, but one budget covers the users of one; train each by itself",
        ),
        "data.min_user_events": (data.min_user_events, filtered),
        "data.min_item_events": (data.min_item_events, filtered),
        "data.drop_repeats": (data.drop_repeats, filtered),
        "split.scheme": (
            config.split.scheme != "leave_one_out",
            "cuts every history at a moment that the events of all users decide; choose "
            "leave_one_out",
        ),
        "model.min_events_for_id": (
            config.model.min_events_for_id > 1,
            "tells which items have few events; leave it out",
        ),
        "train.accumulate": (
            train.accumulate > 1,
            "sums gradients that are not those of one user; leave it out, as a private step reads "
            "a few users at a time anyway",
        ),
        "train.loss": (
            train.loss != "full_softmax",
            "draws candidates from the events of all users of a step; choose full_softmax",
        ),
        "text.mode": (
            config.text.mode != "frozen",
            "trains the text encoder, whose gradients are not computed per user; choose frozen",
        ),
        "train.init": (
            train.init,
            "takes parameters that may have learned from the same users without noise; leave it "
            "out",
        ),
        "warm_start.base (--from)": (
            config.warm_start.base,
            "goes on from a model that the same users have shaped, and the budget covers one "
            "training; train from scratch",
        ),
        "train.refit": (
            train.refit != "none",
            "trains a second time on the same users, and the budget covers one training; choose "
            "none",
        ),
        "forecast.steps": (
            config.forecast.steps,
            "trains a decoder without noise; leave it out",
        ),
    }
    for option, (is_set, reason) in reasons.items():
        if is_set:
            raise ConfigError(f"train.privacy does not go with {option}, which {reason}")
