"""What does it cost to ask over HTTP, and how many can ask at once?

    python benchmarks/http.py [--small] [--realhub FOLDER] [--from INDEX] [--work FOLDER] [--seconds 10]

The real command ``hubhound serve`` runs on loopback over an index of about 85,000 outputs, derived from the six
classifiers of ``--realhub`` (``hubhound eval make-hub``), with the real text encoder that lies there. It runs without
a limit of requests a minute and without naming outputs, which would embed 19,000 phrases beside the measurement.
``--from`` is an index of these models that exists already; ``--work`` keeps what is made for the next run. ``--small``
takes 5,000 synthetic outputs and a small untrained text tower instead: the same code, but no figure to quote.

*overhead*: the median request of one client for concepts that are in memory, less the median of ``Searcher.search`` for
the same concepts, called in turns with it. The library has the concepts in memory, too, as the service calls it; how
long it takes with the memory on disk that the command line has is printed beside it.

*clients*: 1, 8 and 64 at once, each with one request under way on a kept connection, from one other process
(``http_load.py``): cached are 200 concepts in turn, new are phrases that nobody has asked before, so that every request
needs the encoder. What the generator and the connection cost by themselves is measured on ``/healthz``. Samples of the
answers are compared with those of ``Searcher``.

*switches*: eight clients ask for 20 s while another process adds a model to the index, takes it away again, and so on;
``failed`` counts requests without a right answer, there and everywhere else.

*start*: from the command to the first 200 of ``/readyz``, after index, encoder and Python's libraries were put out of
the page cache; with and without the encoder. *drain*: from SIGTERM to the end, eight clients asking meanwhile.

Prints for people first and, as its last line, one JSON object.
"""

from __future__ import annotations

import sys


def python_http() -> None:
    """Puts Python's own package ``http`` in the place of this module.

    A program has its folder first on its path, so every other benchmark here, or a library that it uses, that imports
    ``http`` finds this file.
    """
    import importlib.util
    import os

    folder = os.path.join(os.path.dirname(os.__file__), "http")
    spec = importlib.util.spec_from_file_location(
        "http", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["http"] = package  # what the importer hands out when this file has run
    spec.loader.exec_module(package)


if __name__ == "http":
    python_http()
elif __name__ == "__main__":
    from os.path import abspath, dirname

    here = dirname(abspath(__file__))
    sys.path[:] = [dirname(here), *(path for path in sys.path if abspath(path) != here)]
    from benchmarks.http_runs import main

    main(__doc__)
