"""Score users in batches: `python serve.py --help`."""

from jaxrec.cli import serve

if __name__ == "__main__":
    serve()
