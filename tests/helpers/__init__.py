"""Helpers of the tests. Importing them makes every call in jaxrec check its annotations."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
# before anything imports jaxrec: a shape or type that an annotation promises must be true
install_import_hook("jaxrec", "helpers.typecheck")
