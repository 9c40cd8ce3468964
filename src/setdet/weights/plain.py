"""Which of our configurations is an RT-DETR as others know it. No torch."""

from setdet.config import Config
from setdet.models.variants import DecoderConfig, EncoderConfig, ModelConfig

_KNOWN = {
    EncoderConfig: {"width", "feedforward", "heads", "aifi_layers", "expansion", "fusion_blocks"},
    DecoderConfig: {
        *("width", "feedforward", "heads", "layers", "eval_layers", "points", "sampling", "queries"),
        "training_groups",  # is of the training alone
    },
    ModelConfig: {"name", "num_classes", "backbone", "encoder", "decoder"},
}


def extras(config: ModelConfig) -> list[str]:
    """What of the configuration only setdet has, as "encoder.variant=B"; empty for an RT-DETR or RT-DETRv2."""
    return [
        *_changed(config, ""),
        *_changed(config.encoder, "encoder."),
        *_changed(config.decoder, "decoder."),
    ]


def _changed(section: Config, prefix: str) -> list[str]:
    known = _KNOWN[type(section)]
    fields = type(section).model_fields
    return [
        f"{prefix}{name}={getattr(section, name)}"
        for name, field in fields.items()
        if name not in known and getattr(section, name) != field.default
    ]
