"""A card as a page for people: Markdown, which `models show` prints and a repository's pages display."""

from __future__ import annotations

from trainer.card import Card, Score


def card_markdown(card: Card) -> str:
    """The text of a NAME.card.md."""
    told, measured = card.told, card.measured
    speed, size = measured.speed, measured.size
    height, width = card.image_size
    zeros = "not counted" if size.zero_weights is None else f"{size.zero_weights:.1%}"
    lines = [
        f"# {card.name}",
        "",
        f"Finds {', '.join(card.classes) or 'classes without names'} in pictures of up to {height}x{width} "
        "(height x width).",
        "",
        f"- **Licence** (weights): {told.licence}",
        f"- **Data**: {told.data.name}, {told.data.licence}" + (f", {told.data.source}" if told.data.source else ""),
        f"- **Network**: {told.training.network}, from {told.training.start}",
        f"- **Recipe**: {told.training.recipe}"
        + (f", {told.training.epochs} epochs" if told.training.epochs is not None else ""),
        f"- **Provenance**: {told.provenance}",
        *([f"- **Notes**: {told.notes}"] if told.notes else []),
        "",
        f"Measured by `sparsecam models add` on {measured.made:%Y-%m-%d}, {speed.processor}.",
        "",
        "| file | engine | mAP@0.5 | mAP@0.5:0.95 | pictures | objects |",
        "|---|---|---|---|---|---|",
        *(_row(score) for score in measured.scores),
        _row(measured.baseline, " (baseline)"),
        "",
        f"- **Speed**: {speed.ms:.2f} ms a picture of {speed.height}x{speed.width} on {_cores(speed.num_cores)}, "
        f"{speed.engine}; dense ({speed.dense}) {speed.dense_ms:.2f} ms: {speed.ratio:.2f} times as fast",
        f"- **Size**: {size.file_bytes / 1e6:.2f} MB, compressed {size.compressed_bytes / 1e6:.2f} MB; zeros among the "
        f"weights {zeros}; {size.quantised_nodes} of {size.nodes} nodes in eight bits",
        "- **Versions**: " + ", ".join(f"{name} {version}" for name, version in measured.versions.items()),
        f"- **SHA-256**: `{card.sha256}`",
    ]
    if told.data.digest:
        lines.append(f"- **SHA-256 of the data**: `{told.data.digest}`")
    if told.training.command:
        lines += ["", "```", told.training.command.strip(), "```"]
    return "\n".join(lines) + "\n"


def _row(score: Score, mark: str = "") -> str:
    return (
        f"| {score.file}{mark} | {score.engine} | {score.map50:.4f} | {score.map50_95:.4f} | {score.pictures} | "
        f"{score.objects} |"
    )


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"
