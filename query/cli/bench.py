"""The workbench of ``hubhound eval``: what a measurement works with, from the options of its command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from query.cli.output import Advance, bars, data, data_json, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.index import Index
    from query.evaluate.embedding import LazyEncoder, TextEmbedder
    from query.evaluate.labelled import ImageLabels
    from query.evaluate.report import Report
    from query.evaluate.retrieval import Settings
    from query.evaluate.truth import Truth
    from query.evaluate.zoo import Query, Zoo

_DEFAULTS = {
    "r": ("5", "10", "20", "50", "100", "200"),
    "background": ("5", "20", "50", "100", "200", "500", "1000", "2000"),
    "k": ("1", "3", "10", "30", "100"),
    "templates": ("1", "2", "3", "4", "5"),
}
_SWEPT = {("templates", "templates"), ("probes_from", "probe-source")}  # what a sweep's points say themselves


class Bench:
    """What a measurement works with, from the options of the command.

    Args:
        given: The shared options.
        parent: Whose truth and progress bars are used.
    """

    def __init__(self, given: dict[str, Any], parent: Bench | None = None) -> None:
        from engine.index import Index
        from query.evaluate.embedding import LazyEncoder, parse_templates
        from query.evaluate.truth import read_truth

        self._given = given
        self.name: str = given["index_path"]
        for path in (given["out"], given["markdown"]):
            if path:
                Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
        if given["plots"]:
            from query.evaluate.plots import require_matplotlib

            require_matplotlib()
        self.index: Index = Index(index_folder(self.name))
        self.encoder: LazyEncoder = LazyEncoder(self.index, given["device"])
        self.templates = parse_templates(given["templates"], self.index)
        self.truth: Truth = parent.truth if parent else read_truth(Path(given["truth_path"]).expanduser())
        self.images: ImageLabels | None = None
        self._stack = ExitStack()
        self._bars: Callable[[str, str], Advance] | None = parent._bars if parent else None

    def __enter__(self) -> Bench:
        self._bars = self._stack.enter_context(bars())
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def beside(self, path: str) -> Bench:
        """The same measurement on another index."""
        return Bench({**self._given, "index_path": path}, self)

    def bar(self, description: str, unit: str) -> Advance:
        """A new progress bar."""
        assert self._bars is not None  # noqa: S101
        return self._bars(description, unit)

    def settings(self, tasks: tuple[str, ...], lists: int, methods: Sequence[str]) -> Settings:
        """What decides the numbers."""
        from query.evaluate.retrieval import Settings

        given, manifest = self._given, self.index.manifest
        return Settings(
            methods=tuple(methods),
            r=given["top_r"] or manifest.top_r,
            k=given["nearest"] or manifest.background.k,
            background=given["background"],
            seeds=tuple(range(given["seed"], given["seed"] + given["seeds"])),
            probes=given["probes"],
            lists=lists,
            tasks=tasks,
        )

    def load(self, *, embed_images: bool = False) -> tuple[Zoo, tuple[Query, ...]]:
        """Responses and truth, and the queries that they can answer.

        Args:
            embed_images: Whether labelled images that are no probes are to be queries; without, they only say which
                classes have a probe, and no encoder is loaded.
        """
        from query.evaluate.labelled import check_classes, read_images, read_labels, seen_classes
        from query.evaluate.queries import derive_queries, group_by_seen, read_queries
        from query.evaluate.truth import read_zoo

        path = self._given["queries_path"]
        queries = read_queries(Path(path).expanduser()) if path else derive_queries(self.truth)
        zoo = read_zoo(self.index, self.truth, self.bar("reading responses", "models"))
        unnamed = len(self.index.snapshot().models) - len(zoo.models)
        if unnamed:
            note(f"{unnamed} of {unnamed + len(zoo.models)} models are left out: the truth does not name them")
        queries = self.answerable(queries, {self.name: zoo})
        if self._given["images_path"]:
            images = Path(self._given["images_path"]).expanduser()
            if embed_images:
                advance = self.bar("embedding images", "images")
                self.images = read_images(images, self.index, lambda files: self.encoder.images(files, advance))
            else:
                self.images = read_labels(images, self.index)
            check_classes(self.images, zoo, images)
            queries = group_by_seen(queries, seen_classes(self.images))
        return zoo, queries

    @staticmethod
    def answerable(queries: tuple[Query, ...], zoos: dict[str, Zoo]) -> tuple[Query, ...]:
        """The queries with a right answer everywhere; says how many have none."""
        from query.evaluate.inputfiles import named
        from query.evaluate.queries import answerable

        kept, dropped = answerable(queries, zoos)
        if dropped:
            classes = named(list(dict.fromkeys(query.cls for query in dropped)))
            note(f"{len(dropped)} of {len(queries)} queries left out: no output is of their class ({classes})")
        return kept

    def embed(self, templates: tuple[str, ...] | None = None) -> TextEmbedder:
        """What embeds texts, with the templates of the options unless others are given."""
        from query.evaluate.embedding import TextEmbedder

        return TextEmbedder(self.index, self.encoder, templates or self.templates, self.bar("embedding texts", "texts"))

    def pool(self, queries: Sequence[Query]) -> tuple[str, ...]:
        """Names to draw a background from: none that a query or a label means."""
        from engine.calibration import imagenet21k_names

        barred = {name.casefold() for name in (*self.truth.names, *(query.text for query in queries))}
        return tuple(name for name in imagenet21k_names() if name.casefold() not in barred)

    def own_methods(self) -> tuple[str, ...]:
        """The methods that the index can be searched with, by their names in an evaluation, and the paper's."""
        from engine.distance import METHODS
        from query.evaluate.methods import DIVISIVE

        suffix = DIVISIVE if self.index.manifest.normalisation == "divisive" else ""
        return tuple(dict.fromkeys([*(f"{method}{suffix}" for method in METHODS), "probelog"]))

    def default_values(self, parameter: str) -> tuple[str, ...]:
        """What a sweep goes through if nothing is said: of the usual values those that the other options allow."""
        given, manifest = self._given, self.index.manifest
        n = given["probes"] or manifest.probes.count
        if parameter == "probes":
            least, count = given["top_r"] or manifest.top_r, manifest.probes.count
            parts = (count // 8, count // 4, count // 2, count)
            # Without any the largest is left, whose error says what does not fit.
            return tuple(str(part) for part in parts if max(2, least) <= part <= n) or (str(n),)
        values = _DEFAULTS.get(parameter, ())
        most = {"r": n, "k": given["background"] - 1}.get(parameter)
        return values if most is None else tuple(value for value in values if int(value) <= most) or (str(most),)

    def finish(self, report: Report) -> None:
        """Writes what was found everywhere it was asked for."""
        from query.evaluate.report import grids, ranking, write_markdown, write_report

        given = self._given
        about = {
            "index": self.name,
            "truth": given["truth_path"],
            "encoder": self.index.manifest.encoder.spec,
            "templates": list(self.templates),
            "probes_from": self.index.manifest.probes.source,
        }
        swept = getattr(report, "parameter", None)
        about = {key: value for key, value in about.items() if (key, swept) not in _SWEPT}
        report = report.model_copy(update={"settings": about | report.settings})
        if given["out"]:
            write_report(Path(given["out"]).expanduser(), report)
        if given["markdown"]:
            write_markdown(Path(given["markdown"]).expanduser(), report)
        if given["plots"]:
            from query.evaluate.plots import draw

            drawn = draw(report, Path(given["plots"]).expanduser())
            note(f"{len(drawn)} plots in {given['plots']}")
        if given["form"] == "json":
            data_json(report.model_dump(mode="json"))
        elif given["form"] == "quiet":
            for method in ranking(report):
                data(method)
        else:
            for part in grids(report):
                justified = [(name, "left" if i < part.names else "right") for i, name in enumerate(part.columns)]
                table(part.title, justified, part.rows)
                note(part.note)
            note(f"{report.seconds:.0f} s")
        notes = report.settings.get("notes")
        for line in notes if isinstance(notes, list) else ():
            note(str(line))
