"""Helpers of the tests. Importing them makes every call in jaxrec check its annotations."""

import sys
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook


def typecheck(function: Callable) -> Callable:
    """beartype, for which an int is a float, as for mypy.

    Dataclasses that JAX rebuilds are not checked, as it fills pytrees with shapes, specs and None.
    """
    check = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)

    def check_init(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(3)  # behind two frames of jaxtyping
        return None if caller.f_globals["__name__"].startswith("jax.") else check(*args, **kwargs)

    return check_init if function.__name__ == "__init__" else check


# before anything imports jaxrec: a shape or type that an annotation promises must be true
install_import_hook("jaxrec", "helpers.typecheck")
