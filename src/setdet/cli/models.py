"""`setdet models`: what can be built, and which weights there are."""

from setdet.cli.console import out, say, show_table


def models() -> None:
    """List the models that can be trained, and the weights that are in the package."""
    from setdet.models.facts import FACTS
    from setdet.weights.catalog import CATALOG

    show_table(("model", "parameters", "GFLOPs", "folded", "COCO AP", "published by"), _model_rows())
    say(
        "For 80 classes and one picture at 640×640; a multiply-add counts as two. Folded: as deployed. The APs are "
        "those of the published weights; they were not measured here."
    )
    sources = {facts.source.title: facts.source.url for facts in FACTS.values() if facts.source}
    for title, url in sources.items():
        say(f"  {title}: {url}")
    out.print()
    show_table(
        ("weights", "licence", "trained on"),
        [(entry.name, entry.licence, entry.trained_on) for entry in CATALOG.values()],
        text_columns=3,
    )


def _model_rows() -> list[tuple[str, ...]]:
    from setdet.models.facts import FACTS
    from setdet.models.variants import MODELS

    rows: list[tuple[str, ...]] = []
    for name in MODELS:
        if name not in FACTS:
            rows.append((name, *"?????"))
            continue
        facts = FACTS[name]
        rows.append(
            (
                name,
                f"{facts.parameters / 1e6:.1f} M",
                f"{facts.gflops:.1f}",
                f"{facts.gflops_folded:.1f}",
                "-" if facts.coco_ap is None else f"{facts.coco_ap:.1f}",
                "-" if facts.source is None else facts.source.title,
            )
        )
    return rows
