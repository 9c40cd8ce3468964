"""`setdet models`: what can be built, and which weights there are."""

from setdet.cli.console import out, say, show_table


def models() -> None:
    """List the models that can be trained, and the weights that are in the package."""
    from setdet.models.variants import MODELS
    from setdet.weights.catalog import CATALOG

    counts = _parameter_counts()
    show_table(
        ("model", "parameters", "backbone", "width", "decoder layers"),
        [
            (
                name,
                f"{counts[name] / 1e6:.1f} M" if counts else "?",
                model.backbone.kind,
                model.encoder.width,
                model.decoder.layers,
            )
            for name, model in MODELS.items()
        ],
    )
    if not counts:
        say("Parameters are counted where PyTorch is installed: pip install 'setdet[train]'")
    out.print()
    show_table(
        ("weights", "licence", "trained on"),
        [(entry.name, entry.licence, entry.trained_on) for entry in CATALOG.values()],
        text_columns=3,
    )


def _parameter_counts() -> dict[str, int]:
    """Parameters of every model for the 80 classes of COCO; empty without PyTorch."""
    try:
        import torch
    except ModuleNotFoundError:
        return {}
    from setdet.models.rtdetr import build_model
    from setdet.models.variants import MODELS

    with torch.device("meta"):  # shapes alone: no memory is filled
        return {name: sum(part.numel() for part in build_model(name).parameters()) for name in MODELS}
