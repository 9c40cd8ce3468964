"""`setdet models`: what can be built, and which weights there are."""

from setdet.cli.console import out, say, show_table


def models() -> None:
    """List the models that can be trained, and the weights that can be asked for by name."""
    from setdet.models.facts import FACTS
    from setdet.weights.catalog import CATALOG

    show_table(
        ("model", "parameters", "GFLOPs", "folded", "COCO AP", "published by"),
        [
            (
                name,
                f"{facts.parameters / 1e6:.1f} M",
                f"{facts.gflops:.1f}",
                f"{facts.gflops_folded:.1f}",
                _shown(facts.coco_ap),
                "–" if facts.source is None else facts.source.title,
            )
            for name, facts in FACTS.items()
        ],
    )
    say(
        "For 80 classes and one picture at 640×640; a multiply-add counts as two. Folded: as deployed. The APs are "
        "those of the published weights; they were not measured here."
    )
    sources = {facts.source.title: facts.source.url for facts in FACTS.values() if facts.source}
    for title, url in sources.items():
        say(f"  {title}: {url}")
    out.print()
    show_table(
        ("weights", "COCO AP", "where", "licence", "trained on"),
        [
            (
                entry.name,
                _shown(entry.coco_ap),
                "in the package" if entry.url is None else "downloaded on first use",
                entry.licence,
                entry.trained_on,
            )
            for entry in CATALOG.values()
        ],
        text_columns=5,
    )


def _shown(ap: float | None) -> str:
    return "–" if ap is None else f"{ap:.1f}"
