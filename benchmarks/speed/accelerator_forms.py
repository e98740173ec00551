"""The forms of the model that `accelerator.py` compares."""

from collections.abc import Callable

import jax

from jaxrec.models.forms import Forms, chosen_forms, traced_with
from jaxrec.sharding import on_mesh, single_device_mesh

NAMES = {
    "experts_as_one": ("experts apart", "experts as one"),
    "products_behind_scan": ("products in the scan", "products behind the scan"),
    "memory_by_products": ("scan of the item memory", "products for the item memory"),
    "lstm_kernel": ("plain scan", "kernel"),
}
"""What a row says of a form without and with each field."""


def variants(*fields: str) -> dict[str, Forms]:
    """The forms of this platform, "", and those that differ from them in one of the fields."""
    own = chosen_forms()
    result = {"": own}
    for field in fields:
        value = not getattr(own, field)
        if field == "lstm_kernel" and value and jax.default_backend() == "gpu":
            continue  # the kernel is for TPUs; a CPU interprets it
        result[f", {NAMES[field][value]}"] = own._replace(**{field: value})
    return result


def in_form(form: Forms, function: Callable) -> Callable:
    """The function, to be traced in a form and for one device."""

    def traced(*arguments):
        with on_mesh(single_device_mesh()), traced_with(form):
            return function(*arguments)

    return traced
