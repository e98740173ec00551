"""Score users in batches: `python serve.py --help`; live: `python serve.py RUN --http :8080`."""

from jaxrec.cli.scripts import serve

if __name__ == "__main__":
    serve()
