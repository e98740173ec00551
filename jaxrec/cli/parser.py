"""A parser of arguments whose errors are those of jaxrec."""

import argparse
from typing import NoReturn

from jaxrec.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises a ConfigError for bad arguments."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise ConfigError(message.removeprefix("argument "))
