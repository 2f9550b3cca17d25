"""Does search by several example images find more than by one? Superclasses, so that one class has many images.

    python benchmarks/superclasses.py --index INDEX --truth FILE --images CSV

The thousand ImageNet classes are taken together into groups that are neighbours in their order (snakes are 52 to 68);
an output is right if its class is in the group. FILE has ``imagenet_class``, CSV ``file`` and ``class_index``. Half of
the probes are held out; the queries are means of 1, 5 or 10 held-out photographs of one group, of different classes.
Runs ``hubhound eval retrieval`` on the two files that it writes.

Prints its tables and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

from query.cli.main import run

GROUPS = {
    "fish": ((0, 6), (389, 397)),
    "bird": ((7, 24), (80, 100), (127, 146)),
    "turtle": ((33, 37),),
    "lizard": ((38, 48),),
    "snake": ((52, 68),),
    "spider": ((72, 77),),
    "dog": ((151, 268),),
    "cat": ((281, 285),),
    "beetle": ((300, 307),),
    "butterfly": ((321, 326),),
    "hoofed animal": ((339, 355),),
    "monkey": ((365, 384),),
    "vegetable": ((936, 946),),
    "fruit": ((948, 957),),
    "mushroom": ((991, 997),),
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("index", "truth", "images"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    group_of = {i: name for name, spans in GROUPS.items() for low, high in spans for i in range(low, high + 1)}
    labels = json.loads(options.truth.read_text(encoding="utf-8"))
    truth = {
        repo: [
            {"index": entry["index"], "label": entry["label"], "class": group_of.get(entry["imagenet_class"])}
            for entry in entries
        ]
        for repo, entries in labels.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
        queries = [{"text": name, "class": name} for name in GROUPS]
        (place / "queries.json").write_text(json.dumps(queries), encoding="utf-8")
        with (
            options.images.open(newline="", encoding="utf-8") as source,
            (place / "images.csv").open("w", newline="", encoding="utf-8") as target,
        ):
            writer = csv.writer(target)
            writer.writerow(["file", "class"])
            for row in csv.DictReader(source):
                name = group_of.get(int(row["class_index"]))
                if name:
                    writer.writerow([(options.images.parent / row["file"]).resolve(), name])
        status = run(
            [
                *("eval", "retrieval", "--index", str(options.index), "--truth", str(place / "truth.json")),
                *("--queries", str(place / "queries.json"), "--images", str(place / "images.csv")),
                *("--tasks", "output,images", "--seeds", "5", "--out", str(place / "figures.json")),
                *("--methods", "whitened+divisive,dual,probelog,all-probes,soft-wpmi,cosine"),
            ]
        )
        if status:
            sys.exit(status)
        figures = json.loads((place / "figures.json").read_text(encoding="utf-8"))
    print(json.dumps({table["task"]: table["rows"] for table in figures["tables"]}))


if __name__ == "__main__":
    main()
